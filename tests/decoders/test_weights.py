"""Draws from log weights against exact values in float64."""

from collections import Counter
from itertools import permutations
from math import exp, inf, log, nan

import numpy as np
import pytest

from trimtab.decoders.weights import draw, effective_sample_size, log_mean_exp, softmax, systematic


@pytest.mark.parametrize(
    ("logits", "probabilities"),
    [
        ([0.0, log(3.0)], [0.25, 0.75]),
        ([1e300, 1e300, -1e300], [0.5, 0.5, 0.0]),
        ([nan, 0.0, -inf], [0.0, 1.0, 0.0]),
        ([inf, 5.0, inf], [0.5, 0.0, 0.5]),
        ([-inf, nan], [0.5, 0.5]),
    ],
)
def test_softmax(logits: list[float], probabilities: list[float]) -> None:
    assert softmax(logits) == pytest.approx(probabilities, abs=0)


def test_log_mean_exp_is_the_mean_and_survives_large_logits() -> None:
    assert log_mean_exp([log(1.0), log(2.0), log(6.0)]) == pytest.approx(log(3.0))
    assert log_mean_exp([log(1.0), log(5.0)], [3, 1]) == pytest.approx(log(2.0))
    assert log_mean_exp([1e5, 1e5 + log(3.0)]) == pytest.approx(1e5 + log(2.0), abs=1e-9)
    assert log_mean_exp([0.0, -inf, nan, -inf]) == pytest.approx(-log(4.0))
    assert log_mean_exp([-inf, nan]) == -inf


def test_draw_takes_one_after_the_other_from_the_softmax_of_what_is_left() -> None:
    weights, draws = [0.5, 0.3, 0.2], 20_000
    random = np.random.default_rng(1)
    counts = Counter(tuple(draw([log(w) for w in weights], random, 2)) for _ in range(draws))
    for first, second in permutations(range(3), 2):
        p = weights[first] * weights[second] / (1 - weights[first])
        assert counts[first, second] / draws == pytest.approx(p, abs=4.5 * (p * (1 - p) / draws) ** 0.5)


def test_draw_leaves_what_has_no_weight_for_last_and_draws_among_equals() -> None:
    random = np.random.default_rng(2)
    for _ in range(50):
        order = draw([-inf, 0.0, nan, -700.0, inf, inf], random, 6)
        assert set(order[:2]) == {4, 5}
        assert set(order[2:4]) == {1, 3}
    assert len(draw([0.0, 0.0], random, 5)) == 2
    for logits in ([-inf] * 3, [inf] * 3):
        assert {draw(logits, random)[0] for _ in range(60)} == {0, 1, 2}


def test_effective_sample_size() -> None:
    assert effective_sample_size([3.0] * 5) == pytest.approx(5)
    assert effective_sample_size([0.0, -inf, nan]) == 1
    assert effective_sample_size([log(1.0), log(2.0), log(3.0)]) == pytest.approx(36 / 14)


def test_systematic_resampling_copies_in_proportion() -> None:
    """Always floor or ceil of N w copies, and N w on average."""
    weights = np.array([0.02, 0.55, 0.0, 0.13, 0.3])
    random = np.random.default_rng(3)
    with np.errstate(divide="ignore"):
        logits = list(np.log(weights))
    drawn = [systematic(logits, random) for _ in range(4000)]
    copies = np.array([np.bincount(each, minlength=5) for each in drawn])
    assert all(each == sorted(each) for each in drawn)
    assert (np.abs(copies - 5 * weights) < 1).all()
    assert copies.mean(axis=0) == pytest.approx(5 * weights, abs=0.03)


class Uniform:
    """A generator that draws one number for ever."""

    def __init__(self, number: float) -> None:
        self.number = number

    def random(self) -> float:
        return self.number


@pytest.mark.parametrize("number", [0.0, 0.5, float(np.nextafter(1.0, 0.0))])
def test_systematic_resampling_keeps_equal_particles_and_drops_worthless_ones_at_the_edges(number: float) -> None:
    random: np.random.Generator = Uniform(number)  # type: ignore[assignment]
    for count in range(1, 40):
        if number == 0.5:  # at the edges, rounding may move a pointer across a bound
            assert systematic([0.7] * count, random) == list(range(count))
        middle = systematic([-inf, *[0.1] * count, nan, -inf], random)
        assert set(middle) <= set(range(1, count + 1))


def test_everything_lost_resamples_everyone_alike() -> None:
    assert systematic([-inf, -inf, nan], np.random.default_rng(0)) == [0, 1, 2]


def test_a_shift_of_the_logits_changes_nothing() -> None:
    logits = [0.3, -1.2, 2.0, 0.0]
    for shift in (-1e3, 1e3):
        moved = [each + shift for each in logits]
        assert softmax(moved) == pytest.approx(softmax(logits))
        assert systematic(moved, np.random.default_rng(5)) == systematic(logits, np.random.default_rng(5))
        assert draw(moved, np.random.default_rng(5), 4) == draw(logits, np.random.default_rng(5), 4)
        assert exp(log_mean_exp(moved) - shift) == pytest.approx(exp(log_mean_exp(logits)))
