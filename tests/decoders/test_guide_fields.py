"""`x-guide` of JSON Schemas says just what admission asks of the guide that a parameter names, for every parameter."""

import re
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

import pytest
import torch
from zoo import BASES, zoo

from trimtab.decoders.attributes import Attribute
from trimtab.decoders.params import Ability
from trimtab.decoders.preference import Personal, Preference
from trimtab.decoders.registry import strategies
from trimtab.decoders.rewards import Expression
from trimtab.decoders.spec import DecodingSpec
from trimtab.decoders.steer.draft import Draft
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.guides.base import EmbeddingGuide, Guide, HeadGuide, LanguageGuide, PreferenceGuide, TextGuide
from trimtab.engine.guides.embedding import TextEncoder
from trimtab.engine.guides.preference import PreferenceHead
from trimtab.engine.sampling import SamplingParams
from trimtab.server.guides import scores_candidates, vocabulary_relation
from trimtab.server.schema.responses import GuideCard
from trimtab.server.strategies import described_rules, preference_schema

Schema = Mapping[str, Any]
Fits = Callable[[GuideCard], bool]

REWARD = {"reward": "judge"}
REQUESTS: dict[str, dict[str, Any]] = {
    **{name: {"strategy": name, **given} for name, given in BASES.items()},
    "value": {"strategy": "value", "guide": "q", "steer": [{"method": "candidates", "top_k": 3}]},
    "nudging": {"strategy": "nudging", "aligned": "a"},
    "wsd": {"strategy": "wsd", "aligned": "a"},
    **{name: {"strategy": name, **REWARD} for name in ("best_of_n", "darwin", "deal", "dts", "dts_star")},
    **{name: {"strategy": name, **REWARD} for name in ("particle_filter", "qalign", "refine", "tqstar")},
    **{name: {"strategy": name, "value": "judge"} for name in ("beam_search", "cd_blockwise", "dvts", "ppo_mcts")},
    **{name: {"strategy": name, "value": "judge", "draft": "a"} for name in ("gsi", "rsd")},
    "cards": {"strategy": "cards", **REWARD, "target": 1.0},
    "treebon": {"strategy": "treebon", **REWARD, "n": 4, "dpo": "a"},
    "ts_llm": {"strategy": "ts_llm", "value": "judge"},
    "speculative_rejection": {"strategy": "speculative_rejection", **REWARD},
    "self_consistency": {"strategy": "self_consistency", "n": 4},
    "cbs": {"strategy": "cbs", "tuned": "a"},
    "rps": {"strategy": "rps", "preference": {"judge": 1.0, "rm": 0.5}},
    "sample": {},
    **{name: {"strategy": name} for name in ("norms", "principles", "rewrite", "urial")},
    "persona": {"strategy": "persona", "text": "Be brief."},
    "pluralism": {"strategy": "pluralism", "mode": "overton", "communities": {n: {"system": n} for n in "xy"}},
}
"""a request for each strategy that admission lets in"""
BESIDE: dict[tuple[str, str], dict[str, Any]] = {
    ("genarm", "arms"): {"arm": None},
    ("cbs", "value"): {"tuned": None},
    ("treebon", "value"): {"dpo": None},
}
"""what a parameter wants beside it"""
FITS: dict[Ability, Fits] = {
    "lm": lambda card: card.role == "lm",
    "reader": lambda card: card.role == "lm" and card.vocabulary != "text only",
    "scores_candidates": lambda card: card.scores_candidates,
    "scores_answers": lambda card: card.scores_answers,
    "value_head": lambda card: card.role == "value" and not card.scores_candidates and not card.scores_answers,
    "vector": lambda card: card.role == "vector",
    "preference": lambda card: card.role == "preference",
    "embedding": lambda card: card.role == "embedding",
    "attributes": lambda card: bool(card.attributes),
}
"""who fits, as far as a client sees it in /v1/guides"""
SPEAKS = re.compile(r"\b(guides?|models?|adapter|vector|named?|name of)\b")
NOT_NAMES = {("pad", "preference")}
"""texts that speak of a guide and name none"""
OF_OTHERS = {("panacea", "preference"), ("persona", "attributes"), ("pluralism", "weights"), ("preference", "weights")}
"""weights of what is no guide: attributes and communities"""


