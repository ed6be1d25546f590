"""Best-of-n against its exact law on an enumerated toy model, and the choices it makes on small pools."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from exact import answer_law, assert_law, total_variation
from toy import Toy, byte_tokenizer, random_table

from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.results import Failure, Result
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.vocabulary import Vocabulary

VOCAB, LENGTH, PROMPT = 4, 3, [1]
TABLE = random_table(VOCAB, scale=0.8)
WORDS = Vocabulary(byte_tokenizer())
TEXTS = {WORDS.decode(answer): answer for answer in product(range(VOCAB), repeat=LENGTH)}
RANKS = {answer: rank for rank, answer in enumerate(sorted(TEXTS.values(), key=lambda y: hash((*y, 7))))}


BASE = answer_law(TABLE, PROMPT, VOCAB, LENGTH)


def drawn(draws: int, decoding: dict[str, Any]) -> Counter[tuple[int, ...]]:
    """Answers of so many requests, seeds 0, 1, ..., a thousand at a time."""
    toy = Toy(TABLE, pages=60_000, rewards={"rank": lambda text: float(RANKS[TEXTS[text]])})
    counts: Counter[tuple[int, ...]] = Counter()
    for start in range(0, draws, 1000):
        sampling = [SamplingParams(seed=seed, max_tokens=LENGTH) for seed in range(start, start + 1000)]
        handles = [toy.submit(PROMPT, each, decoding=decoding) for each in sampling]
        toy.finish()
        counts.update(toy.result(handle).choices[0].token_ids for handle in handles)
    return counts


def test_base_law_sums_to_one() -> None:
    assert sum(BASE.values()) == pytest.approx(1)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_answer_follows_the_exact_law(n: int) -> None:
    """P(y) = F(y)^n - F(y-)^n for distinct rewards; 20,000 draws, chi-square."""
    counts = drawn(20_000, {"strategy": "best_of_n", "n": n, "reward": "rank"})
    ordered = sorted(BASE, key=RANKS.__getitem__)
    below = np.concatenate([[0.0], np.cumsum([BASE[answer] for answer in ordered])])
    assert_law(counts, dict(zip(ordered, below[1:] ** n - below[:-1] ** n, strict=True)))


def test_the_soft_rule_nears_the_tilted_law_as_n_grows() -> None:
    """pi(y) exp(r / temperature) / Z; by total variation, whose expectation from as many exact draws is about 0.05."""
    temperature = 16.0
    weights = {y: p * math.exp(RANKS[y] / temperature) for y, p in BASE.items()}
    target = {y: w / math.fsum(weights.values()) for y, w in weights.items()}
    soft = {"strategy": "best_of_n", "reward": "rank", "select": {"rule": "soft", "temperature": temperature}}
    far = [total_variation(drawn(2000, {**soft, "n": n}), target) for n in (1, 3, 24)]
    told = f"total variation from the tilted law: {far} for n = 1, 3, 24"
    assert far[0] > far[1] + 0.05, told
    assert far[1] > far[2] + 0.03, told
    assert far[2] < 0.1, told


def test_n_1_is_plain_sampling_with_the_same_seed() -> None:
    for seed in range(10):
        sampling = SamplingParams(seed=seed, max_tokens=8)
        toy = Toy(random_table(200), rewards={"flat": lambda text: 0.0})
        best = toy.run(PROMPT, sampling, decoding={"strategy": "best_of_n", "n": 1, "reward": "flat"})
        plain = toy.run(PROMPT, sampling)
        assert best.choices[0].token_ids == plain.choices[0].token_ids


def pool(rewards: Sequence[float], n: int = 1) -> Toy:
    """Best of a pool whose answers score `rewards` in the order of their drawing."""
    scores = iter(rewards)
    toy = Toy(random_table(200), rewards={"listed": lambda text: next(scores)})
    decoding = {"strategy": "best_of_n", "n": len(rewards), "reward": "listed"}
    toy.handle = toy.submit(PROMPT, SamplingParams(seed=1, max_tokens=4), n=n, decoding=decoding)  # type: ignore[attr-defined]
    toy.finish()
    return toy


@pytest.mark.parametrize(
    ("rewards", "best"),
    [
        ([1.0, 3.0, 2.0], 1),
        ([2.0, 2.0, 1.0], 0),
        ([math.nan, -5.0, -6.0], 1),
        ([-math.inf, math.nan, -9.0], 2),
    ],
)
def test_the_highest_reward_wins_ties_fall_to_the_first_and_nan_loses(rewards: list[float], best: int) -> None:
    toy = pool(rewards)
    result = toy.result(toy.handle)  # type: ignore[attr-defined]
    assert [candidate.choice for candidate in result.candidates].index(0) == best
    assert result.choices[0].text == result.candidates[best].text


def test_several_choices_are_the_best_in_order() -> None:
    toy = pool([1.0, 4.0, 2.0, 3.0], n=2)
    result = toy.result(toy.handle)  # type: ignore[attr-defined]
    assert [candidate.choice for candidate in result.candidates] == [None, 0, None, 1]
    assert [delta.text for delta in toy.deltas(toy.handle)] == [choice.text for choice in result.choices]  # type: ignore[attr-defined]


def test_nothing_but_nan_is_an_error_that_names_the_guide() -> None:
    toy = pool([math.nan, math.nan])
    end = toy.end(toy.handle)  # type: ignore[attr-defined]
    assert isinstance(end, Failure)
    assert "listed" in str(end.error)


@pytest.mark.parametrize(
    ("decoding", "param", "words"),
    [
        ({"strategy": "best_of_m"}, "decoding.strategy", "best_of_n"),
        ({"strategy": "best_of_n", "rewards": "x"}, "decoding.rewards", "did you mean 'reward'"),
        ({"strategy": "best_of_n", "reward": "x", "n": 0}, "decoding.n", "greater than or equal to 1"),
        ({"strategy": "best_of_n"}, "decoding.reward", "required"),
        ({"strategy": "best_of_n", "reward": "x", "n": True}, "decoding.n", "valid integer"),
        ({"strategy": "best_of_n", "reward": "x", "n": "8"}, "decoding.n", "valid integer"),
        ({"strategy": 3}, "decoding.strategy", "unknown strategy"),
        ({"n": 4}, "decoding.n", "'sample' takes"),
    ],
)
def test_a_wrong_spec_names_the_key_and_the_fix(decoding: dict[str, object], param: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        DecodingSpec.parse(decoding)
    assert caught.value.param == param


def test_defaults_are_filled_in() -> None:
    assert DecodingSpec.parse(None).dump() == {"strategy": "sample"}
    assert DecodingSpec.parse({"strategy": "best_of_n", "reward": "x"}).dump() == {
        "strategy": "best_of_n",
        "n": 8,
        "reward": "x",
        "export": None,
    }


def search(reward: Callable[[str], float], drafts: int, choices: int = 1, **changes: Any) -> Result:
    """Answers of LENGTH tokens over the enumerated toy."""
    decoding = {"strategy": "best_of_n", "reward": "r", "n": drafts, **changes}
    toy = Toy(TABLE, rewards={"r": reward})
    return toy.run(PROMPT, SamplingParams(seed=1, max_tokens=LENGTH), n=choices, decoding=decoding)


def estimate(n: int, e: float) -> float:
    """As the formula is written."""
    missed = (1 - e) ** n
    return missed * (math.log(n) + (n - 1) * math.log(1 - e) - (n - 1) / n) + (1 - missed) * math.log((1 - missed) / e)


@pytest.mark.parametrize("n", [2, 5, 16])
def test_the_report_tells_how_far_the_best_of_n_may_be_from_the_base(n: int) -> None:
    result = search(lambda text: float(RANKS[TEXTS[text]]), drafts=n, choices=2)
    told = result.report
    assert told["n"] == n
    assert told["kl_bound"] == pytest.approx(math.log(n) - (n - 1) / n)
    assert told["win_rate_bound"] == pytest.approx(n / (n + 1))
    assert told["kl_estimate"] == pytest.approx(estimate(n, BASE[result.choices[0].token_ids]), rel=1e-4)


def test_answers_of_one_reward_count_as_one_in_the_estimate() -> None:
    """Two classes of answers; with enough drafts, the better one is met in full."""
    good = {answer for answer in BASE if sum(answer) % 5 == 0}
    result = search(lambda text: float(TEXTS[text] in good), drafts=256)
    met = {TEXTS[candidate.text] for candidate in result.candidates if candidate.reward == 1.0}
    assert met <= good
    share = sum(BASE[answer] for answer in met)
    assert share > 0.7 * sum(BASE[answer] for answer in good)
    assert result.report["kl_estimate"] == pytest.approx(estimate(256, share), rel=1e-4)
    assert search(lambda text: 0.0, drafts=256).report["kl_estimate"] < 0.1


def test_one_draft_is_at_no_distance() -> None:
    told = search(lambda text: 0.0, drafts=1).report
    assert (told["kl_bound"], told["win_rate_bound"]) == (0.0, 0.5)
    assert told["kl_estimate"] == pytest.approx(0.0, abs=1e-12)


def test_the_estimate_is_for_the_best_alone() -> None:
    told = search(lambda text: float(len(text)), drafts=4, select={"rule": "soft", "temperature": 1.0}).report
    assert "kl_estimate" not in told
    assert told["kl_bound"] == pytest.approx(math.log(4) - 3 / 4)


@pytest.mark.parametrize(("max_kl", "n"), [(1e-9, 1), (0.2, 2), (1.2, 7), (1.3, 8), (50.0, 8)])
def test_a_budget_of_kl_lowers_n(max_kl: float, n: int) -> None:
    result = search(lambda text: float(sum(text.encode())), drafts=8, budget={"max_kl": max_kl})
    assert (result.report["n"], len(result.candidates)) == (n, n)
    assert result.report["kl_bound"] <= max_kl


def test_a_budget_of_kl_that_leaves_fewer_drafts_than_choices_is_refused() -> None:
    toy = Toy(TABLE, rewards={"r": lambda text: 0.0})
    decoding = {"strategy": "best_of_n", "reward": "r", "budget": {"max_kl": 0.1}}
    handle = toy.submit(PROMPT, SamplingParams(seed=1, max_tokens=LENGTH), n=2, decoding=decoding)
    toy.finish()
    end = toy.end(handle)
    assert isinstance(end, Failure)
    assert isinstance(end.error, InvalidRequest)
    assert "best of 1" in str(end.error)


def test_the_best_and_the_worst_are_exported_as_a_pair() -> None:
    scores = iter([1.0, -math.inf, 3.0, math.nan, 3.0, -2.0])
    pair = search(lambda text: next(scores), drafts=6, export="best_and_worst")
    texts = [candidate.text for candidate in pair.candidates]
    assert pair.report["pair"] == {
        "chosen": texts[2],
        "rejected": texts[5],
        "chosen_reward": 3.0,
        "rejected_reward": -2.0,
    }


@pytest.mark.parametrize("rewards", [[2.0, 2.0, 2.0], [math.nan, 1.0, 1.0], [-math.inf, -math.inf, math.nan]])
def test_answers_of_equal_rewards_are_no_pair(rewards: list[float]) -> None:
    scores = iter(rewards)
    assert "pair" not in search(lambda text: next(scores), drafts=3, export="best_and_worst").report
    assert "pair" not in search(lambda text: float(sum(text.encode())), drafts=3).report


def test_a_stop_string_ends_a_draft_and_its_probability_counts_to_there() -> None:
    """Every draft says the stop string at once: one answer, of probability 1."""
    loud = Toy(lambda prefix: np.where(np.arange(200) == 120, 50.0, 0.0), rewards={"r": lambda text: float(len(text))})
    sampling = SamplingParams(seed=1, max_tokens=8, stop=(WORDS.decode([120]),))
    result = loud.run(PROMPT, sampling, decoding={"strategy": "best_of_n", "reward": "r"})
    assert (result.choices[0].finish_reason, result.choices[0].text) == ("stop", "")
    assert result.report["kl_estimate"] == pytest.approx(0.0, abs=1e-6)
