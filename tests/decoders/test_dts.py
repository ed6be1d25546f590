"""Diffusion Tree Sampling and Search over text: exact targets, what the tree holds, and small pools."""

import math
from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from exact import answer_law, total_variation
from toy import Toy, random_table

from trimtab.decoders.search.segments import Node
from trimtab.engine.results import Failure, Result
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.sequence import Sequence

VOCAB, LENGTH, PROMPT = 3, 3, [1]
TABLE = random_table(VOCAB, scale=0.8)
LETTERS = '!"#'  # the toy's first tokens
BETA = 0.6


BASE = {
    "".join(LETTERS[token] for token in answer): probability
    for answer, probability in answer_law(TABLE, PROMPT, VOCAB, LENGTH).items()
}
REWARD = dict(zip(BASE, map(float, np.random.default_rng(0).normal(size=len(BASE))), strict=True))
Z = sum(p * math.exp(REWARD[y] / BETA) for y, p in BASE.items())
TARGET = {y: p * math.exp(REWARD[y] / BETA) / Z for y, p in BASE.items()}


def results(requests: int, **parameters: Any) -> list[Result]:
    toy = Toy(TABLE, pages=200_000, rewards={"r": REWARD.__getitem__})
    decoding = {"strategy": "dts", "reward": "r", "block": 1, "beta": BETA, **parameters}
    handles = [
        toy.submit(PROMPT, SamplingParams(seed=i, max_tokens=LENGTH), decoding=decoding) for i in range(requests)
    ]
    toy.finish()
    return [toy.result(handle) for handle in handles]


def variation(found: list[Result], law: Mapping[str, float]) -> float:
    return total_variation(Counter(result.choices[0].text for result in found), law)


def test_answers_approach_the_target_as_simulations_grow() -> None:
    """In float64, the base is as far as one simulation; 250 exact draws are 0.11 off."""
    far = 0.5 * sum(abs(BASE[y] - TARGET[y]) for y in BASE)
    one, few, many = (
        variation(results(requests, simulations=n), TARGET) for requests, n in ((1200, 1), (600, 8), (250, 48))
    )
    told = (
        f"total variation: {one:.3f} after 1 simulation, {few:.3f} after 8, {many:.3f} after 48; the base's {far:.3f}"
    )
    assert abs(one - far) < 0.06, told
    assert few < one - 0.1, told
    assert many < 0.18, told
    assert many < few, told


def test_the_root_learns_the_normaliser() -> None:
    errors = []
    for simulations in (4, 96):
        found = [each.report["log_normaliser"] for each in results(40, simulations=simulations, width=2.0, alpha=0.8)]
        errors.append(np.abs(np.array(found) - math.log(Z)).mean())
    assert errors[1] < 0.2, errors
    assert errors[1] < errors[0] / 2, errors


def test_whole_answers_alone_are_soft_best_of_n() -> None:
    """width = alpha = 1: the drafts are best_of_n's, the answer is drawn by exp(r / beta), and Z_hat is unbiased."""
    found = results(600, simulations=5, parallel=2, width=1.0, alpha=1.0)
    toy = Toy(TABLE, rewards={"r": REWARD.__getitem__})
    gaps = []
    for seed, result in enumerate(found):
        weights = np.exp([REWARD[each.text] / BETA for each in result.candidates])
        gaps.append((result.choices[0].text == result.candidates[0].text) - _share(result, weights))
        assert result.report["log_normaliser"] == pytest.approx(math.log(weights.mean()))
        if seed < 10:
            sampling = SamplingParams(seed=seed, max_tokens=LENGTH)
            drafts = toy.run(PROMPT, sampling, decoding={"strategy": "best_of_n", "n": 5, "reward": "r"})
            assert [each.text for each in drafts.candidates] == [each.text for each in result.candidates]
    assert abs(np.mean(gaps)) < 4 * np.std(gaps) / len(gaps) ** 0.5


def _share(result: Result, weights: np.ndarray) -> float:
    """What all drafts of the first one's text weigh together, of everything."""
    same = [each.text == result.candidates[0].text for each in result.candidates]
    return float(weights[same].sum() / weights.sum())


def written(*tokens: int) -> Sequence:
    """A finished answer, as far as a tree looks at it."""
    answer: Any = SimpleNamespace(answer=array("q", tokens), generated=len(tokens), finish="stop")
    return answer  # type: ignore[no-any-return]


