"""Every token-level strategy compiles to the plan of its formula, and says what is wrong where it cannot."""

from array import array
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from toy import Toy, random_table

from trimtab.decoders.registry import strategies
from trimtab.decoders.spec import DecodingSpec
from trimtab.decoders.steer.draft import MAX_CANDIDATES, Draft, PromptView
from trimtab.engine.alignment import Translation
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.guides.base import Guide, HeadGuide, LanguageGuide, ScorerGuide, TextGuide, VectorGuide
from trimtab.engine.guides.heads import ValueHead
from trimtab.engine.model import Model
from trimtab.engine.plan import (
    BASE,
    Candidates,
    GatePlan,
    HiddenEdit,
    LanePlan,
    Mixed,
    SteerPlan,
    ValueTerm,
    Variant,
)
from trimtab.engine.sampling import SamplingParams

V = 300
SAME = Translation(np.arange(V), V)
SAMPLING = SamplingParams()
PLAN = SteerPlan(SAMPLING, 5, frozenset({7}))


class Words:
    """As much of a vocabulary as an error tells."""

    def __init__(self, size: int) -> None:
        self.size = size


def model(name: str, size: int = V) -> Model:
    return Model(name, None, Words(size), 64, frozenset({7}), b"")  # type: ignore[arg-type]


def head(width: int) -> ValueHead:
    return ValueHead([torch.zeros(width, 2)], [torch.zeros(width)])


EVEN = (1.0, 0.5, 0.5)
"""scales of an adapter with two attributes that count alike"""
GUIDES: dict[str, Guide] = {
    "a": LanguageGuide("a", model("a"), translation=SAME),
    "b": LanguageGuide("b", model("b"), translation=SAME),
    "adapter": LanguageGuide("adapter", model(BASE), Variant(adapter="adapter"), SAME),
    "wishes": LanguageGuide("wishes", model(BASE), Variant("wishes", scales=EVEN), SAME, attributes=("x", "y")),
    "foreign": LanguageGuide("foreign", model("foreign", 99)),
    "rm": ScorerGuide("rm", model("rm"), lambda hidden: hidden, "reward", translation=SAME),
    "v": ScorerGuide("v", model("v"), lambda hidden: hidden, "value", translation=SAME),
    "foreign_rm": ScorerGuide("foreign_rm", model("foreign_rm", 99), lambda hidden: hidden, "reward"),
    "q": HeadGuide("q", head(V)),
    "point": HeadGuide("point", head(1)),
    "c": VectorGuide("c", {1: torch.zeros(2)}),
    "d": VectorGuide("d", {1: torch.zeros(2)}),
    "text": TextGuide("text", "reward"),
}


def prompt(name: str, view: PromptView) -> "array[int]":
    """Another prompt for every name and view."""
    return array("q", map(ord, repr((name, view))))


def lane(name: str, view: PromptView | None = None, variant: Variant | None = None) -> LanePlan:
    guide = GUIDES.get(name)
    own = guide.variant if isinstance(guide, LanguageGuide | ScorerGuide) else Variant()
    runs = guide.model.name if isinstance(guide, LanguageGuide | ScorerGuide) else BASE
    return LanePlan(name, runs, prompt(name, view or PromptView()), variant or own, isinstance(guide, ScorerGuide))


def compiled(decoding: dict[str, Any], vocab_size: int = V) -> SteerPlan:
    spec = DecodingSpec.parse(decoding)
    draft = Draft(GUIDES, prompt, vocab_size)
    spec.steer(draft)
    return draft.compile(SAMPLING, seed=5, eos_ids=frozenset({7}), trace=spec.trace == "tokens")


def mixed(*names: str) -> tuple[LanePlan, ...]:
    return tuple(lane(name) for name in names)


def value(guide: str, weight: float, transform: str = "identity", seat: int | None = 0) -> tuple[ValueTerm, ...]:
    return (ValueTerm(guide, weight, transform, seat),)  # type: ignore[arg-type]


