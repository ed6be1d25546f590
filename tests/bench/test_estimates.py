"""Order statistics of best-of-n against every subset, against the server's own rule, and where they must be exact."""

from fractions import Fraction
from itertools import combinations, permutations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.bench.estimates import chances, curve_settings, expected, order_weights, wins
from trimtab.bench.records import Setting
from trimtab.decoders.kl import win_rate_bound
from trimtab.decoders.select import Argmax
from trimtab.decoders.select.rule import Entry

REWARDS = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0, 3.0]), min_size=1, max_size=7)  # so few that many tie


@given(REWARDS, st.data())
def test_the_mean_of_the_best_is_that_of_all_subsets(rewards: list[float], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(rewards)))
    golds = data.draw(st.lists(st.integers(-9, 9), min_size=len(rewards), max_size=len(rewards)))
    opponent = data.draw(st.sampled_from([-2.0, 0.0, 0.5, 1.0, 3.0]))
    best, gold, won = [], [], []
    for subset in combinations(range(len(rewards)), n):
        top = max(rewards[i] for i in subset)
        tied = [golds[i] for i in subset if rewards[i] == top]
        best.append(top)
        gold.append(sum(tied) / len(tied))
        won.append(1.0 if top > opponent else 0.5 if top == opponent else 0.0)
    chance = chances(rewards, n)
    assert chance.sum() == pytest.approx(1.0)
    assert expected(rewards, chance) == pytest.approx(np.mean(best))
    assert expected(golds, chance) == pytest.approx(np.mean(gold))
    assert expected(wins(rewards, opponent), chance) == pytest.approx(np.mean(won))


def test_ties_go_as_the_server_lets_them_go_on_average_over_the_order_of_draws() -> None:
    rewards, n = [1.0, 3.0, 3.0, 0.0, 3.0], 3
    met = np.zeros(len(rewards))
    for drawn in permutations(range(len(rewards)), n):
        pool = [Entry("", (), rewards[i], {}, 0.0) for i in drawn]
        met[drawn[Argmax().order(pool, 1, np.random.default_rng(0))[0]]] += 1
    assert chances(rewards, n) == pytest.approx(met / met.sum())


@given(REWARDS)
def test_the_best_of_one_is_the_mean_and_of_all_the_greatest(rewards: list[float]) -> None:
    assert expected(rewards, chances(rewards, 1)) == pytest.approx(np.mean(rewards))
    assert expected(rewards, chances(rewards, len(rewards))) == pytest.approx(max(rewards))


@pytest.mark.parametrize(("n", "pool"), [(1, 1), (1, 256), (2, 5), (7, 16), (128, 256), (255, 256), (256, 256)])
def test_weights_are_exact_to_the_last_digits_for_large_pools(n: int, pool: int) -> None:
    exact = [float(Fraction(comb(i - 1, n - 1), comb(pool, n))) for i in range(1, pool + 1)]
    assert order_weights(n, pool) == pytest.approx(exact, rel=1e-12, abs=0.0)
    assert order_weights(n, pool).sum() == pytest.approx(1.0, abs=1e-13)


def test_the_estimate_is_unbiased_and_steadier_than_one_best() -> None:
    random = np.random.default_rng(0)
    pools = random.uniform(size=(4000, 16))
    estimates = np.array([expected(pool, chances(pool, 4)) for pool in pools])
    assert estimates.mean() == pytest.approx(4 / 5, abs=3.5 * estimates.std() / 63)
    assert estimates.std() < 0.6 * pools[:, :4].max(axis=1).std()


@pytest.mark.parametrize("n", [1, 3, 16])
def test_the_win_rate_against_an_independent_draw_meets_its_bound(n: int) -> None:
    random = np.random.default_rng(1)
    pools, opponents = random.normal(size=(4000, 16)), random.normal(size=4000)
    won = [expected(wins(pool, o), chances(pool, n)) for pool, o in zip(pools, opponents, strict=True)]
    assert np.mean(won) == pytest.approx(win_rate_bound(n), abs=3.5 * np.std(won) / 63)


def test_a_missing_reward_loses_and_is_told_only_where_nothing_else_is_left() -> None:
    rewards = [np.nan, 1.0, 2.0]
    pair = chances(rewards, 2)
    assert pair == pytest.approx([0.0, 1 / 3, 2 / 3])
    assert expected(rewards, pair) == pytest.approx(5 / 3)
    assert np.isnan(expected(rewards, chances(rewards, 1)))
    assert np.isnan(wins(rewards, 0.0)).tolist() == [True, False, False]
    assert np.isnan(wins([1.0], np.nan)).all()


@pytest.mark.parametrize("n", [0, 4])
def test_more_than_the_pool_has_and_none_at_all_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"best of {n} cannot be found among 3"):
        chances([1.0, 2.0, 3.0], n)


def test_a_curve_is_timed_at_each_of_its_numbers_but_the_last() -> None:
    decoding = {"strategy": "best_of_n", "n": 8, "reward": "positivity"}
    whole = Setting(name="search", decoding=decoding, strength=8, curve=(1, 4, 8))
    timed = curve_settings(whole)
    assert [each.name for each in timed] == ["search n=1", "search n=4"]
    assert [each.decoding for each in timed] == [{**decoding, "n": 1}, {**decoding, "n": 4}]
    assert [(each.family, each.strength, each.curve) for each in timed] == [("search", 1.0, ()), ("search", 4.0, ())]
    assert curve_settings(whole.model_copy(update={"family": "best"}))[0].family == "best"
    assert curve_settings(whole.model_copy(update={"curve": ()})) == []
