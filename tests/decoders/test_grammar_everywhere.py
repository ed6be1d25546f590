"""A grammar under every search and every steering method: what it forbids is never said, by whoever writes."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from searches import EOS, MESSAGES, PROMPT, SEARCHES, toy
from toy import Toy, byte_tokenizer, random_table
from zoo import BASES, END, babble, zoo
from zoo import PROMPT as ZOO_PROMPT

from trimtab.decoders.registry import strategies
from trimtab.engine.grammar import Grammar
from trimtab.engine.results import Result
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.vocabulary import Vocabulary

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"é": {"enum": ["a", "be"]}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["é", "n"],
    "additionalProperties": False,
}
JSON = Grammar.json_schema(SCHEMA)
ROOM = 40  # tokens: more than the longest answer without spaces
SPACES = Vocabulary(byte_tokenizer()).encode("\t\n\r ")


def sampled(seed: int = 5, **more: Any) -> SamplingParams:
    """Answers of one line: spaces are allowed, but a random model would write little else."""
    return SamplingParams(seed=seed, max_tokens=ROOM, logit_bias=dict.fromkeys(SPACES, -100.0), **more)


def assert_fits(text: str) -> None:
    value = json.loads(text)
    assert list(value) == ["é", "n"]
    assert value["é"] in ("a", "be")
    assert type(value["n"]) is int
    assert 0 <= value["n"] <= 99


def assert_all_fit(result: Result) -> None:
    for choice in result.choices:
        assert choice.finish_reason == "stop"
        assert_fits(choice.text)
    for candidate in result.candidates:
        if candidate.finish_reason == "stop":
            assert_fits(candidate.text)


def submit(engine: Toy, name: str, seed: int = 5, **shared: Any) -> object:
    decoding = {"strategy": name, **SEARCHES.get(name, {}), **shared}
    return engine.submit(PROMPT, sampled(seed), decoding=decoding, messages=MESSAGES, grammar=JSON)


def run(name: str, seed: int = 5, **shared: Any) -> Result:
    engine = toy()
    handle = submit(engine, name, seed, **shared)
    engine.finish()
    return engine.result(handle)


def told(result: Result) -> object:
    return result.choices, [(each.text, each.reward) for each in result.candidates]


@pytest.mark.parametrize("name", ["sample", *SEARCHES])
def test_every_search_keeps_to_the_grammar(name: str) -> None:
    for seed in range(2):
        assert_all_fit(run(name, seed))


@pytest.mark.parametrize("name", SEARCHES)
def test_a_steered_search_keeps_to_the_grammar(name: str) -> None:
    """On the written-out path, from lists of candidates, and on the fused one."""
    steers: list[list[dict[str, Any]]] = [
        [{"method": "candidates", "top_k": 3}],
        [{"method": "contrastive", "amateur": "other"}],
        [{"method": "mod", "weights": {"other": 0.5, "base": 0.5}, "alpha": 0.5}],
    ]
    engine = toy()
    handles = [submit(engine, name, steer=steer) for steer in steers]
    engine.finish()
    for handle in handles:
        assert_all_fit(engine.result(handle))


def test_all_searches_in_one_batch_answer_as_each_alone() -> None:
    """Beside requests without a grammar, which keep their tokens as well."""
    engine = toy()
    handles = {name: submit(engine, name) for name in SEARCHES}
    free = engine.submit(PROMPT, sampled())
    engine.finish()
    for name, handle in handles.items():
        assert told(engine.result(handle)) == told(run(name)), name
    assert told(engine.result(free)) == told(toy().run(PROMPT, sampled()))


def test_helper_texts_are_free() -> None:
    """DARWIN's variants of the instruction are written in words; what answers them is not."""
    engine = toy()
    engine.add_lm("writer", writer)
    decoding = {"strategy": "darwin", **SEARCHES["darwin"], "mutator": "writer"}
    handle = engine.submit(PROMPT, sampled(), decoding=decoding, messages=MESSAGES, grammar=JSON)
    engine.finish()
    result = engine.result(handle)
    assert "b" in result.report["instructions"]
    assert_all_fit(result)


def writer(prefix: Any) -> np.ndarray:
    """Says `b` and stops."""
    logits = np.zeros(257)
    logits[EOS if prefix[-1] == 65 else 65] = 50.0
    return logits


def test_a_refusal_is_plain_text() -> None:
    select = {"rule": "abstain", "tau": 1e6, "message": "No answer."}
    (choice,) = run("best_of_n", select=select).choices
    assert choice.text == "No answer."


@pytest.mark.parametrize("ticks", [3, 9, 20])
def test_a_search_that_is_ended_early_answers_with_the_beginning_of_what_fits(ticks: int) -> None:
    engine = toy()
    handle = submit(engine, "best_of_n", budget={"max_model_tokens": ticks * 4})
    engine.finish()
    (choice,) = engine.result(handle).choices
    state = engine.grammars.start(JSON, engine.vocabulary)
    assert state.fitting(choice.token_ids) == len(choice.token_ids)


def signs(text: str) -> bool:
    """Whether a text is one of the grammar below."""
    return bool(text) and set(text.replace('"#', "!").removesuffix("$")) == {"!"}


SIGNS = Grammar.regex(r'(!|"#)+\$?')


