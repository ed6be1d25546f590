"""Bounds and estimates of KL against laws that are enumerated, or written down with fifty digits."""

import math
from decimal import Decimal, localcontext
from itertools import pairwise, product

import numpy as np
import pytest

from trimtab.decoders.kl import best_of_n_bound, best_of_n_estimate, blockwise_bound, largest_n, win_rate_bound

Array = np.ndarray


def best_of(n: int, base: Array) -> Array:
    """Law of the best of n draws, where rewards rise with the index."""
    below = np.concatenate([[0.0], np.cumsum(base)])
    return below[1:] ** n - below[:-1] ** n


def divergence(law: Array, base: Array) -> float:
    met = law > 0
    return float((law[met] * np.log(law[met] / base[met])).sum())


@pytest.mark.parametrize("n", [1, 2, 5, 64])
def test_the_bound_is_what_rare_answers_come_to(n: int) -> None:
    exact = [divergence(best_of(n, np.full(m, 1 / m)), np.full(m, 1 / m)) for m in (10, 1000, 100_000)]
    assert all(kl <= best_of_n_bound(n) + 1e-9 for kl in exact)
    assert exact[-1] == pytest.approx(best_of_n_bound(n), abs=1e-3)


def test_no_rule_that_picks_one_of_n_draws_exceeds_the_bound() -> None:
    """Rules drawn at random, of which some know the best answer, on an enumerated space of draws."""
    generator = np.random.default_rng(0)
    n, size = 3, 6
    bound, highest = best_of_n_bound(n), 0.0
    for sharpness in (0.0, 1.0, 10.0, 100.0) * 25:
        base = generator.dirichlet(np.ones(size))
        taste = generator.normal(size=size)
        law = np.zeros(size)
        for draws in product(range(size), repeat=n):
            weights = np.exp(sharpness * (taste[list(draws)] - taste[list(draws)].max())) * generator.random(n)
            np.add.at(law, list(draws), base[list(draws)].prod() * weights / weights.sum())
        assert law.sum() == pytest.approx(1)
        highest = max(highest, divergence(law, base))
    assert 0.5 * bound < highest <= bound


@pytest.mark.parametrize("n", [1, 2, 8, 200])
@pytest.mark.parametrize("share", [0.001, 0.05, 0.4, 0.9])
def test_the_estimate_is_exact_for_a_best_answer_above_rare_ones(n: int, share: float) -> None:
    rest = 400_000
    base = np.concatenate([np.full(rest, (1 - share) / rest), [share]])
    exact = divergence(best_of(n, base), base)
    assert best_of_n_estimate(n, math.log(share)) == pytest.approx(exact, abs=2e-3)


@pytest.mark.parametrize("n", [2, 8, 256])
@pytest.mark.parametrize(
    "logprob", [-1e-17, -1e-12, -1e-3, -0.69, -0.7, -5.0, -34.0, -40.0, -300.0, -690.0, -700.0, -744.0]
)
def test_the_estimate_keeps_its_digits(n: int, logprob: float) -> None:
    """The formula as it stands, with enough digits to see 1 - e."""
    with localcontext(prec=700):
        e = Decimal(logprob).exp()
        missed = (1 - e) ** n
        far = Decimal(n).ln() + (n - 1) * (1 - e).ln() - Decimal(n - 1) / n
        expected = missed * far + (1 - missed) * ((1 - missed) / e).ln()
    assert best_of_n_estimate(n, logprob) == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize("n", [1, 2, 8, 256])
def test_the_estimate_runs_from_the_bound_down_to_0(n: int) -> None:
    assert best_of_n_estimate(n, 0.0) == best_of_n_estimate(n, 1e-9) == 0.0
    assert best_of_n_estimate(n, -1e9) == best_of_n_estimate(n, -math.inf) == best_of_n_bound(n)
    path = [best_of_n_estimate(n, logprob) for logprob in -np.geomspace(1e-15, 1e4, 2000)]
    assert all(later >= earlier - 1e-12 for earlier, later in pairwise(path))
    assert path[0] == pytest.approx(0.0, abs=1e-12)
    if n == 1:
        assert max(path) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("max_kl", [1e-300, 0.19, 0.2, 1.0, 4.5, 20.0])
def test_the_largest_n_is_the_last_whose_bound_fits(max_kl: float) -> None:
    n = largest_n(max_kl)
    assert best_of_n_bound(n) <= max_kl < best_of_n_bound(n + 1)


def test_any_n_fits_a_budget_without_end() -> None:
    assert largest_n(best_of_n_bound(7)) == 7
    assert largest_n(1e308) >= 2**31 - 1


def test_the_best_of_n_wins_as_often_as_its_bound_where_no_rewards_tie() -> None:
    base = np.full(20_000, 1 / 20_000)
    for n in (1, 4, 9):
        law = best_of(n, base)
        wins = float((law * (np.cumsum(base) - base)).sum())
        assert wins <= win_rate_bound(n)
        assert wins == pytest.approx(win_rate_bound(n), abs=1e-3)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_blocks_that_are_each_the_best_of_k_stay_under_the_sum_of_bounds(k: int) -> None:
    """Two blocks of two tokens; the law of the second depends on the first."""
    generator = np.random.default_rng(k)
    first = generator.dirichlet(np.ones(9))
    total = divergence(best_of(k, first), first)
    for weight in best_of(k, first):
        second = generator.dirichlet(np.ones(9))
        total += weight * divergence(best_of(k, second), second)
    assert total <= blockwise_bound(k, tokens=4, block=2) + 1e-12
    assert blockwise_bound(k, 4, 2) == blockwise_bound(k, 3, 2) == 2 * best_of_n_bound(k)
    assert blockwise_bound(k, 0, 2) == 0.0