PRESETS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"strategy": "args", "reward": "rm"},
        {"lanes": mixed("rm"), "candidates": Candidates(top_k=10), "values": value("rm", 1.5)},
    ),
    (
        {"strategy": "args", "reward": "rm", "k": 3, "w": -2},
        {"lanes": mixed("rm"), "candidates": Candidates(top_k=3), "values": value("rm", -2.0)},
    ),
    ({"strategy": "args", "reward": "rm", "w": 0.0}, {"candidates": Candidates(top_k=10)}),
    (
        {"strategy": "rad", "reward": "rm"},
        {"lanes": mixed("rm"), "candidates": Candidates(top_k=20), "values": value("rm", 30.0, "clamp")},
    ),
    (
        {"strategy": "rad", "reward": "q", "beta": 1.0, "k": 299},
        {"candidates": Candidates(top_k=299), "values": value("q", 1.0, "clamp", None)},
    ),
    (
        {"strategy": "fudge", "classifier": "v"},
        {
            "lanes": mixed("v"),
            "candidates": Candidates(top_k=200),
            "values": value("v", 1.0, "log_sigmoid"),
            "limit": 10,
        },
    ),
    (
        {"strategy": "fudge", "classifier": "v", "lam": 2.5, "k": 50, "limit": 4},
        {
            "lanes": mixed("v"),
            "candidates": Candidates(top_k=50),
            "values": value("v", 2.5, "log_sigmoid"),
            "limit": 4,
        },
    ),
    ({"strategy": "cd", "value": "q"}, {"values": value("q", 1.0, seat=None)}),
    (
        {"strategy": "cd", "value": "q", "k": 5, "lam": 4.0},
        {"candidates": Candidates(top_k=5), "values": value("q", 4.0, seat=None)},
    ),
    (
        {"strategy": "cd", "value": "v"},
        {"lanes": mixed("v"), "candidates": Candidates(top_k=20), "values": value("v", 1.0)},
    ),
    (
        {"strategy": "ivo", "value": "v", "k": 8},
        {"lanes": mixed("v"), "candidates": Candidates(top_k=8), "values": value("v", 1.0)},
    ),
    (
        {"strategy": "vas", "value": "v"},
        {
            "lanes": mixed("v"),
            "candidates": Candidates(top_k=20, keep_others=True),
            "values": value("v", 3.0, "centre"),
        },
    ),
    (
        {"strategy": "vas", "value": "v", "beta": 1.0, "k": 6},
        {
            "lanes": mixed("v"),
            "candidates": Candidates(top_k=6, keep_others=True),
            "values": value("v", 1.0, "centre"),
        },
    ),
    ({"strategy": "genarm", "arm": "adapter"}, {"lanes": mixed("adapter"), "mixture": (Mixed(0, 1.0),)}),
    ({"strategy": "genarm", "arm": "a", "alpha": 0.5}, {"lanes": mixed("a"), "mixture": (Mixed(0, 0.5),)}),
    ({"strategy": "genarm", "arm": "a", "alpha": 0.0}, {}),
    (
        {"strategy": "genarm", "arms": {"a": 0.25, "b": -1.0}, "alpha": 2.0},
        {"lanes": mixed("a", "b"), "mixture": (Mixed(0, 0.5), Mixed(1, -2.0))},
    ),
    (
        {"strategy": "pad", "arm": "a", "w": 0.75},
        {
            "lanes": mixed("a"),
            "base_weight": 0.25,
            "mixture": (Mixed(0, 0.75),),
            "candidates": Candidates(top_k=10),
        },
    ),
    (
        {"strategy": "pad", "arm": "a", "w": 1.0, "k": 4, "preference": "Be brief."},
        {
            "lanes": (lane("a", PromptView(system="Be brief.")),),
            "base_weight": 0.0,
            "mixture": (Mixed(0, 1.0),),
            "candidates": Candidates(top_k=4),
        },
    ),
    (
        {"strategy": "dera", "aligned": "a", "lam": 2.0},
        {"lanes": mixed("a"), "base_weight": -1.0, "mixture": (Mixed(0, 2.0),)},
    ),
    ({"strategy": "dera", "aligned": "a", "lam": 0.0}, {}),
    (
        {"strategy": "dera", "aligned": "a", "reference": "b", "lam": 0.25},
        {"lanes": mixed("b", "a"), "base_weight": 0.0, "mixture": (Mixed(0, 0.75), Mixed(1, 0.25))},
    ),
    (
        {"strategy": "mod", "weights": {"a": 0.7, "b": 0.3}},
        {"lanes": mixed("a", "b"), "base_weight": 0.0, "mixture": (Mixed(0, 0.7), Mixed(1, 0.3))},
    ),
    (
        {"strategy": "mod", "weights": {"a": 0.7, "base": 0.3}, "alpha": 1.0},
        {"lanes": mixed("a"), "base_weight": 0.3, "mixture": (Mixed(0, 0.7),), "power": 1.0},
    ),
    (
        {"strategy": "proxy_tuning", "expert": "a", "antiexpert": "b", "alpha": 1.5},
        {"lanes": mixed("a", "b"), "mixture": (Mixed(0, 1.5), Mixed(1, -1.5))},
    ),
    ({"strategy": "proxy_tuning", "expert": "a", "antiexpert": "a"}, {}),
    (
        {"strategy": "dexperts", "expert": "a", "antiexpert": "b"},
        {
            "lanes": mixed("a", "b"),
            "mixture": (Mixed(0, 2.0), Mixed(1, -2.0)),
            "candidates": Candidates(top_p=0.9),
        },
    ),
    (
        {"strategy": "dexperts", "expert": "base", "antiexpert": "b", "alpha": 1.0, "p": 0.5},
        {
            "lanes": mixed("b"),
            "base_weight": 2.0,
            "mixture": (Mixed(0, -1.0),),
            "candidates": Candidates(top_p=0.5),
        },
    ),
    ({"strategy": "eft", "tuned": "a"}, {"lanes": mixed("a"), "base_weight": 0.0, "mixture": (Mixed(0, 1.0),)}),
    (
        {"strategy": "eft", "tuned": "a", "reference": "b", "w": 0.5},
        {"lanes": mixed("a", "b"), "mixture": (Mixed(0, 0.5), Mixed(1, -0.5))},
    ),
    ({"strategy": "ivl", "value": "a"}, {"lanes": mixed("a"), "mixture": (Mixed(0, 1.0),)}),
    (
        {"strategy": "contrastive", "amateur": "a"},
        {
            "lanes": mixed("a"),
            "base_weight": 1.5,
            "mixture": (Mixed(0, -0.5),),
            "candidates": Candidates(alpha=0.1),
        },
    ),
    (
        {"strategy": "contrastive", "amateur": "base", "amateur_sees_prompt": False, "alpha": 0.3, "beta": 1.0},
        {
            "lanes": (lane(BASE, PromptView(empty=True)),),
            "base_weight": 2.0,
            "mixture": (Mixed(0, -1.0),),
            "candidates": Candidates(alpha=0.3),
        },
    ),
    (
        {"strategy": "cfg"},
        {"lanes": (lane(BASE, PromptView(drop_system=True)),), "base_weight": 1.5, "mixture": (Mixed(0, -0.5),)},
    ),
    (
        {"strategy": "cfg", "gamma": 3.0, "negative_prompt": "Be rude."},
        {"lanes": (lane(BASE, PromptView(system="Be rude.")),), "base_weight": 3.0, "mixture": (Mixed(0, -2.0),)},
    ),
    ({"strategy": "cfg", "gamma": 1.0}, {}),
    (
        {"strategy": "nudging", "aligned": "foreign"},
        {"lanes": mixed("foreign"), "gate": GatePlan("nudging", 0, 16, gamma=0.4)},
    ),
    (
        {"strategy": "nudging", "aligned": "a", "gamma": 0.1, "draft": 4},
        {"lanes": mixed("a"), "gate": GatePlan("nudging", 0, 4, gamma=0.1)},
    ),
    (
        {"strategy": "wsd", "aligned": "foreign"},
        {"lanes": mixed("foreign"), "gate": GatePlan("wsd", 0, 16, window=6, threshold=0.8)},
    ),
    (
        {"strategy": "wsd", "aligned": "a", "window": 3, "threshold": 0.5, "draft": 8},
        {"lanes": mixed("a"), "gate": GatePlan("wsd", 0, 8, window=3, threshold=0.5)},
    ),
    ({"strategy": "re_control", "value": "point"}, {"hidden": HiddenEdit("point", 1.0, 30)}),
    ({"strategy": "re_control", "value": "point", "lr": 0.1, "n": 2}, {"hidden": HiddenEdit("point", 0.1, 2)}),
    ({"strategy": "re_control", "value": "point", "lr": 0.0}, {}),
    ({"strategy": "control_vector", "vector": "c"}, {"variant": Variant(vectors=(("c", 1.0),))}),
    (
        {"strategy": "control_vector", "vector": "c", "coeff": -2.0, "measure_kl": True},
        {
            "variant": Variant(vectors=(("c", -2.0),)),
            "lanes": mixed(BASE),
            "reference": 0,
        },
    ),
    ({"strategy": "control_vector", "vector": "c", "coeff": 0.0, "measure_kl": True}, {}),
    (
        {"strategy": "panacea", "guide": "wishes", "preference": {"y": 1.5, "x": 0.5}},
        {"variant": Variant("wishes", scales=(1.0, 0.25, 0.75))},
    ),
    (
        {
            "strategy": "panacea",
            "guide": "wishes",
            "preference": {"y": 1.5},
            "normalise": False,
            "strength": 2.0,
            "measure_kl": True,
        },
        {
            "variant": Variant("wishes", scales=(2.0, 0.0, 3.0)),
            "lanes": (lane(BASE, variant=Variant()),),
            "reference": 0,
        },
    ),
    (
        {"strategy": "mixture", "weights": {"a": 0.1, "base": 0.3}},
        {"lanes": mixed("a"), "base_weight": 0.3, "mixture": (Mixed(0, 0.1),)},
    ),
    ({"strategy": "mixture", "weights": {"a": 0.1}}, {"lanes": mixed("a"), "mixture": (Mixed(0, 0.1),)}),
    (
        {"strategy": "candidates", "top_k": 9, "top_p": 0.5, "alpha": 0.2, "keep_others": True},
        {"candidates": Candidates(9, 0.5, 0.2, True)},
    ),
    ({"strategy": "value", "guide": "q"}, {"values": value("q", 1.0, seat=None)}),
    (
        {"strategy": "value", "guide": "q", "weight": 2.0, "transform": "centre"},
        {"values": value("q", 2.0, "centre", None)},
    ),
    ({"strategy": "sample", "trace": "tokens"}, {"trace": True}),
]


