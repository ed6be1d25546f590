"""Selection rules on small pools: exact orders, exact laws, and the optimisation problem that chi2 solves."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from trimtab.decoders.select import Entry, Rule, parse_rule
from trimtab.decoders.select.by_reward import chi2_weights
from trimtab.decoders.similarity import common_subsequences, common_words, similarities, words_of
from trimtab.engine.errors import InvalidRequest

NAN, INF = math.nan, math.inf


def pool(
    rewards: Sequence[float | None],
    texts: Sequence[str] | None = None,
    logprobs: Sequence[float] | None = None,
    raw: Sequence[Mapping[str, float]] | None = None,
) -> list[Entry]:
    return [
        Entry(
            text=texts[i] if texts else f"answer {i}",
            tokens=(i,),
            reward=reward,
            rewards=raw[i] if raw else {},
            logprob=logprobs[i] if logprobs else 0.0,
        )
        for i, reward in enumerate(rewards)
    ]


def order(rule: object, entries: Sequence[Entry], count: int | None = None, seed: int = 0) -> list[int]:
    return parse_rule(rule).order(entries, len(entries) if count is None else count, np.random.default_rng(seed))


def law(rule: object, entries: Sequence[Entry], draws: int = 10_000) -> np.ndarray:
    """How often each entry is the first choice."""
    parsed, random = parse_rule(rule), np.random.default_rng(1)
    counts = Counter(parsed.order(entries, 1, random)[0] for _ in range(draws))
    return np.array([counts[i] / draws for i in range(len(entries))])


def test_argmax_puts_ties_in_order_and_failures_last() -> None:
    assert order("argmax", pool([1.0, NAN, 3.0, None, 3.0, -INF])) == [2, 4, 0, 5, 1, 3]
    assert order("argmax", pool([1.0, 3.0, 2.0]), count=2) == [1, 2]
    assert order("argmax", pool([1.0]), count=3) == [0]


SCALED = {"soft": "temperature", "rbon": "alpha", "chi2": "beta"}


@pytest.mark.parametrize("name", SCALED)
def test_no_regularisation_is_argmax(name: str) -> None:
    entries = pool([1.0, NAN, 3.0, 3.0, -INF], logprobs=[0.0, 0.0, -INF, 0.0, 0.0])
    for seed in range(20):
        assert order({"rule": name, SCALED[name]: 0.0}, entries, seed=seed) == [2, 3, 0, 4, 1]


def test_soft_follows_the_tilted_law() -> None:
    """P(i) ~ exp(r_i / lambda), whatever is added to all rewards; failed answers are never drawn."""
    rewards = [0.3, NAN, -0.5, 1.1, None, -INF]
    expected = np.exp(np.array([0.3, -INF, -0.5, 1.1, -INF, -INF]) / 0.7)
    expected /= expected.sum()
    for shift in (0.0, 1000.0):
        entries = pool([None if r is None else r + shift for r in rewards])
        found = law({"rule": "soft", "temperature": 0.7}, entries)
        distance = 0.5 * np.abs(found - expected).sum()
        assert distance < 0.02, f"total variation {distance:.4f}"
        assert found[[1, 4, 5]].sum() == 0.0


def test_soft_draws_further_choices_from_what_is_left() -> None:
    """The law of ordered pairs without replacement: p_i p_j / (1 - p_i)."""
    entries = pool([0.0, 1.0, 2.0])
    p = np.exp([0.0, 1.0, 2.0]) / np.exp([0.0, 1.0, 2.0]).sum()
    rule, random, draws = parse_rule("soft"), np.random.default_rng(3), 10_000
    pairs = Counter(tuple(rule.order(entries, 2, random)) for _ in range(draws))
    distance = 0.5 * sum(
        abs(pairs[i, j] / draws - p[i] * p[j] / (1 - p[i])) for i in range(3) for j in range(3) if i != j
    )
    assert distance < 0.02, f"total variation {distance:.4f}"


def test_soft_at_the_ends_of_its_range() -> None:
    assert order({"rule": "soft", "temperature": 1e-300}, pool([0.0, 1e300, -1e300]), count=1) == [1]
    assert order("soft", pool([0.0, INF, 5.0]), count=1) == [1]
    uniform = law({"rule": "soft", "temperature": 1e6}, pool([0.0, 1.0, 2.0, 3.0]))
    assert 0.5 * np.abs(uniform - 0.25).sum() < 0.02


def test_poisson_is_the_best_of_a_random_number() -> None:
    """With rewards in rising order the choice is the n-th answer: n - 1 ~ Poisson(mu), cut at the pool."""
    entries = pool([0.0, 1.0, 2.0, 3.0, 4.0])
    mu = 1.7
    expected = np.array([math.exp(-mu) * mu**k / math.factorial(k) for k in range(5)])
    expected[4] += 1 - expected.sum()
    distance = 0.5 * np.abs(law({"rule": "poisson", "mu": mu}, entries) - expected).sum()
    assert distance < 0.02, f"total variation {distance:.4f}"


def test_poisson_tells_its_n_and_fills_further_choices_in_order() -> None:
    entries = pool([0.0, 5.0, 2.0, 9.0])
    assert order({"rule": "poisson", "mu": 0.0}, entries) == [0, 1, 2, 3]
    rule = parse_rule({"rule": "poisson", "mu": 2.0})
    for seed in range(30):
        first = rule.order(entries, 1, np.random.default_rng(seed))[0]
        n = rule.report(entries)["poisson_n"]
        assert n == 1 + np.random.default_rng(seed).poisson(2.0)
        assert first == {1: 0, 2: 1, 3: 1}.get(n, 3)


def solved(rewards: Sequence[float], beta: float, steps: int = 4000) -> np.ndarray:
    """Maximise sum w_i r_i - (N beta / 2) sum (w_i - 1/N)^2 on the simplex by projected gradient ascent, float64.

    Independent of the closed form: the projection onto the simplex bisects the shift that makes the weights sum to 1.
    """
    r = np.array(rewards, dtype=np.float64)
    n = len(r)
    w = np.full(n, 1 / n)
    for _ in range(steps):
        moved = w + 0.1 / (n * beta) * (r - n * beta * (w - 1 / n))
        low, high = moved.min() - 1.0, moved.max()
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if np.maximum(moved - middle, 0).sum() > 1 else (low, middle)
        w = np.maximum(moved - low, 0)
    return w


@pytest.mark.parametrize("beta", [0.05, 0.3, 1.0, 4.0, 100.0])
@pytest.mark.parametrize("rewards", [[0.2, 1.5, -0.7, 1.4], [3.0, 3.0, 1.0], [-2.0], [0.0, 0.0]])
def test_chi2_solves_the_regularised_problem(rewards: list[float], beta: float) -> None:
    weights = chi2_weights(rewards, beta)
    np.testing.assert_allclose(weights, solved(rewards, beta, steps=300), atol=1e-9)
    assert weights.sum() == pytest.approx(1)


def test_chi2_goes_from_argmax_to_uniform_and_ignores_a_shift() -> None:
    rewards = [0.2, 1.5, -0.7, 1.4]
    assert chi2_weights(rewards, 0.0).tolist() == [0, 1, 0, 0]
    np.testing.assert_allclose(chi2_weights(rewards, 1e-9), [0, 1, 0, 0], atol=1e-7)
    np.testing.assert_allclose(chi2_weights(rewards, 1e6), np.full(4, 0.25), atol=1e-6)
    shifted = chi2_weights([r + 1e6 for r in rewards], 0.3)
    np.testing.assert_allclose(shifted, chi2_weights(rewards, 0.3), atol=1e-9)
    assert chi2_weights([0.0, INF, -INF], 1.0).tolist() == [0, 1, 0]
    assert chi2_weights([0.0, -INF], 10.0).tolist() == [1, 0]


def test_chi2_draws_by_its_weights_and_orders_the_rest_by_reward() -> None:
    rewards = [0.2, 1.5, NAN, -0.7, 1.4]
    expected = np.zeros(5)
    expected[[0, 1, 3, 4]] = chi2_weights([0.2, 1.5, -0.7, 1.4], 0.3)
    distance = 0.5 * np.abs(law({"rule": "chi2", "beta": 0.3}, pool(rewards)) - expected).sum()
    assert distance < 0.02, f"total variation {distance:.4f}"
    assert np.flatnonzero(expected).tolist() == [1, 4]
    for seed in range(20):
        chosen = order({"rule": "chi2", "beta": 0.3}, pool(rewards), seed=seed)
        assert sorted(chosen[:2]) == [1, 4]
        assert chosen[2:] == [0, 3, 2]


def test_rbon_weighs_the_reward_against_the_base() -> None:
    entries = pool([1.0, 2.0, NAN], logprobs=[-3.0, -20.0, -1.0])
    assert order({"rule": "rbon", "alpha": 0.05}, entries) == [1, 0, 2]
    assert order({"rule": "rbon", "alpha": 0.06}, entries) == [0, 1, 2]
    assert parse_rule("rbon").needs_logprob
    assert parse_rule({"rule": "abstain", "tau": 0.0, "then": "rbon"}).needs_logprob
    assert not parse_rule("argmax").needs_logprob


WORDS = ["the cat sat", "the cat sat down", "a dog ran", "The cat, sat.", "", "cat the sat"]


def plain_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    table = np.zeros((len(first) + 1, len(second) + 1), dtype=int)
    for i, a in enumerate(first, 1):
        for j, b in enumerate(second, 1):
            table[i, j] = table[i - 1, j - 1] + 1 if a == b else max(table[i - 1, j], table[i, j - 1])
    return int(table[-1, -1])


def test_overlaps_agree_with_plain_programs() -> None:
    """Among 40 random texts of up to 90 words, more than one bundle, some of them empty or the same."""
    random = np.random.default_rng(5)
    texts = [[f"w{i}" for i in random.integers(0, 12, size=random.integers(0, 90))] for _ in range(38)]
    texts += [[], texts[3]]
    sequences, words = common_subsequences(texts), common_words(texts)
    for i, first in enumerate(texts):
        for j, second in enumerate(texts):
            assert words[i, j] == (Counter(first) & Counter(second)).total()
            if (i + j) % 7 == 0:
                assert sequences[i, j] == plain_subsequence(first, second)


def test_similarities_by_hand() -> None:
    f1, rouge, exact = (similarities(WORDS, how) for how in ("token_f1", "rouge_l", "exact"))
    for matrix in (f1, rouge, exact):
        assert (matrix == matrix.T).all()
        assert (np.diag(matrix) == 1).all()
        assert matrix[4].tolist() == [0, 0, 0, 0, 1, 0]
    assert f1[0].tolist() == [1, 6 / 7, 0, 1, 0, 1]
    assert rouge[0].tolist() == [1, 6 / 7, 0, 1, 0, 4 / 6]
    assert exact[0].tolist() == [1, 0, 0, 0, 0, 0]
    assert similarities(["Yes.", "yes"], "exact").tolist() == [[1, 1], [1, 1]]
    assert words_of("\u6771\u4eac is Tokyo, (yes)") == ["\u6771", "\u4eac", "is", "tokyo", "yes"]


@pytest.mark.parametrize("similarity", ["token_f1", "rouge_l", "exact"])
def test_mbr_maximises_the_summed_similarity(similarity: Any) -> None:
    texts = [*WORDS, "the cat sat"]
    gains = similarities(texts, similarity).sum(axis=1)
    chosen = order({"rule": "mbr", "similarity": similarity}, pool([None] * len(texts), texts))
    assert gains[chosen].tolist() == pytest.approx(sorted(gains, reverse=True))
    assert chosen[0] == 0


def test_mbr_settles_ties_by_reward_then_by_order() -> None:
    assert order("mbr", pool([None, None], ["a b", "b c"])) == [0, 1]
    assert order("mbr", pool([NAN, 1.0, 2.0], ["a b", "b c", "b d"]), count=2) == [2, 1]
    assert not parse_rule("mbr").needs_reward


VOTERS = ["it is 4", "so 7", "thus 4.0", "none", "I say 7.", "7", "9"]


def test_majority_returns_one_of_each_group_by_votes() -> None:
    """Groups 7 (3 votes), 4 (2), 9 (1), then their other members, then the one without a vote."""
    assert order("majority", pool([None] * 7, VOTERS)) == [1, 0, 6, 4, 5, 2, 3]
    rewards = [0.0, 1.0, 5.0, 9.0, NAN, 2.0, 3.0]
    assert order("majority", pool(rewards, VOTERS)) == [5, 2, 6, 1, 4, 0, 3]
    assert not parse_rule("majority").needs_reward
    assert order("majority", pool([0.0, 2.0], ["none", "here"])) == [1, 0]  # nobody votes: by reward


def test_a_level_vote_falls_to_the_highest_reward_and_then_to_the_first() -> None:
    texts = ["1", "2", "2", "1"]
    assert order("majority", pool([None] * 4, texts), count=2) == [0, 1]
    assert order("majority", pool([0.0, 0.5, 1.0, 0.0], texts), count=2) == [2, 0]


def test_extract_changes_the_winner() -> None:
    texts = [r"1 \boxed{8}", r"1 \boxed{9}", r"2 \boxed{9} 5", r"9 1 \boxed{8} 5"]
    assert order({"rule": "majority", "extract": "number"}, pool([None] * 4, texts), count=1) == [2]
    assert order({"rule": "majority", "extract": "boxed"}, pool([None] * 4, texts), count=1) == [0]


def test_votes_are_reported_with_their_shares() -> None:
    assert parse_rule("majority").report(pool([None] * 7, VOTERS))["votes"] == [
        {"vote": "7", "answers": 3, "share": 0.5},
        {"vote": "4", "answers": 2, "share": pytest.approx(1 / 3)},
        {"vote": "9", "answers": 1, "share": pytest.approx(1 / 6)},
    ]


@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0])
def test_weighted_votes_add_exponentials(temperature: float) -> None:
    rewards = [-1.0, -2.0, -1.2, 0.0, NAN, -2.1, -0.9]
    rule = parse_rule({"rule": "weighted_vote", "temperature": temperature})
    weights = {
        vote: sum(math.exp(rewards[i] / temperature) for i in members)
        for vote, members in {"4": [0, 2], "7": [1, 5], "9": [6]}.items()
    }
    expected = sorted(weights, key=lambda vote: -weights[vote])
    entries = pool(rewards, VOTERS)
    told = rule.report(entries)["votes"]
    assert [each["vote"] for each in told] == expected
    assert [each["share"] for each in told] == pytest.approx(
        [weights[vote] / sum(weights.values()) for vote in expected]
    )
    best = {"4": 0, "7": 1, "9": 6}
    assert rule.order(entries, 3, np.random.default_rng(0)) == [best[vote] for vote in expected]


def test_weighted_votes_survive_any_rewards() -> None:
    """No overflow, no zero divided by zero, and a group that only failed comes after all others."""
    texts = ["1", "2", "3"]
    assert order({"rule": "weighted_vote", "temperature": 0.001}, pool([NAN, 900.0, 1000.0], texts)) == [2, 1, 0]
    assert order("weighted_vote", pool([-1e300, 1e300, NAN], texts)) == [1, 0, 2]
    assert order("weighted_vote", pool([NAN, NAN, NAN], texts)) == [0, 1, 2]
    assert parse_rule("weighted_vote").report(pool([NAN], ["1"]))["votes"][0]["share"] == 0.0
    many = {"rule": "weighted_vote", "temperature": 1e6}
    assert order(many, pool([-3.0, 5.0, -4.0], ["1", "2", "1"]), count=1) == [0]  # large: majority


RAW = [{"a": 3.0, "b": 3.0}, {"a": 9.0, "b": 1.0}, {"a": 4.0, "b": 2.0}, {"a": 99.0, "b": NAN}]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"aggregate": "mean"}, [1, 0, 2, 3]),
        ({"aggregate": "min"}, [0, 2, 1, 3]),
        ({"aggregate": "pessimistic", "c": 0.0}, [1, 0, 2, 3]),
        ({"aggregate": "pessimistic", "c": 0.12}, [1, 0, 2, 3]),  # 5 - .12 * 16 = 3.08 against 3
        ({"aggregate": "pessimistic", "c": 0.13}, [0, 1, 2, 3]),  # 5 - .13 * 16 = 2.92, and 3 - .13 = 2.87
        ({"aggregate": "pessimistic"}, [0, 2, 1, 3]),
    ],
)
def test_ensembles_of_raw_rewards(rule: dict[str, Any], expected: list[int]) -> None:
    assert order({"rule": "ensemble", **rule}, pool([0.0] * 4, raw=RAW)) == expected


def test_abstain_refuses_below_tau() -> None:
    entries = pool([0.4, NAN, 0.7, None])
    assert order({"rule": "abstain", "tau": 0.7}, entries) == [2, 0, 1, 3]
    assert order({"rule": "abstain", "tau": 0.71}, entries) == []
    assert order({"rule": "abstain", "tau": -100.0}, pool([NAN, None])) == []
    rule = parse_rule({"rule": "abstain", "tau": 0.71, "message": "Pass."})
    assert rule.may_refuse
    assert rule.refusal == "Pass."
    assert rule.report(entries) == {"abstain_tau": 0.71, "abstain_best": 0.7}
    assert not parse_rule("argmax").may_refuse
    assert parse_rule("argmax").refusal == ""
    assert len(parse_rule({"rule": "abstain", "tau": 0.0}).refusal) > 10


def test_abstain_lets_another_rule_choose() -> None:
    entries = pool([0.0, 1.0, 5.0], ["1", "1", "2"])
    rule = parse_rule({"rule": "abstain", "tau": 1.0, "then": {"rule": "majority"}})
    assert rule.order(entries, 1, np.random.default_rng(0)) == [1]
    assert rule.report(entries)["votes"][0]["vote"] == "1"


@pytest.mark.parametrize(
    ("scores", "alpha", "tau"),
    [
        ([3.0, 1.0, 2.0], 0.5, 2.0),  # the 2nd of 3
        ([3.0, 1.0, 2.0], 0.25, 3.0),  # the 3rd
        ([3.0, 1.0, 2.0], 0.2, INF),  # the 4th: there is none
        ([float(i) for i in range(1, 10)], 0.7, 3.0),  # 10 * 0.3 is 3, and 3.0000000000000004 in binary
        ([float(i) for i in range(1, 10)], None, 9.0),
        ([], None, INF),
    ],
)
def test_the_conformal_threshold(scores: list[float], alpha: float | None, tau: float) -> None:
    rule = {"rule": "abstain", "calibration": scores, "alpha": alpha}
    below, at = pool([math.nextafter(tau, -INF)]), pool([tau])
    assert order(rule, below) == []
    assert order(rule, at) == [0]
    assert parse_rule(rule).report(below)["abstain_tau"] == (None if tau == INF else tau)


def test_conformal_abstention_holds_its_rate() -> None:
    """Of pools like those of the calibration, 1 in 10 passes: k / (n + 1) exactly, here with n = 19."""
    random, passed, runs = np.random.default_rng(8), 0, 4000
    for _ in range(runs):
        *calibration, best = random.normal(size=20).tolist()
        rule = {"rule": "abstain", "calibration": calibration, "alpha": 0.1}
        passed += bool(order(rule, pool([best])))
    assert passed / runs == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(
    "value",
    [
        {"rule": "soft", "temperature": 2},
        {"rule": "ensemble", "aggregate": "pessimistic", "c": 0.1},
        {"rule": "abstain", "calibration": [1, 2.5], "alpha": 0.2, "then": {"rule": "mbr", "similarity": "exact"}},
        {"rule": "abstain", "tau": 1, "then": "soft", "message": "No."},
    ],
)
def test_the_echo_parses_to_the_same(value: object) -> None:
    rule = parse_rule(value)
    assert isinstance(rule, Rule)
    assert parse_rule(rule.model_dump(mode="json")) == rule


@pytest.mark.parametrize(
    ("value", "param", "words"),
    [
        (3, "", "name of a rule"),
        ({"temperature": 1.0}, "", "name of a rule"),
        ("sofft", "", "did you mean 'soft'"),
        ({"rule": "majorty"}, ".rule", "did you mean 'majority'"),
        ({"rule": "soft", "temprature": 1.0}, ".temprature", "did you mean 'temperature'"),
        ({"rule": "soft", "temperature": "1"}, ".temperature", "valid number"),
        ({"rule": "soft", "temperature": NAN}, ".temperature", "less than or equal|greater than or equal"),
        ({"rule": "weighted_vote", "temperature": 0.0}, ".temperature", "greater than 0"),
        ({"rule": "majority", "extract": "regex"}, ".extract", "'boxed'"),
        ({"rule": "ensemble", "c": 1.0}, "", "leave it out with 'mean'"),
        ("abstain", "", "give either tau or calibration"),
        ({"rule": "abstain", "tau": 1.0, "calibration": [1.0]}, "", "give either tau or calibration"),
        ({"rule": "abstain", "tau": 1.0, "alpha": 0.1}, "", "alpha belongs to calibration"),
        ({"rule": "abstain", "tau": INF}, ".tau", "finite"),
        ({"rule": "abstain", "calibration": [1.0, NAN]}, ".calibration.1", "finite"),
        ({"rule": "abstain", "tau": 1.0, "then": "abstain"}, ".then", "unknown rule 'abstain'"),
        ({"rule": "abstain", "tau": 1.0, "then": {"rule": "soft", "beta": 1}}, ".then.beta", "takes: rule, temp"),
        ({"rule": "abstain", "tau": 1.0, "then": {"rule": "soft", "temperature": -1}}, ".then.temperature", "than"),
    ],
)
def test_a_wrong_rule_names_its_key(value: object, param: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        parse_rule(value)
    assert caught.value.param == f"decoding.select{param}"
    assert "Value error" not in str(caught.value)