def test_the_soft_value_of_a_node_is_the_mean_over_what_the_model_drew() -> None:
    """log sum_c (drawn_c / drawn) exp(value(c)), level by level, a segment that came twice counting twice."""
    empty: Any = SimpleNamespace(generated=0, finish=None)
    root = Node(empty, 0)
    assert root.add(written(1, 2, 3, 4, 5), 2, 0.0)
    assert root.add(written(1, 2, 3, 4, 6), 2, math.log(3.0))
    assert root.add(written(1, 2, 9), 2, math.log(11.0))
    assert root.add(written(7), 2, -math.inf)
    assert not root.add(written(1, 2, 9), 2, math.log(11.0))
    below = root.children[1, 2]
    assert math.exp(below.children[3, 4].value) == pytest.approx((1 + 3) / 2)
    assert math.exp(below.value) == pytest.approx((2 * 2 + 2 * 11) / 4)
    assert math.exp(root.value) == pytest.approx((4 * 6.5 + 0) / 5)
    assert below.add(written(1, 2, 8), 2, math.log(3.5))  # a continuation of the node alone changes no count above it
    assert math.exp(below.value) == pytest.approx((2 * 2 + 2 * 11 + 3.5) / 5)
    assert math.exp(root.value) == pytest.approx((4 * 5.9 + 0) / 5)
    assert [child.final for child in (below, root.children[7,], below.children[9,])] == [False, True, True]


def odd(text: str) -> float:
    return float(sum(map(ord, text)) % 31) / 10


def run(
    strategy: str,
    *,
    reward: Callable[[str], float] = odd,
    n: int = 1,
    sampling: SamplingParams | None = None,
    vocab: int = 50,
    **parameters: Any,
) -> Result:
    toy = Toy(random_table(vocab), rewards={"r": reward})
    decoding = {"strategy": strategy, "reward": "r", "block": 2, **parameters}
    return toy.run(PROMPT, sampling or SamplingParams(seed=1, max_tokens=8), n=n, decoding=decoding)


@pytest.mark.parametrize("strategy", ["dts", "dts_star"])
def test_one_simulation_is_plain_sampling(strategy: str) -> None:
    for seed in range(5):
        sampling = SamplingParams(seed=seed, max_tokens=8)
        plain = Toy(random_table(50)).run(PROMPT, sampling).choices[0].token_ids
        assert run(strategy, sampling=sampling, simulations=1).choices[0].token_ids == plain


def test_simulations_that_know_nothing_of_each_other_are_best_of_n() -> None:
    best = Toy(random_table(50), rewards={"r": odd}).run(
        PROMPT,
        SamplingParams(seed=1, max_tokens=8),
        n=2,
        decoding={"strategy": "best_of_n", "n": 12, "reward": "r"},
    )
    found = run("dts_star", n=2, simulations=12, parallel=12)
    assert [each.token_ids for each in found.choices] == [each.token_ids for each in best.choices]
    assert run("dts", simulations=12, parallel=12, select="argmax").choices == best.choices[:1]


def test_later_simulations_go_on_from_what_is_there() -> None:
    """A small width keeps to few beginnings and decodes less; width and alpha both say how few."""
    wide = run("dts", simulations=64, parallel=4, alpha=1.0)
    narrow = run("dts", simulations=64, parallel=4, alpha=0.5)
    narrower = run("dts", simulations=64, parallel=4, alpha=0.5, width=0.3)
    beginnings = [len({each.text[:2] for each in result.candidates}) for result in (wide, narrow, narrower)]
    spent = [result.usage.model_tokens["base"] for result in (wide, narrow, narrower)]
    assert beginnings[1] <= 8 < beginnings[0]
    assert beginnings[2] == 4
    assert spent[0] == 64 * 8
    assert spent[0] > spent[1] > 0
    assert all(len(result.candidates) == 64 for result in (wide, narrow, narrower))


def test_the_report_counts_the_tree() -> None:
    result = run("dts_star", simulations=24)
    prefixes = {each.text[:k] for each in result.candidates for k in range(0, 9, 2)}
    assert result.report["nodes"] == len(prefixes)
    assert result.report["depth"] == 4
    assert result.report["simulations"] == 24
    rewards = [each.reward for each in result.candidates if each.reward is not None]
    assert result.report["best_reward"] == max(rewards) == result.candidates[rewards.index(max(rewards))].reward


def climb(text: str) -> float:
    """A reward that adds up along the answer, so that good beginnings are worth going on with."""
    return sum((ord(each) * 7919 % 13) / 13 for each in text)


