"""Best-of-n against its exact law on an enumerated toy model, and the choices it makes on small pools."""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from toy import FunctionReward, Toy, random_table

from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.results import Failure
from trimtab.engine.sampling import SamplingParams

VOCAB, LENGTH, PROMPT = 4, 3, [1]
TABLE = random_table(VOCAB, scale=0.8)


def exact_base() -> dict[tuple[int, ...], float]:
    """Probability of every answer of LENGTH tokens, in float64."""
    law = {}
    for answer in product(range(VOCAB), repeat=LENGTH):
        probability = 1.0
        for step, token in enumerate(answer):
            z = TABLE([*PROMPT, *answer[:step]])
            probability *= math.exp(z[token]) / np.exp(z).sum()
        law[answer] = probability
    return law


def test_base_law_sums_to_one() -> None:
    assert sum(exact_base().values()) == pytest.approx(1)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_answer_follows_the_exact_law(n: int) -> None:
    """P(y) = F(y)^n - F(y-)^n for distinct rewards; 20,000 draws, chi-square."""
    base = exact_base()
    toy = Toy(TABLE, pages=60_000)
    texts = {toy.vocabulary.decode(answer): answer for answer in base}
    ranks = {answer: rank for rank, answer in enumerate(sorted(base, key=lambda y: hash((y, "reward"))))}
    toy.engine.rewards = {"rank": FunctionReward("rank", lambda text: float(ranks[texts[text]]))}
    draws, wave = 20_000, 1000
    counts: dict[tuple[int, ...], int] = dict.fromkeys(base, 0)
    decoding = {"strategy": "best_of_n", "n": n, "reward": "rank"}
    for start in range(0, draws, wave):
        handles = [
            toy.submit(PROMPT, SamplingParams(seed=start + i, max_tokens=LENGTH), decoding=decoding)
            for i in range(wave)
        ]
        toy.finish()
        for handle in handles:
            counts[toy.result(handle).choices[0].token_ids] += 1
    ordered = sorted(base, key=ranks.__getitem__)
    below = np.concatenate([[0.0], np.cumsum([base[answer] for answer in ordered])])
    law = below[1:] ** n - below[:-1] ** n
    observed = np.array([counts[answer] for answer in ordered])
    variation = 0.5 * np.abs(observed / draws - law).sum()
    common = law * draws >= 5
    statistic = ((observed - law * draws) ** 2 / (law * draws))[common].sum()
    freedom = common.sum() - 1
    # The chi-square quantile at 0.999, by Wilson and Hilferty's cube; exact to 1 % from 5 degrees of freedom on.
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < limit, f"chi2 {statistic:.1f} > {limit:.1f}, total variation {variation:.4f}"


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
    }