def small(name: str, traced: bool, **sampling: Any) -> list[Result]:
    made = zoo()
    decoding: Mapping[str, Any] = {"strategy": name, **BASES[name], "trace": "tokens" if traced else None}
    decoding = {key: value for key, value in decoding.items() if value is not None}
    handles = [
        made.submit(ZOO_PROMPT, SamplingParams(seed=seed, max_tokens=7, **sampling), decoding=decoding, grammar=SIGNS)
        for seed in range(12)
    ]
    made.finish()
    return [made.result(handle) for handle in handles]


@pytest.mark.parametrize("name", BASES)
def test_every_method_keeps_to_the_grammar_on_each_of_its_paths(name: str) -> None:
    """A traced request writes its scores out, others take the short ways: the same tokens, and each text fits."""
    free, traced = small(name, False), small(name, True)
    assert [each.choices[0].token_ids for each in free] == [each.choices[0].token_ids for each in traced]
    ended = [each.choices[0].text for each in free if each.choices[0].finish_reason == "stop"]
    assert len(ended) > 3
    assert all(map(signs, ended))


def test_every_method_is_tried() -> None:
    assert {*BASES, "nudging", "wsd"} == {each.name for each in strategies().values() if each.kind == "steer"}


DUETS: list[dict[str, Any]] = [
    {"strategy": "nudging", "aligned": "other", "gamma": gamma, "draft": draft}
    for gamma in (0.0, 0.3, 0.9)
    for draft in (1, 4)
] + [{"strategy": "wsd", "aligned": "other", "window": 1, "threshold": threshold} for threshold in (0.05, 0.9)]


def spoken(decoding: Mapping[str, Any], grammar: Grammar, guide: Any, **sampling: Any) -> list[Result]:
    engine = Toy(random_table(257, scale=2.0), eos=END)
    engine.add_lm("other", guide)
    handles = [
        engine.submit(PROMPT, sampled(seed, **sampling), decoding=decoding, grammar=grammar) for seed in range(4)
    ]
    engine.finish()
    return [engine.result(handle) for handle in handles]


@pytest.mark.parametrize("decoding", DUETS, ids=str)
def test_a_duet_keeps_to_the_grammar(decoding: dict[str, Any]) -> None:
    """The guide's words stand where they fit; here hardly any does."""
    for result in spoken(decoding, JSON, babble(1)):
        assert_all_fit(result)


@pytest.mark.parametrize("decoding", DUETS, ids=str)
def test_words_that_fit_stand(decoding: dict[str, Any]) -> None:
    """Where every word of the guide fits, the answer begins as if there were no grammar."""
    words = Grammar.regex(r"[abc ]{1,30}[abc ]*\.?")
    for traced in (False, True):
        more = {"trace": "tokens"} if traced else {}
        for bound, free in zip(
            spoken({**decoding, **more}, words, babble(1)), spoken({**decoding, **more}, FREE, babble(1)), strict=True
        ):
            mine, theirs = bound.choices[0].token_ids, free.choices[0].token_ids
            drafted = _drafted(free) if traced else 0
            assert mine[:drafted] == theirs[:drafted]


FREE = Grammar.regex(r"(?s:.)*")


def _drafted(result: Result) -> int:
    """How many tokens the guide wrote before the base's first one."""
    sources = [each.source for each in result.choices[0].trace or ()]
    return next((at for at, source in enumerate(sources) if source == "base"), len(sources))


def silent(prefix: Any) -> np.ndarray:
    logits = np.zeros(257)
    logits[END] = 60.0
    return logits


@pytest.mark.parametrize("decoding", DUETS, ids=str)
def test_the_guide_ends_the_text_only_where_it_may_end(decoding: dict[str, Any]) -> None:
    """A guide that says nothing but the end: the base writes as much as the grammar wants."""

    for result in spoken(decoding, Grammar.regex("[ab]{6,}"), silent):
        (choice,) = result.choices
        assert len(choice.text) >= 6
        assert set(choice.text) <= {"a", "b"}
        assert choice.finish_reason in ("stop", "length")


def test_a_duet_whose_base_ends_where_the_guide_may_not_go_on_ends() -> None:
    """The guide's words never fit, and the base wants to end: it may, though nudging leaves that to the guide."""

    def ending(prefix: Any) -> np.ndarray:
        logits = np.zeros(257)
        logits[END] = 60.0
        return logits

    engine = Toy(ending, eos=END)
    engine.add_lm("other", babble(1))
    decoding = {"strategy": "nudging", "aligned": "other", "gamma": 0.99}
    result = engine.run(PROMPT, sampled(), decoding=decoding, grammar=Grammar.regex("[0-9]{2,}"))
    assert len(result.choices[0].text) == 2
    assert result.choices[0].finish_reason == "stop"


def test_what_a_greedy_duet_reports_is_measured_under_the_grammar() -> None:
    """The base writes all of it, and not what it would have written."""
    engine = Toy(random_table(257, scale=2.0), eos=END)
    engine.add_lm("other", silent)
    decoding = {"strategy": "nudging", "aligned": "other", "gamma": 0.99}
    greedy = SamplingParams(temperature=0.0, max_tokens=ROOM)
    (choice,) = engine.run(PROMPT, greedy, decoding=decoding, grammar=Grammar.regex("[ab]{6}")).choices
    assert len(choice.text) == 6
    assert choice.steering is not None
    assert choice.steering.kl > 1.0