def test_dts_star_finds_better_answers_than_whole_ones_for_the_same_tokens() -> None:
    """64 simulations of this tree decode as much as 40 whole answers, which are best-of-n."""
    toy = Toy(random_table(50), pages=100_000, rewards={"r": climb})
    handles: dict[str, list[object]] = {"tree": [], "whole": []}
    for name, options in {"tree": {"simulations": 64}, "whole": {"simulations": 40, "alpha": 1.0}}.items():
        decoding = {
            "strategy": "dts_star",
            "reward": "r",
            "block": 1,
            "beta": 0.1,
            "c": 0.1,
            "width": 2.0,
            "parallel": 4,
        }
        for seed in range(100, 160):
            sampling = SamplingParams(seed=seed, max_tokens=4)
            handles[name].append(toy.submit(PROMPT, sampling, decoding={**decoding, **options}))
    toy.finish()
    tree, whole = ([toy.result(handle) for handle in each] for each in handles.values())
    spent = [np.mean([each.usage.model_tokens["base"] for each in found]) for found in (tree, whole)]
    best = [np.mean([each.report["best_reward"] for each in found]) for found in (tree, whole)]
    assert spent[0] == pytest.approx(spent[1], rel=0.02)
    assert best[0] > best[1] + 0.1, f"{best[0]:.3f} against {best[1]:.3f}"


def test_exploration_spreads_the_simulations() -> None:
    def busiest(c: float) -> int:
        result = run("dts_star", reward=climb, simulations=80, parallel=4, beta=0.1, c=c)
        return max(Counter(each.text[:2] for each in result.candidates).values())

    greedy, spread = busiest(0.0), busiest(1e4)
    assert greedy > spread + 10
    assert spread < 40


def test_a_rule_that_counts_sees_draws_from_the_tree() -> None:
    """The likeliest letter has the most drafts and another the weight."""
    toy = Toy(lambda prefix: np.array([3.0, 1.0, 0.0]), rewards={"r": lambda text: 20.0 * (text == '"')})
    decoding = {"strategy": "dts", "reward": "r", "block": 1, "simulations": 48}
    vote = {"rule": "mbr", "similarity": "exact"}
    result = toy.run(PROMPT, SamplingParams(seed=4, max_tokens=1), decoding={**decoding, "select": vote})
    assert Counter(each.text for each in result.candidates).most_common(1)[0][0] == "!"
    assert result.choices[0].text == '"'


@pytest.mark.parametrize("strategy", ["dts", "dts_star"])
@pytest.mark.parametrize(
    ("reward", "sampling", "parameters"),
    [
        (lambda text: 0.5, SamplingParams(seed=3, max_tokens=8), {"block": 2}),
        (odd, SamplingParams(seed=3, max_tokens=3), {"block": 16}),
        (odd, SamplingParams(seed=3, max_tokens=8, stop=('"!',)), {"block": 3}),
        (odd, SamplingParams(seed=3, max_tokens=8, temperature=0.0), {"block": 3}),
    ],
)
def test_equal_rewards_short_limits_stop_strings_and_greedy_decoding(
    strategy: str, reward: Callable[[str], float], sampling: SamplingParams, parameters: dict[str, Any]
) -> None:
    result = run(strategy, reward=reward, sampling=sampling, n=3, vocab=3, simulations=20, **parameters)
    assert len(result.choices) == 3
    assert len(result.candidates) == 20
    for each in (*result.choices, *result.candidates):
        assert not any(stop in each.text for stop in sampling.stop)
        assert len(each.text) == sampling.max_tokens or each.finish_reason == "stop"
    assert all(each.reward == reward(each.text) for each in result.candidates)
    if sampling.temperature == 0.0:
        assert {each.text for each in result.candidates} == {result.choices[0].text}


@pytest.mark.parametrize("strategy", ["dts", "dts_star"])
def test_answers_on_which_a_guide_fails_weigh_nothing(strategy: str) -> None:
    for seed in range(10):
        result = run(
            strategy,
            reward=lambda text: math.nan if "!" in text else 1.0,
            sampling=SamplingParams(seed=seed, max_tokens=2),
            vocab=3,
            block=1,
        )
        assert "!" not in result.choices[0].text
        assert result.report["best_reward"] == 1.0


@pytest.mark.parametrize("strategy", ["dts", "dts_star"])
def test_nothing_but_nan_is_an_error_that_names_the_guide(strategy: str) -> None:
    toy = Toy(TABLE, rewards={"broken": lambda text: math.nan})
    decoding = {"strategy": strategy, "reward": "broken", "block": 1}
    handle = toy.submit(PROMPT, SamplingParams(seed=0, max_tokens=3), decoding=decoding)
    toy.finish()
    end = toy.end(handle)
    assert isinstance(end, Failure)
    assert "broken" in str(end.error)