@pytest.mark.parametrize(("decoding", "plan"), PRESETS)
def test_a_strategy_is_the_plan_of_its_formula(decoding: dict[str, Any], plan: dict[str, Any]) -> None:
    assert compiled(decoding) == replace(PLAN, **plan)


def test_every_option_of_every_strategy_is_among_the_plans_above() -> None:
    named = {(decoding["strategy"], key) for decoding, _ in PRESETS for key in decoding}
    for strategy in strategies().values():
        if strategy.kind == "steer" and strategy.name != "ivo":  # it has the options of cd
            assert {(strategy.name, field) for field in strategy.params.model_fields} <= named


def test_a_listed_part_is_the_strategy_itself() -> None:
    for decoding, plan in PRESETS:
        method, *_ = (part := dict(decoding)).pop("strategy"), part.pop("trace", None)
        if method != "sample":
            listed = {"strategy": "best_of_n", "reward": "text", "steer": [{"method": method, **part}]}
            assert compiled(listed) == replace(PLAN, **plan)


def test_parts_add_up_in_any_order() -> None:
    parts = [
        {"method": "control_vector", "vector": "d", "coeff": 2.0},
        {"method": "genarm", "arm": "a", "alpha": 0.5},
        {"method": "args", "reward": "rm", "k": 12},
        {"method": "value", "guide": "rm", "weight": 1.0},
        {"method": "candidates", "top_k": 30, "top_p": 0.8, "alpha": 0.1},
        {"method": "control_vector", "vector": "c"},
        {"method": "eft", "tuned": "a", "reference": "b"},
        {"method": "control_vector", "vector": "d", "coeff": -0.5},
    ]
    expected = replace(
        PLAN,
        variant=Variant(vectors=(("c", 1.0), ("d", 1.5))),
        lanes=mixed("a", "b", "rm"),
        mixture=(Mixed(0, 1.5), Mixed(1, -1.0)),
        candidates=Candidates(12, 0.8, 0.1),
        values=value("rm", 2.5, seat=2),
    )
    assert compiled({"steer": parts}) == expected
    moved = compiled({"steer": [parts[6], *parts[:6], parts[7]]})
    assert moved == expected


