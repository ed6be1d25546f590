"""Intervals of paired gains: exact where there is no noise, near the normal one where there is a lot of it."""

import numpy as np
import pytest
from bootstrap import paired_gain


def test_the_mean_and_the_share_are_those_of_the_prompts() -> None:
    plain = [[1.0, 1.0], [2.0, 2.0], [0.0, 0.0], [5.0, 5.0]]
    treated = [[2.0, 4.0], [1.0, 4.0], [0.0, -1.0], [5.0, 5.0]]
    gain = paired_gain(treated, plain)  # per prompt: 2, 0.5, -0.5, 0
    assert gain.mean == pytest.approx(0.5)
    assert gain.improved == 0.5
    assert gain.low <= gain.mean <= gain.high


def test_a_method_that_equals_plain_has_an_interval_that_holds_zero() -> None:
    scores = np.random.default_rng(1).normal(size=(30, 2))
    gain = paired_gain(scores, scores)
    assert (gain.low, gain.mean, gain.high, gain.improved) == (0.0, 0.0, 0.0, 0.0)
    assert not gain.above_zero


def test_the_same_gain_on_every_prompt_is_certain() -> None:
    scores = np.random.default_rng(1).normal(size=(30, 2))
    gain = paired_gain(scores + 0.25, scores)
    assert (gain.low, gain.high) == pytest.approx((0.25, 0.25))
    assert gain.above_zero


def test_the_interval_is_the_normal_one_over_many_prompts() -> None:
    differences = np.random.default_rng(2).normal(0.1, 1.0, size=(400, 1))
    gain = paired_gain(differences, np.zeros_like(differences))
    half = 1.96 * differences.std() / 20
    assert gain.low == pytest.approx(differences.mean() - half, abs=0.01)
    assert gain.high == pytest.approx(differences.mean() + half, abs=0.01)


def test_more_seeds_of_the_same_prompts_are_not_more_prompts() -> None:
    differences = np.random.default_rng(3).normal(size=(20, 1))
    once = paired_gain(differences, np.zeros((20, 1)))
    often = paired_gain(np.repeat(differences, 9, axis=1), np.zeros((20, 9)))
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    draws = np.random.default_rng(4).exponential(size=(200, 60, 1)) - 1.0
    gains = [paired_gain(each, np.zeros_like(each), resamples=500) for each in draws]
    held = sum(gain.low <= 0.0 <= gain.high for gain in gains)
    assert 175 <= held <= 197  # 190 would be 95 %; a skew of this size costs a few


def test_the_seed_decides() -> None:
    differences = np.random.default_rng(5).normal(size=(10, 1))
    zeros = np.zeros_like(differences)
    assert paired_gain(differences, zeros, seed=1) == paired_gain(differences, zeros, seed=1)
    assert paired_gain(differences, zeros, seed=1) != paired_gain(differences, zeros, seed=2)


@pytest.mark.parametrize("shape", [(3, 2), (4,), (4, 1)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="prompts, seeds"):
        paired_gain(np.zeros(shape), np.zeros((4, 2)))
