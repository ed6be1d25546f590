"""QAlign against its exact law, step by step, on an enumerated toy model; what it spends and what it keeps."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from exact import assert_law, total_variation
from toy import Toy, random_table

from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.results import Failure, Result
from trimtab.engine.sampling import SamplingParams

VOCAB, LENGTH, EOS, PROMPT = 3, 3, 2, [1]
TABLE = random_table(VOCAB, scale=0.8)
Tokens = tuple[int, ...]


def endings(prefix: Tokens) -> dict[Tokens, float]:
    """Probability of every answer that begins with `prefix`, given that it does, in float64; EOS ends it."""
    if len(prefix) == LENGTH or prefix[-1:] == (EOS,):
        return {prefix: 1.0}
    z = TABLE([*PROMPT, *prefix])
    p = np.exp(z) / np.exp(z).sum()
    return {y: p[token] * q for token in range(VOCAB) for y, q in endings((*prefix, token)).items()}


BASE = endings(())
ANSWERS = list(BASE)
REWARD = dict(zip(ANSWERS, map(float, np.random.default_rng(0).normal(size=len(ANSWERS))), strict=True))
BETA = 0.9


def kernel() -> np.ndarray:
    """Probability to go from each answer to each other in one step (A, A)."""
    moves = np.zeros((len(ANSWERS), len(ANSWERS)))
    for i, old in enumerate(ANSWERS):
        for cut in range(len(old)):
            for new, p in endings(old[:cut]).items():
                ratio = math.exp((REWARD[new] - REWARD[old]) / BETA) * len(old) / len(new)
                moves[i, ANSWERS.index(new)] += p / len(old) * min(1.0, ratio)
        moves[i, i] += 1 - moves[i].sum()
    return moves


def target() -> np.ndarray:
    weights = np.array([p * math.exp(REWARD[y] / BETA) for y, p in BASE.items()])
    return weights / weights.sum()


def results(requests: int, **parameters: Any) -> list[Result]:
    letters = '!"'
    texts = {"".join(letters[token] for token in y if token != EOS): REWARD[y] for y in ANSWERS}
    toy = Toy(TABLE, pages=200_000, eos=EOS, rewards={"r": texts.__getitem__})
    decoding = {"strategy": "qalign", "reward": "r", "beta": BETA, **parameters}
    handles = [
        toy.submit(PROMPT, SamplingParams(seed=i, max_tokens=LENGTH), decoding=decoding) for i in range(requests)
    ]
    toy.finish()
    return [toy.result(handle) for handle in handles]


def test_the_target_is_stationary_under_the_kernel_and_nothing_else_is() -> None:
    assert target() @ kernel() == pytest.approx(target())
    assert np.sort(np.abs(np.linalg.eigvals(kernel())))[-2] < 0.9


@pytest.mark.parametrize(("steps", "requests"), [(0, 2000), (3, 2000), (16, 500)])
def test_the_last_state_follows_the_exact_law_and_nears_the_target(steps: int, requests: int) -> None:
    """After t steps the law is pi P^t; chi-square."""
    law = np.array(list(BASE.values())) @ np.linalg.matrix_power(kernel(), steps)
    counts = Counter(result.choices[0].token_ids for result in results(requests, steps=steps))
    assert_law(counts, dict(zip(ANSWERS, law, strict=True)))
    found = total_variation(counts, dict(zip(ANSWERS, target(), strict=True)))
    exact = 0.5 * np.abs(law - target()).sum()
    told = f"total variation from the target {found:.3f}, by the law {exact:.3f}"
    assert found < exact + 0.06, told
    assert exact < {0: 1.0, 3: 0.3, 16: 0.03}[steps], told


def test_no_steps_are_plain_sampling() -> None:
    for seed in range(5):
        toy = Toy(random_table(50), rewards={"r": lambda text: float(len(text))})
        sampling = SamplingParams(seed=seed, max_tokens=7)
        decoding = {"strategy": "qalign", "reward": "r", "steps": 0, "chains": 3}
        drafts = toy.run(PROMPT, sampling, n=3).choices
        found = toy.run(PROMPT, sampling, n=3, decoding=decoding).choices
        assert {each.token_ids for each in found} == {each.token_ids for each in drafts}
        one = toy.run(PROMPT, sampling, decoding={**decoding, "chains": 1})
        assert one.choices[0].token_ids == drafts[0].token_ids


def test_a_step_decodes_what_comes_after_the_cut_and_nothing_else() -> None:
    steps, length = 100, 20
    toy = Toy(random_table(50), rewards={"r": lambda text: float(sum(map(ord, text)) % 7)})
    sampling = SamplingParams(seed=1, max_tokens=length)
    result = toy.run(PROMPT, sampling, decoding={"strategy": "qalign", "reward": "r", "steps": steps})
    spent = result.usage.model_tokens["base"] - length
    assert spent == steps * length - round(result.report["mean_cut"] * steps)
    assert spent <= 0.55 * steps * length


def test_states_that_were_left_hold_no_pages() -> None:
    toy = Toy(random_table(50), rewards={"r": lambda text: float(sum(map(ord, text)) % 7)})
    decoding = {"strategy": "qalign", "reward": "r", "steps": 60, "beta": 5.0}
    handle = toy.submit(PROMPT, SamplingParams(seed=1, max_tokens=16), decoding=decoding)
    held = 0
    while not toy.engine.idle:
        toy.engine.tick()
        held = max(held, sum(count > 0 for count in toy.base.runner.pool.references))
    assert toy.result(handle).report["acceptance_rate"] > 0.5
    assert held <= 3 * 6  # the state, a proposal, the best so far: five pages each, and the last one is copied


def one_run(reward: Callable[[str], float], *, n: int = 1, seed: int = 0, **parameters: Any) -> Result:
    toy = Toy(random_table(50), rewards={"r": reward})
    decoding = {"strategy": "qalign", "reward": "r", **parameters}
    return toy.run(PROMPT, SamplingParams(seed=seed, max_tokens=8), n=n, decoding=decoding)


def odd(text: str) -> float:
    return float(sum(map(ord, text)) % 31)


def test_beta_says_how_often_a_worse_state_is_accepted() -> None:
    (cold,) = one_run(odd, beta=1e-6).report["rewards"]
    assert cold == sorted(cold)
    assert len(cold) == 33
    assert cold[-1] > cold[0]
    hot = one_run(odd, beta=1e6).report
    assert hot["acceptance_rate"] == 1.0
    assert hot["rewards"][0] != sorted(hot["rewards"][0])
    assert one_run(lambda text: 3.25, beta=0.1).report["acceptance_rate"] == 1.0


def test_every_chain_ends_with_an_answer_and_each_goes_its_own_way() -> None:
    result = one_run(odd, n=3, chains=4, steps=10)
    ends = [chain[-1] for chain in result.report["rewards"]]
    assert len({each.token_ids for each in result.choices}) == 3
    by_text = {each.text: each.reward for each in result.candidates}
    assert sorted(by_text[each.text] for each in result.choices) == sorted(ends[:3])  # type: ignore[type-var]
    assert len(result.candidates) == 4 * 11
    with pytest.raises(InvalidRequest, match="chains=1"):
        DecodingSpec.parse({"strategy": "qalign", "reward": "r"}).check(choices=2, rewards={"r"})


def test_rules_see_the_states_of_the_chains() -> None:
    kwargs: dict[str, Any] = {"chains": 2, "steps": 12, "beta": 40.0, "seed": 3}
    rewards = [reward for chain in one_run(odd, **kwargs).report["rewards"] for reward in chain]
    found = one_run(odd, n=2, select="argmax", **kwargs)
    by_text = {each.text: each.reward for each in found.candidates}
    assert [by_text[each.text] for each in found.choices] == sorted(set(rewards), reverse=True)[:2]


def test_a_state_votes_as_often_as_the_chain_stayed_there() -> None:
    """The state of the longest stay wins, unless burn_in leaves the last state alone."""
    kwargs: dict[str, Any] = {"steps": 40, "beta": 6.0, "seed": 6}
    chain = one_run(odd, **kwargs).report["rewards"][0]
    for burn_in in (0, 40):
        vote = {"rule": "mbr", "similarity": "exact"}
        found = one_run(odd, select=vote, burn_in=burn_in, **kwargs)
        (reward,) = (each.reward for each in found.candidates if each.choice == 0)
        assert reward == Counter(chain[burn_in:]).most_common(1)[0][0]
    assert Counter(chain).most_common(1)[0][0] != chain[-1]


def test_burn_in_has_to_leave_a_state() -> None:
    with pytest.raises(InvalidRequest, match="burn_in=3 leaves no state of 2 steps"):
        DecodingSpec.parse({"strategy": "qalign", "reward": "r", "steps": 2, "burn_in": 3})


def test_the_chain_leaves_a_state_on_which_a_guide_fails_and_never_returns() -> None:
    def fails_on_even(text: str) -> float:
        return math.nan if sum(map(ord, text)) % 2 else 1.0

    started = 0
    for seed in range(12):
        result = one_run(fails_on_even, seed=seed, beta=0.5)
        (chain,) = result.report["rewards"]
        started += chain[0] is None
        left = next(index for index, reward in enumerate(chain) if reward is not None)
        assert None not in chain[left:]
        assert not math.isnan(fails_on_even(result.choices[0].text))
    assert 0 < started < 12


def test_nothing_but_nan_is_an_error_that_names_the_guide() -> None:
    toy = Toy(random_table(50), rewards={"broken": lambda text: math.nan})
    handle = toy.submit(PROMPT, SamplingParams(seed=0), decoding={"strategy": "qalign", "reward": "broken"})
    toy.finish()
    end = toy.end(handle)
    assert isinstance(end, Failure)
    assert "broken" in str(end.error)


def test_a_stop_string_ends_a_proposal_and_its_token_can_be_cut_away() -> None:
    toy = Toy(TABLE, rewards={"r": lambda text: float(len(text))})
    sampling = SamplingParams(seed=2, max_tokens=12, stop=('"!',))
    result = toy.run(PROMPT, sampling, decoding={"strategy": "qalign", "reward": "r", "steps": 40, "beta": 0.3})
    assert all('"!' not in each.text for each in result.candidates)
    assert all(each.reward == len(each.text) for each in result.candidates)
    assert len({len(each.text) for each in result.candidates}) > 4
    assert len(result.choices[0].text) > len(result.candidates[0].text)
