"""Rewards whose weights the prompt decides: exact weights, one reading for a request, and what is refused."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from toy import Toy, random_table

from trimtab.decoders.rewards import Expression
from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.errors import GuideError, InvalidRequest
from trimtab.engine.guides.preference import PreferenceHead
from trimtab.engine.job import Job
from trimtab.engine.results import Failure
from trimtab.engine.sampling import SamplingParams

VOCAB, LENGTH = 40, 6
TABLE = random_table(VOCAB)
SAMPLED = SamplingParams(seed=5, max_tokens=LENGTH)
FIRST, SECOND = [3, 1, 4, 1, 5], [2, 7, 1]
WEIGHED = {"sum": ["small", "large"], "weights": "balance"}
BEST = {"strategy": "best_of_n", "n": 6}


def small(text: str) -> float:
    return -float(sum(map(ord, text)))


def toy(weight: float = 0.0, features: Any = None, *, bias: float = 0.0) -> Toy:
    """A toy with two opposite rewards; `weight` times the prompt's feature speaks for `small`."""
    engine = Toy(TABLE, features=features, rewards={"small": small, "large": lambda text: -small(text)})
    size = VOCAB if features is None else 1
    rows = torch.zeros(2, size)
    rows[0, 0] = weight
    engine.add_preference("balance", PreferenceHead(("small", "large"), rows, torch.tensor([bias, 0.0])))
    return engine


def by_length(prefix: Any) -> np.ndarray:
    """1 at the end of the first prompt, -1 at the end of the second, and 0 elsewhere."""
    known = {tuple(FIRST): 1.0, tuple(SECOND): -1.0}
    return np.array([known.get(tuple(prefix), 0.0)])


def test_the_weights_of_a_sum_come_from_the_end_of_the_prompt() -> None:
    result = toy(2.0, by_length).run(FIRST, SAMPLED, decoding={**BEST, "reward": WEIGHED})
    share = 1.0 / (1.0 + math.exp(-2.0))
    assert result.report["weights"] == {"balance": pytest.approx({"small": share, "large": 1.0 - share}, rel=1e-6)}
    for each in result.candidates:
        assert each.reward == pytest.approx(share * small(each.text) - (1.0 - share) * small(each.text), rel=1e-6)


def test_prompts_of_opposite_weights_choose_opposite_answers() -> None:
    for prompt, pick in ((FIRST, max), (SECOND, min)):
        result = toy(20.0, by_length).run(prompt, SAMPLED, decoding={**BEST, "reward": WEIGHED})
        assert result.choices[0].text == pick((each.text for each in result.candidates), key=small)
    both = toy(20.0, by_length)  # in the same batch
    handles = [both.submit(prompt, SAMPLED, decoding={**BEST, "reward": WEIGHED}) for prompt in (FIRST, SECOND)]
    both.finish()
    for handle, pick in zip(handles, (max, min), strict=True):
        result = both.result(handle)
        assert result.choices[0].text == pick((each.text for each in result.candidates), key=small)


@pytest.mark.parametrize("strategy", ["best_of_n", "cards", "particle_filter", "speculative_rejection"])
def test_even_weights_are_the_mean(strategy: str) -> None:
    """Answers too: reading the prompt's end changes neither its pages nor a random stream."""
    own = {"cards": {"target": 9.0}, "speculative_rejection": {"n": 4, "schedule": [3]}}.get(strategy, {"n": 4})
    decoding = {"strategy": strategy, **own}
    weighed = toy().run(FIRST, SAMPLED, decoding={**decoding, "reward": WEIGHED})
    mean = toy().run(FIRST, SAMPLED, decoding={**decoding, "reward": {"mean": ["small", "large"]}})
    assert weighed.choices == mean.choices
    assert [(each.text, each.reward) for each in weighed.candidates] == [
        (each.text, each.reward) for each in mean.candidates
    ]
    assert weighed.usage.model_tokens["base"] == mean.usage.model_tokens["base"] + 1, "the prompt is read once"


def test_a_terms_own_weight_and_transform_stay() -> None:
    terms = [{"guide": "small", "weight": 3.0, "transform": "clip", "low": -5.0}, "large"]
    value = Expression.model_validate({"sum": terms, "weights": "balance", "weight": 2.0}).values(
        {"small": [-9.0, 1.0], "large": [9.0, -1.0]}, {}, {"balance": {"large": 0.25, "small": 0.75}}
    )
    assert value == pytest.approx([2 * (0.75 * 3 * -5 + 0.25 * 9), 2 * (0.75 * 3 - 0.25)])


