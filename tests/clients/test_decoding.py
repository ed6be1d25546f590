"""The client's decoding objects against the registry that they were written from."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from trimtab.clients import decoding
from trimtab.clients.decoding import (
    Abstain,
    BestOfN,
    Budget,
    Expression,
    GenArm,
    Persona,
    PromptPart,
    Rule,
    Sample,
    Search,
    Soft,
    Steer,
    Strategy,
)
from trimtab.decoders.registry import strategies
from trimtab.decoders.spec import DecodingSpec
from trimtab.server import client_types

FOLDER = Path(decoding.__file__).parent
REQUIRED = {str: "positivity", float: 0.5, decoding.Reward: "positivity"}
OBJECTS: dict[tuple[str, str], Any] = {
    ("mixture", "weights"): {"base": 1.0},
    ("mod", "weights"): {"base": 1.0},
    ("rps", "preference"): {"positivity": 1.0, "helpful": 0.5},
    ("panacea", "preference"): {"positivity": 1.0},
    ("pluralism", "mode"): "distributional",
    ("pluralism", "communities"): {"a": {"system": "A."}, "b": {"system": "B."}},
}
BESIDE: dict[str, dict[str, Any]] = {
    "deal": {"reward": "positivity"},
    "refine": {"reward": "positivity", "n": 2},
    "genarm": {"arm": "polite"},
    "cbs": {"reward": "positivity", "tuned": "polite"},
    "candidates": {"top_k": 5},
    "treebon": {"value": "positivity"},
    "persona": {"text": "Short."},
}
"""what the strategies cannot do without, though none of these fields alone is required"""


def classes(base: type) -> list[type]:
    """The generated classes of a kind."""
    every = [getattr(decoding, name) for name in decoding.__all__]
    return [each for each in every if isinstance(each, type) and issubclass(each, base) and "name" in vars(each)]


def least(cls: type[Strategy]) -> Strategy:
    """An object with what its class requires and nothing else."""
    missing = [each for each in dataclasses.fields(cls) if each.default is dataclasses.MISSING]
    values = {each.name: OBJECTS.get((cls.name, each.name)) or REQUIRED[each.type.__origin__] for each in missing}
    left = {name: OBJECTS.get((cls.name, name), "positivity") for name in left_to_preferences(cls)}
    return cls(**{**values, **left, **BESIDE.get(cls.name, {})})


def left_to_preferences(cls: type[Strategy]) -> set[str]:
    """What the server needs, of the request's preference if not of the strategy."""
    params = strategies()[cls.name].params
    return {name for name, each in params.model_fields.items() if each.is_required() and name in params.preferable}


def test_the_modules_are_what_the_generator_writes_now() -> None:
    for name, text in client_types.modules().items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, "run `make docs`"


def test_every_strategy_has_a_class_of_its_kind() -> None:
    assert {each.name for each in classes(Search)} == {s.name for s in strategies().values() if s.kind == "search"}
    assert {each.name for each in classes(Steer)} == {s.name for s in strategies().values() if s.kind == "steer"}
    assert {each.name for each in classes(PromptPart)} == {s.name for s in strategies().values() if s.kind == "prompt"}


@pytest.mark.parametrize("cls", classes(Strategy), ids=lambda cls: cls.name)
def test_every_strategy_is_accepted_with_what_it_requires(cls: type[Strategy]) -> None:
    spec = DecodingSpec.parse(least(cls).to_dict())
    assert spec.strategy == cls.name


@pytest.mark.parametrize("cls", classes(Steer), ids=lambda cls: cls.name)
def test_every_steering_strategy_is_accepted_as_a_part(cls: type[Steer]) -> None:
    part = least(cls)
    assert isinstance(part, Steer)
    ((method, _),) = DecodingSpec.parse(Sample(steer=[part]).to_dict()).listed
    assert method == cls.name


@pytest.mark.parametrize("cls", classes(PromptPart), ids=lambda cls: cls.name)
def test_every_prompt_strategy_is_accepted_as_a_part(cls: type[PromptPart]) -> None:
    part = least(cls)
    assert isinstance(part, PromptPart)
    ((method, _),) = DecodingSpec.parse(Sample(prompt=[part]).to_dict()).prompts
    assert method == cls.name


@pytest.mark.parametrize("cls", classes(Rule), ids=lambda cls: cls.name)
def test_every_rule_is_accepted(cls: type[Rule]) -> None:
    rule = Abstain(tau=0.5) if cls is Abstain else cls()
    spec = DecodingSpec.parse(BestOfN(reward="positivity", select=rule).to_dict())
    assert spec.select is not None
    assert spec.select.model_dump()["rule"] == cls.name


@pytest.mark.parametrize("cls", classes(Strategy), ids=lambda cls: cls.name)
def test_fields_are_the_parameters_and_left_out_they_are_the_servers(cls: type[Strategy]) -> None:
    params = strategies()[cls.name].params
    named = set(params.model_json_schema()["properties"])
    assert {each.name for each in dataclasses.fields(cls)} == named | {
        each.name for each in dataclasses.fields(Strategy)
    }
    assert cls.__annotations__.keys() - {"name"} == named
    required = {each.name for each in dataclasses.fields(cls) if each.default is dataclasses.MISSING}
    required |= left_to_preferences(cls)
    assert required == {name for name, each in params.model_fields.items() if each.is_required()}
    assert least(cls).to_dict().keys() - {"strategy"} == required | BESIDE.get(cls.name, {}).keys()


def test_everything_at_once_goes_over_the_wire_as_it_is_written_by_hand() -> None:
    told = BestOfN(
        n=4,
        reward=Expression(sum=["helpful", Expression(guide="harmless", weight=2.0)]),
        prompt=[Persona(text="Short."), {"method": "norms"}],
        steer=[GenArm(arms={"polite": 0.5}), {"method": "control_vector", "vector": "calm"}],
        select=Abstain(tau=0.5, then=Soft(temperature=2.0)),
        budget=Budget(deadline_ms=4000),
        trace="tokens",
    ).to_dict()
    assert told == {
        "strategy": "best_of_n",
        "n": 4,
        "reward": {"sum": ["helpful", {"guide": "harmless", "weight": 2.0}]},
        "prompt": [{"method": "persona", "text": "Short."}, {"method": "norms"}],
        "steer": [
            {"method": "genarm", "arms": {"polite": 0.5}},
            {"method": "control_vector", "vector": "calm"},
        ],
        "select": {"rule": "abstain", "tau": 0.5, "then": {"rule": "soft", "temperature": 2.0}},
        "budget": {"deadline_ms": 4000},
        "trace": "tokens",
    }
    DecodingSpec.parse(told)


def test_a_part_cannot_carry_what_belongs_to_the_request() -> None:
    with pytest.raises(ValueError, match="budget of a part"):
        Sample(steer=[GenArm(arm="polite", budget=Budget(max_kl=1.0))]).to_dict()
    with pytest.raises(TypeError, match="nn"):
        BestOfN(nn=4, reward="positivity")  # type: ignore[call-arg]