def guides() -> dict[str, Guide]:
    """The toys, and what admission tells from them: no toy can do all."""
    toys = zoo().guides
    scorer, language = toys["rm"], toys["a"]
    assert isinstance(language, LanguageGuide)
    return {
        **toys,
        "foreign": replace(language, name="foreign", translation=None),
        "foreign_scorer": replace(cast(Any, scorer), name="foreign_scorer", translation=None),
        "judge": TextGuide("judge", "program"),
        "weigher": PreferenceGuide("weigher", PreferenceHead(("judge", "rm"), torch.zeros(2, 5), torch.zeros(2))),
        "finder": EmbeddingGuide("finder", cast(TextEncoder, None)),
    }


GUIDES = guides()
REWARDS = [name for name, guide in GUIDES.items() if guide.role in ("reward", "program")]
JUDGES = [*REWARDS, *(n for n, each in GUIDES.items() if isinstance(each, HeadGuide) and each.head.width == 1)]


def card(name: str) -> GuideCard:
    """What /v1/guides tells of a guide."""
    guide = GUIDES[name]
    return GuideCard(
        name=name,
        role=guide.role,
        model=name,
        vocabulary=vocabulary_relation(guide),
        context_length=None,
        chat_template=None,
        scores_candidates=scores_candidates(guide),
        scores_answers=name in REWARDS,
        attributes=guide.attributes if isinstance(guide, LanguageGuide) else None,
        contract=None,
        card=None,
    )


def fitting(abilities: tuple[Ability, ...]) -> set[str]:
    return {name for name in GUIDES if any(FITS[ability](card(name)) for ability in abilities)}


@dataclass(frozen=True)
class Place:
    """Where a request names a guide."""

    strategy: str
    field: str
    kind: str
    """name; keys: of a map; or a part of an object: Expression.guide, Expression.weights, Community.guide"""
    abilities: tuple[Ability, ...]

    def named(self, guide: str) -> dict[str, Any]:
        """A request that names the guide here."""
        request = {**REQUESTS[self.strategy], **BESIDE.get((self.strategy, self.field), {})}
        given: Any = guide
        match self.kind:
            case "keys":
                others = request.get(self.field) or {}
                given = {guide: 0.5, **dict(list({n: w for n, w in others.items() if n != guide}.items())[-1:])}
            case "Expression.guide":
                given = {"sum": ["judge", {"guide": guide, "weight": 2.0}]}
            case "Expression.weights":
                given = {"sum": ["judge", "rm"], "weights": guide}
            case "Community.guide":
                given = {**request[self.field], "z": {"guide": guide}}
        return {**request, self.field: given}


def forms(schema: Schema) -> list[Schema]:
    """The alternatives of a schema."""
    return [schema] if "anyOf" not in schema else [form for each in schema["anyOf"] for form in forms(each)]


def abilities(schema: Schema) -> tuple[Ability, ...]:
    told = schema["x-guide"]
    return tuple(told) if isinstance(told, list) else (told,)


def places(strategy: str, schema: Schema) -> Iterator[Place]:
    """Every place of a strategy's parameters at which a guide may stand, found in its JSON Schema."""
    definitions = schema.get("$defs", {})
    for field, whole in schema.get("properties", {}).items():
        for form in forms(whole):
            if "x-guide" in form:
                yield Place(strategy, field, "name", abilities(form))
            if "x-guide" in form.get("propertyNames", {}):
                yield Place(strategy, field, "keys", abilities(form["propertyNames"]))
            inner = form.get("additionalProperties") or form.get("patternProperties", {})
            for reference in re.findall(r"#/\$defs/(\w+)", repr([form.get("$ref"), inner])):
                yield from _inside(strategy, field, reference, definitions[reference], mapped=bool(inner))