def test_a_second_prompt_is_steered_as_the_first_and_its_reference_is_not() -> None:
    steer = [{"method": "control_vector", "vector": "c", "measure_kl": True}, {"method": "cfg", "gamma": 2.0}]
    plan = compiled({"steer": steer})
    vectors = Variant(vectors=(("c", 1.0),))
    assert plan.lanes == (lane(BASE, PromptView(drop_system=True), vectors), lane(BASE))
    assert plan.mixture == (Mixed(0, -1.0),)
    assert plan.reference == 1


def test_a_gate_goes_with_vectors_and_hidden_edits() -> None:
    steer = [{"method": "control_vector", "vector": "c"}, {"method": "re_control", "value": "point"}]
    plan = compiled({"strategy": "nudging", "aligned": "a", "steer": steer})
    assert plan.gate is not None
    assert plan.hidden is not None
    assert plan.variant.vectors == (("c", 1.0),)


def test_k_beyond_the_vocabulary_is_the_vocabulary() -> None:
    decoding = {"strategy": "args", "reward": "rm", "k": 10**6}
    assert compiled(decoding, vocab_size=MAX_CANDIDATES).candidates == Candidates(top_k=MAX_CANDIDATES)


@pytest.mark.parametrize(
    ("decoding", "param", "words"),
    [
        ({"strategy": "genarm", "arm": "no"}, "arm", r"no guide is named 'no'.*'lm'.*a, adapter, b, foreign, wishes$"),
        ({"strategy": "genarm", "arms": {"rm": 1.0}}, "arms", "'rm' has the role 'reward'"),
        ({"strategy": "ivl", "value": "foreign"}, "value", "vocabulary 99, base 300.*nudging or wsd"),
        ({"strategy": "proxy_tuning", "expert": "a", "antiexpert": "c"}, "antiexpert", "role 'vector'"),
        ({"strategy": "args", "reward": "text"}, "reward", "'text'.*scores whole answers alone.*q, rm, v"),
        ({"strategy": "args", "reward": "a"}, "reward", "has the role 'lm'"),
        ({"strategy": "args", "reward": "foreign_rm"}, "reward", "'foreign_rm' has vocabulary 99, base 300"),
        ({"strategy": "args", "reward": "point"}, "reward", "serves re_control"),
        ({"strategy": "args", "reward": "rm", "k": 257}, "k", "at most 256 candidates for a token, not 257"),
        ({"strategy": "cd", "value": "no"}, "value", "no guide is named"),
        ({"strategy": "value", "guide": "rm"}, "guide", '"candidates"'),
        ({"steer": [{"method": "cfg"}, {"method": "value", "guide": "rm"}]}, "steer.1.guide", '"candidates"'),
        ({"strategy": "re_control", "value": "q"}, "value", "gives 300 values.*serves cd"),
        ({"strategy": "re_control", "value": "v"}, "value", "has the role 'value'; this needs a value head"),
        ({"strategy": "control_vector", "vector": "a"}, "vector", "role 'vector'.*configured: c, d"),
        ({"strategy": "nudging", "aligned": "rm"}, "aligned", "language model"),
        (
            {"strategy": "nudging", "aligned": "a", "steer": [{"method": "wsd", "aligned": "a"}]},
            "steer.0.aligned",
            "two parts decide",
        ),
        (
            {"strategy": "re_control", "value": "point", "steer": [{"method": "re_control", "value": "point"}]},
            "steer.0.value",
            "two parts edit",
        ),
        (
            {"strategy": "nudging", "aligned": "a", "steer": [{"method": "genarm", "arm": "a"}]},
            "steer.0.arm",
            "nudging decides",
        ),
        (
            {
                "strategy": "wsd",
                "aligned": "a",
                "steer": [{"method": "control_vector", "vector": "c", "measure_kl": True}],
            },
            "steer.0.measure_kl",
            "wsd decides",
        ),
        ({"strategy": "wsd", "aligned": "a", "steer": [{"method": "candidates", "top_k": 3}]}, "steer.0.top_k", "wsd"),
        (
            {"strategy": "args", "reward": "rm", "steer": [{"method": "vas", "value": "v"}]},
            "steer.0.k",
            "keep_others alike",
        ),
        (
            {
                "strategy": "mod",
                "weights": {"a": 0.5, "base": 0.5},
                "alpha": 1.0,
                "steer": [{"method": "genarm", "arm": "b"}],
            },
            "alpha",
            "cannot be mixed further",
        ),
    ],
)
def test_what_cannot_be_says_where_and_why(decoding: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        compiled(decoding)
    assert caught.value.param == f"decoding.{param}"


def test_a_base_that_counts_twice_is_half_as_warm() -> None:
    """Weights of the base alone, without a lane."""

    def answer(temperature: float, decoding: dict[str, Any] | None) -> str:
        sampling = SamplingParams(temperature=temperature, seed=4, max_tokens=24)
        return Toy(random_table(40)).run([1, 2, 3], sampling, decoding=decoding).choices[0].text

    twice = answer(1.0, {"strategy": "mixture", "weights": {"base": 2.0}})
    assert twice == answer(0.5, None)
    assert twice != answer(1.0, None)
