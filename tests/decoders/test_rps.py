"""Robust preference selection: the directions and their law, what each is told, and which answer is chosen."""

import math
from typing import Any

import numpy as np
import pytest
from toy import Toy, random_table

from trimtab.decoders.search.rps import nearby
from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.results import Failure, Result
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.vocabulary import Message

VOCAB, PROMPT = 6, [1, 5, 2]
TABLE = random_table(VOCAB)
ASKED = (Message(role="user", content="why?"),)
REWARDS = {"kind": lambda text: float(text.count("!")), "brief": lambda text: -float(text.count('"'))}


def toy() -> Toy:
    return Toy(TABLE, rewards=REWARDS)


def run(messages: tuple[Message, ...] = ASKED, n: int = 1, seed: int = 3, **decoding: Any) -> Result:
    written = {"strategy": "rps", "preference": {"kind": 3.0, "brief": 4.0}, **decoding}
    sampling = SamplingParams(seed=seed, max_tokens=5)
    return toy().run(PROMPT, sampling, n=n, decoding=written, messages=messages)


def prompts(monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[str]:
    """The conversations that the base reads, as text."""
    engine, seen = toy(), []
    encode = engine.vocabulary.encode

    def noting(text: str, **options: Any) -> list[int]:
        seen.append(text)
        return encode(text, **options)

    monkeypatch.setattr(engine.vocabulary, "encode", noting)
    options = {"messages": ASKED, **options}
    decoding = {"strategy": "rps", "preference": {"kind": 3.0, "brief": 4.0}, **options.pop("decoding", {})}
    engine.run(PROMPT, SamplingParams(seed=1, max_tokens=4), decoding=decoding, **options)
    return seen


def unit(*weights: float) -> np.ndarray:
    return np.array(weights) / np.linalg.norm(weights)


@pytest.mark.parametrize("weights", [(3.0, 4.0), (1.0, -2.0, 0.5), (1.0, 0.0, 0.0, 0.0), (-1.0,) * 8])
@pytest.mark.parametrize("degrees", [0.0, 1e-6, 30.0, 90.0])
def test_directions_are_unit_vectors_within_the_angle(weights: tuple[float, ...], degrees: float) -> None:
    direction = unit(*weights)
    found = nearby(direction, math.radians(degrees), 200, np.random.default_rng(1))
    assert len(found) == 200
    assert np.linalg.norm(found, axis=1) == pytest.approx(1.0, abs=1e-12)
    # 1 - cos of the angle, by the distance, which keeps its digits near 0
    apart = np.square(found - direction).sum(1) / 2
    assert apart.max() <= 2 * math.sin(math.radians(degrees) / 2) ** 2 + 1e-12
    if min(weights) >= 0:
        assert found.min() >= 0


def test_angle_0_is_the_direction_itself() -> None:
    direction = unit(3.0, 4.0, 1.0)
    assert (nearby(direction, 0.0, 5, np.random.default_rng(0)) == direction).all()


@pytest.mark.parametrize(("dimension", "degrees"), [(2, 30.0), (3, 30.0), (3, 90.0), (4, 60.0), (8, 80.0)])
def test_directions_are_uniform_on_the_cap(dimension: int, degrees: float) -> None:
    """Kolmogorov-Smirnov distances of the angle, whose distribution function is the integral of sin^(d-2), and of the
    first entry aside from the axis, against points of the sphere that fell into the cap."""
    axis, angle, count = -unit(*range(1, dimension + 1)), math.radians(degrees), 4000
    found = nearby(axis, angle, count, np.random.default_rng(7))
    angles = np.sort(np.arccos(np.clip(found @ axis, -1, 1)))
    grid = np.linspace(0, angle, 20_001)
    density = np.sin(grid) ** (dimension - 2)
    law = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    distance = np.abs(np.interp(angles, grid, law / law[-1]) - (np.arange(count) + 0.5) / count).max()
    assert distance < 1.95 / math.sqrt(count), "the angle"  # one in a thousand
    sphere = np.random.default_rng(8).normal(size=(400_000, dimension))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    expected = np.sort(sphere[sphere @ axis >= math.cos(angle)][:, 0])
    below = np.searchsorted(expected, np.sort(found[:, 0])) / len(expected)
    distance = np.abs(below - (np.arange(count) + 0.5) / count).max()
    assert distance < 1.95 * math.sqrt(1 / count + 1 / len(expected)), "the first entry"


def test_cut_at_the_orthant_the_law_stays_uniform() -> None:
    """In the plane, 10 degrees off an axis and 30 wide: uniform on 40 degrees, and not folded at the axis."""
    direction = np.array([math.cos(math.radians(10)), math.sin(math.radians(10))])
    found = nearby(direction, math.radians(30), 4000, np.random.default_rng(5))
    angles = np.sort(np.degrees(np.arctan2(found[:, 1], found[:, 0])))
    assert np.abs(angles / 40 - (np.arange(4000) + 0.5) / 4000).max() < 1.95 / math.sqrt(4000)


def test_the_users_own_preference_chooses() -> None:
    for seed in range(10):
        result = run(seed=seed)
        values = [0.6 * REWARDS["kind"](each.text) + 0.8 * REWARDS["brief"](each.text) for each in result.candidates]
        assert [each.reward for each in result.candidates] == pytest.approx(values)
        assert result.report["rewards"] == pytest.approx(values)
        best = values.index(max(values))
        assert result.choices[0].text == result.candidates[best].text
        assert result.candidates[best].choice == 0
    assert result.report["attributes"] == ["kind", "brief"]
    assert np.linalg.norm(result.report["directions"], axis=1) == pytest.approx([1.0] * 5)


def test_only_the_ratios_of_the_weights_count() -> None:
    small, large = (run(preference={"kind": 3 * scale, "brief": 4 * scale}) for scale in (1e-200, 1000.0))
    assert small.candidates == large.candidates
    assert small.report == large.report
    other = run(preference={"kind": 4.0, "brief": 3.0})
    assert other.report["directions"] != large.report["directions"]


def test_every_answer_reads_its_own_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    found = prompts(monkeypatch, decoding={"angle": 20.0, "directions": 4})
    assert len(set(found)) == 4
    assert all(each.startswith("<system>Preferences for the answer: kind ") for each in found)
    assert all(each.endswith(" %.\n<user>why?\n<assistant>") for each in found)


def test_with_angle_0_every_answer_reads_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found = prompts(monkeypatch, decoding={"angle": 0.0, "directions": 3})
    assert found == ["<system>Preferences for the answer: kind 60 %, brief 80 %.\n<user>why?\n<assistant>"] * 3
    result = run(angle=0.0, directions=3)
    assert result.report["directions"] == [pytest.approx([0.6, 0.8])] * 3
    assert len({each.text for each in result.candidates}) > 1, "answers are independent draws"


def test_the_direction_joins_the_requests_own_system_message(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = (Message(role="system", content="Be polite."), *ASKED)
    found = prompts(monkeypatch, messages=messages, decoding={"angle": 0.0, "preference": {"kind": 1, "brief": -0.001}})
    text = "<system>Be polite.\n\nPreferences for the answer: kind 100 %, brief 0 %.\n<user>why?\n<assistant>"
    assert found == [text] * 5


def test_several_choices_are_the_best_in_order() -> None:
    result = run(n=3)
    best = sorted((each.reward for each in result.candidates), reverse=True)[:3]
    chosen = sorted((each for each in result.candidates if each.choice is not None), key=lambda each: each.choice or 0)
    assert [each.reward for each in chosen] == best


def test_an_answer_that_a_guide_fails_on_loses() -> None:
    calls = iter([math.nan, 1.0, math.nan, 2.0, math.nan])
    engine = Toy(TABLE, rewards={"kind": lambda text: next(calls), "brief": lambda text: 0.0})
    decoding = {"strategy": "rps", "preference": {"kind": 1.0, "brief": 1.0}}
    result = engine.run(PROMPT, SamplingParams(seed=1, max_tokens=4), decoding=decoding, messages=ASKED)
    assert result.report["rewards"] == [None, pytest.approx(0.5**0.5), None, pytest.approx(2 * 0.5**0.5), None]
    assert result.candidates[3].choice == 0


def test_nothing_but_nan_is_an_error_that_names_the_guides() -> None:
    engine = Toy(TABLE, rewards={"kind": lambda text: math.nan, "brief": lambda text: 0.0})
    decoding = {"strategy": "rps", "preference": {"kind": 1.0, "brief": 1.0}}
    handle = engine.submit(PROMPT, SamplingParams(seed=1, max_tokens=4), decoding=decoding, messages=ASKED)
    engine.finish()
    end = engine.end(handle)
    assert isinstance(end, Failure)
    assert "kind" in str(end.error)


@pytest.mark.parametrize(
    ("parameters", "param", "words"),
    [
        ({}, "decoding.preference", "required"),
        ({"preference": {"kind": 1.0}}, "decoding.preference", "at least 2"),
        ({"preference": {"kind": 0.0, "brief": 0.0}}, "decoding.preference", "zeros has no direction"),
        ({"preference": {"kind": 1.0, "brief": "x"}}, "decoding.preference.brief", "valid number"),
        ({"preference": {"kind": 1.0, "brief": 1.0}, "angle": 91.0}, "decoding.angle", "less than or equal to 90"),
        ({"preference": {"kind": 1.0, "brief": 1.0}, "directions": 0}, "decoding.directions", "greater than or equal"),
    ],
)
def test_a_wrong_parameter_names_the_key_and_the_fix(parameters: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        DecodingSpec.parse({"strategy": "rps", **parameters})
    assert caught.value.param == param


def test_attributes_are_rewards_and_choices_are_directions() -> None:
    spec = DecodingSpec.parse({"strategy": "rps", "preference": {"kind": 1, "brieff": -2.0}})
    with pytest.raises(InvalidRequest, match="'brieff': did you mean 'brief'") as caught:
        spec.check(choices=1, rewards=REWARDS)
    assert caught.value.param == "decoding.preference"
    spec = DecodingSpec.parse({"strategy": "rps", "preference": {"kind": 1, "brief": -2.0}})
    spec.check(choices=5, rewards=REWARDS)
    with pytest.raises(InvalidRequest, match="directions=5"):
        spec.check(choices=6, rewards=REWARDS)
    assert spec.dump() == {
        "strategy": "rps",
        "preference": {"kind": 1.0, "brief": -2.0},
        "rewards": None,
        "directions": 5,
        "angle": 30.0,
    }