def _inside(strategy: str, field: str, name: str, definition: Schema, *, mapped: bool) -> Iterator[Place]:
    for form in forms(definition):
        if "x-guide" in form and not mapped:
            yield Place(strategy, field, "name", abilities(form))
        for key, each in form.get("properties", {}).items():
            for inner in forms(each):
                if "x-guide" in inner and (name != "Expression" or not mapped):
                    yield Place(strategy, field, f"{name}.{key}", abilities(inner))


PLACES = [place for each in strategies().values() for place in places(each.name, each.describe()["schema"])]


def admit(decoding: Mapping[str, Any], personal: Personal | None = None) -> None:
    """Raise InvalidRequest as a server with these guides does."""
    spec = DecodingSpec.parse(decoding, personal)
    spec.check(choices=1, rewards=JUDGES)
    draft = Draft(GUIDES, lambda name, view: array("q", [len(name), len(repr(view))]), vocab_size=5)
    spec.steer(draft)
    draft.compile(SamplingParams(), seed=1, eos_ids=frozenset())


def test_no_strategy_and_no_ability_is_left_out() -> None:
    assert REQUESTS.keys() == strategies().keys()
    assert FITS.keys() == set(get_args(Ability)) == {ability for place in PLACES for ability in place.abilities}
    for strategy in REQUESTS:
        admit(REQUESTS[strategy])
    for ability in FITS:
        assert fitting((ability,)), ability
    kinds = {place.kind for place in PLACES}
    assert kinds == {"name", "keys", "Expression.guide", "Expression.weights", "Community.guide"}


@pytest.mark.parametrize("place", PLACES, ids=lambda each: f"{each.strategy}-{each.field}-{each.kind}")
def test_admission_refuses_those_that_do_not_fit_and_no_others(place: Place) -> None:
    refused = {}
    for name in [*GUIDES, "nobody"]:
        try:
            admit(place.named(name))
        except InvalidRequest as error:
            refused[name] = error.param
    assert refused == dict.fromkeys({*GUIDES, "nobody"} - fitting(place.abilities), f"decoding.{place.field}")


def test_an_inferred_preference_names_a_guide_that_weighs() -> None:
    (form,) = (form for form in forms(preference_schema()["properties"]["infer"]) if "x-guide" in form)
    attributes = {name: Attribute(low="low", high="high", reward=Expression.of(name)) for name in ("judge", "rm")}
    for name in GUIDES:
        sent = {"strategy": "best_of_n", "preference": {"infer": name}}
        if name in fitting(abilities(form)):
            admit(sent, Personal(attributes, GUIDES))
        else:
            with pytest.raises(InvalidRequest) as caught:
                admit(sent, Personal(attributes, GUIDES))
            assert caught.value.param == "decoding.preference.infer"
    assert Preference.model_fields.keys() == {"weights", "text", "infer", "profile"}


def test_what_names_a_guide_says_so() -> None:
    """A text whose description speaks of guides or models has `x-guide`, and so have the keys of a map of weights."""
    schemas = {each.name: each.describe()["schema"] for each in strategies().values()}
    schemas |= {each["name"]: each["schema"] for each in described_rules()} | {"preference": preference_schema()}
    told = [
        ((name, field), whole.get("description", ""), form)
        for name, schema in schemas.items()
        for owner in (schema, *(form for each in schema.get("$defs", {}).values() for form in forms(each)))
        for field, whole in owner.get("properties", {}).items()
        for form in forms(whole)
    ]
    texts = [each for each in told if each[2].get("type") == "string" and not {"enum", "const"} & each[2].keys()]
    silent = {where for where, words, form in texts if SPEAKS.search(words) and "x-guide" not in form}
    assert silent == NOT_NAMES
    maps = [each for each in told if each[2].get("additionalProperties", False) and "properties" not in each[2]]
    weighed = [each for each in maps if each[2]["additionalProperties"].get("type") == "number"]
    assert {where for where, _, form in weighed if "x-guide" not in form.get("propertyNames", {})} == OF_OTHERS