def test_the_weights_may_stand_within_a_group() -> None:
    reward = {"min": [WEIGHED, {"guide": "large", "weight": 100.0}]}
    result = toy(bias=3.0).run(FIRST, SAMPLED, decoding={**BEST, "reward": reward})
    share = 1.0 / (1.0 + math.exp(-3.0))
    for each in result.candidates:
        expected = min((2 * share - 1) * small(each.text), -100.0 * small(each.text))
        assert each.reward == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("reward", [WEIGHED, {"guide": "small", "transform": "quantile", "samples": 3}])
def test_what_rewards_are_measured_by_is_known_when_time_is_up(
    reward: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = toy(bias=3.0)
    decoding = {**BEST, "reward": reward, "budget": {"deadline_ms": 3_600_000}}
    handle = engine.submit(FIRST, SAMPLED, decoding=decoding)
    steps = LENGTH + 2 if "samples" in reward else 2
    monkeypatch.setattr(Job, "overspent", property(lambda job: "deadline_ms" if engine.stats.steps >= steps else None))
    engine.finish()
    result = engine.result(handle)
    assert result.stopped_by == "deadline_ms"
    values = {each.text: each.value for each in result.candidates}
    assert values[result.choices[0].text] == max(values.values())
    assert ("weights" in result.report) is ("weights" in reward)


def test_a_comparison_that_time_ends_leaves_an_empty_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = toy()
    reward = {"guide": "small", "transform": "quantile", "samples": 3}
    decoding = {**BEST, "reward": reward, "budget": {"deadline_ms": 3_600_000}}
    handle = engine.submit(FIRST, SAMPLED, decoding=decoding)
    monkeypatch.setattr(Job, "overspent", property(lambda job: "deadline_ms" if engine.stats.steps >= 2 else None))
    engine.finish()
    assert engine.result(handle).choices[0].text == ""


def test_weights_that_are_no_numbers_fail_their_own_request() -> None:
    engine = toy(bias=math.nan)
    broken = engine.submit(FIRST, SAMPLED, decoding={**BEST, "reward": WEIGHED})
    other = engine.submit(FIRST, SAMPLED, decoding={**BEST, "reward": "small"})
    engine.finish()
    end = engine.end(broken)
    assert isinstance(end, Failure)
    assert isinstance(end.error, GuideError)
    assert "'balance': gave a weight that is not finite" in str(end.error)
    assert engine.stats.guide_errors == {"balance": 1}
    assert engine.result(other).choices[0].text


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ({"sum": ["small", "large"], "weights": "none"}, "no guide is named 'none'; this needs preference weights"),
        ({"sum": ["small", "large"], "weights": "head"}, "guide 'head' has the role 'value'; this needs"),
        ({"sum": ["small"], "weights": "balance"}, "weighs the rewards small, large and the sum has small: give it"),
        ({"min": [WEIGHED, {"sum": ["large"], "weights": "balance"}]}, "and the sum has large: give it one term"),
    ],
)
def test_weights_that_do_not_fit_are_refused_at_admission(reward: dict[str, Any], message: str) -> None:
    engine = toy()
    engine.add_head("head")
    with pytest.raises(InvalidRequest, match=message) as caught:
        engine.submit(FIRST, SAMPLED, decoding={**BEST, "reward": reward})
    assert caught.value.param == "decoding.reward"


@pytest.mark.parametrize(
    "reward",
    [
        {"mean": ["small", "large"], "weights": "balance"},
        {"guide": "small", "weights": "balance"},
        {"sum": ["small", {"sum": ["large"]}], "weights": "balance"},
        {"sum": ["small", "small"], "weights": "balance"},
    ],
)
def test_weights_are_for_sums_of_different_guides(reward: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="weights are for the terms of a sum, each of which is another guide"):
        DecodingSpec.parse({**BEST, "reward": reward})


def test_an_expression_with_weights_is_echoed_as_it_was() -> None:
    spec = DecodingSpec.parse({**BEST, "reward": WEIGHED})
    assert spec.dump()["reward"] == WEIGHED
    assert DecodingSpec.parse(spec.dump()) == spec
