"""Parts that steer each token, and parts that change what the models read."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args, get_origin

from trimtab.bench.capacity.formulas.ask import Ask, Formula, written
from trimtab.bench.capacity.work import BASE, Work, added
from trimtab.decoders.params import GuideName, Params

INSTRUCTION = 90.0
"""tokens of what asks for a rewritten question, or for principles"""
CANDIDATES = 20
"""tokens that a scorer reads where a part names no number"""
BESIDE = ("cfg",)
"""parts in which the base reads a second prompt beside the first"""
TURNS = ("nudging", "wsd")
"""two models take turns: each reads nearly all that is said, some tokens at a time"""


def steered(work: Work, name: str, part: Params, ask: Ask) -> Work:
    """Search and steer: whoever reads along with the base reads every row that the base decodes."""
    along = work.rows.get(BASE, 0.0)
    lanes, scorers = read_along(part)
    if name in BESIDE or (name == "contrastive" and lanes == (BASE,)) or getattr(part, "measure_kl", False):
        return replace(work, rows=added(work.rows, {BASE: along})) + Work(prefill={BASE: ask.prompt})
    lanes = tuple(each for each in lanes if each != BASE)
    if name in TURNS:  # every token is one of the base's steps and one of the other's, until it is measured
        turns = Work(work.steps, work.sequences, dict.fromkeys(lanes, along), prefill=dict.fromkeys(lanes, ask.prompt))
        return work + turns
    count = getattr(part, "k", None) or getattr(part, "top_k", None) or CANDIDATES
    rows = added(work.rows, dict.fromkeys(lanes, along))
    wide = added(work.wide, dict.fromkeys(scorers, along * count))
    return replace(work, rows=rows, wide=wide) + Work(prefill=dict.fromkeys((*lanes, *scorers), ask.prompt))


def read_along(part: Params) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The language models that a part mixes, and the guides that score its candidates, by its fields' types."""
    lanes: list[str] = []
    scorers: list[str] = []
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        given = tuple(value) if isinstance(value, Mapping) else (value,) if isinstance(value, str) else ()
        abilities = {each for mark in _marks(field.annotation, field.metadata) for each in _abilities(mark)}
        if abilities & {"lm", "reader"}:
            lanes += given
        elif abilities & {"scores_candidates"}:
            scorers += given
    return tuple(dict.fromkeys(lanes)), tuple(dict.fromkeys(scorers))


def rewrite(params: Any, ask: Ask) -> Work:
    """A text of up to max_tokens, written behind the instruction, and then a prompt of its own."""
    return _helper(params.guide, params.max_tokens, ask.prompt + INSTRUCTION)


def principles(params: Any, ask: Ask) -> Work:
    """Principles, then an answer and its revision for each round; the answer itself is the search's."""
    work = _helper(params.guide, params.max_tokens, ask.prompt + INSTRUCTION)
    for _ in range(params.rounds):
        work += written(1, ask.length, model=params.guide, tokens=ask.length)
        work += Work(prefill={params.guide: ask.prompt + params.max_tokens + ask.length})
    return work


def pluralism(params: Any, ask: Ask) -> Work:
    """A comment of each community, side by side, then one answer; distributional: read along by each community."""
    speakers = [each.guide or BASE for each in params.communities.values()]
    if params.mode == "distributional":
        voices = Counter(speakers)  # communities of one model are rows of it, each with a prompt of its own
        rows = {name: count * ask.length for name, count in voices.items()}
        return Work(rows=rows, prefill={name: count * ask.prompt for name, count in voices.items()})
    work = Work(params.max_tokens, float(params.max_tokens * len(speakers)))
    for speaker in speakers:
        tokens = float(params.max_tokens)
        work += Work(rows={speaker: tokens}, prefill={speaker: ask.prompt})
    return work + Work(prefill={BASE: len(speakers) * params.max_tokens})


def longer(tokens: float) -> Formula:
    """A prompt that is longer by so many tokens, which every request reads."""

    def formula(params: Any, ask: Ask) -> Work:
        return Work(prefill={BASE: tokens})

    return formula


def norms(params: Any, ask: Ask) -> Work:
    """Up to max_tokens more of a prompt; half of them, as norms are short."""
    return Work(prefill={BASE: params.max_tokens / 2})


PROMPTS: Mapping[str, Formula] = {
    "rewrite": rewrite,
    "principles": principles,
    "pluralism": pluralism,
    "norms": norms,
    "persona": longer(10.0),
    "urial": longer(0.0),
}
"""what urial adds is the same for all requests, and so found in the cache of prefixes"""


def _helper(model: str, tokens: float, prompt: float) -> Work:
    return written(1, tokens, model=model, tokens=tokens) + Work(prefill={model: prompt})


def _marks(annotation: Any, metadata: list[Any]) -> list[GuideName]:
    """The marks of a guide's name anywhere in a type: `X | None` and the keys of mappings too."""
    found = [each for each in metadata if isinstance(each, GuideName)]
    for inner in get_args(annotation) if get_origin(annotation) is not None else ():
        found += [each for each in getattr(inner, "__metadata__", ()) if isinstance(each, GuideName)]
        found += _marks(inner, [])
    return found


def _abilities(mark: GuideName) -> tuple[str, ...]:
    return mark.ability if isinstance(mark.ability, tuple) else (mark.ability,)
