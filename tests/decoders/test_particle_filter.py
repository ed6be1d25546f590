"""The particle filter against its exact target on an enumerated toy model, and what becomes of particles."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from exact import answer_law, total_variation
from toy import Toy, random_table

from trimtab.engine.results import Failure, Result
from trimtab.engine.sampling import SamplingParams

VOCAB, LENGTH, PROMPT = 3, 3, [1]
TABLE = random_table(VOCAB, scale=0.8)
LETTERS = '!"#'  # the toy's first tokens


BASE = {
    "".join(LETTERS[token] for token in answer): probability
    for answer, probability in answer_law(TABLE, PROMPT, VOCAB, LENGTH).items()
}
REWARD = dict(zip(BASE, map(float, np.random.default_rng(0).normal(size=len(BASE))), strict=True))


def target(beta: float) -> tuple[dict[str, float], float]:
    """pi(y) exp(beta r(y)) / Z, and Z."""
    weights = {y: p * math.exp(beta * REWARD[y]) for y, p in BASE.items()}
    z = sum(weights.values())
    return {y: w / z for y, w in weights.items()}, z


def results(requests: int, **parameters: Any) -> list[Result]:
    """Answers of LENGTH tokens; `r` is REWARD, and `wrong` sees the opposite in what is unfinished."""
    wrong = {y[:k]: -0.7 * REWARD[y] for y in BASE for k in range(1, LENGTH)}
    toy = Toy(TABLE, pages=200_000, rewards={"r": lambda text: REWARD.get(text, 0.0), "wrong": wrong.__getitem__})
    decoding = {"strategy": "particle_filter", "reward": "r", "block": 1, **parameters}
    handles = [
        toy.submit(PROMPT, SamplingParams(seed=i, max_tokens=LENGTH), decoding=decoding) for i in range(requests)
    ]
    toy.finish()
    return [toy.result(handle) for handle in handles]


def variation(found: list[Result], law: Mapping[str, float]) -> float:
    return total_variation(Counter(result.choices[0].text for result in found), law)


def test_answers_approach_the_target_as_particles_grow_even_with_wrong_values() -> None:
    law, _ = target(beta=1.5)
    far = 0.5 * sum(abs(BASE[y] - law[y]) for y in law)
    few = variation(results(1500, n=1, beta=1.5), law)
    many = variation(results(900, n=16, beta=1.5, value="wrong"), law)
    told = f"total variation: {few:.3f} with 1 particle, {many:.3f} with 16; the base's {far:.3f}"
    assert abs(few - far) < 0.06, told
    assert many < 0.14, told  # 900 exact draws are 0.06 off


@pytest.mark.parametrize("parameters", [{"ess": 1.0}, {"ess": 0.7, "value": "wrong"}, {"ess": 0.0}, {"block": 2}])
def test_the_normaliser_estimate_is_unbiased(parameters: dict[str, Any]) -> None:
    """E[Z_hat] = Z exactly, whatever n and the values: the mean weights of the stages multiply."""
    _, z = target(beta=1.0)
    estimates = [math.exp(each.report["log_normaliser"]) for each in results(1000, n=4, **parameters)]
    error = np.std(estimates) / len(estimates) ** 0.5
    assert abs(np.mean(estimates) - z) < 4 * error, f"{np.mean(estimates):.4f} +- {error:.4f}, exact {z:.4f}"


def test_without_resampling_the_answer_is_drawn_by_its_weight() -> None:
    """Given the particles, the answer i has probability exp(beta r_i) / sum_j exp(beta r_j)."""
    gaps = []
    for result in results(1000, n=3, ess=0.0, beta=2.0):
        weights = np.exp([2.0 * each.reward for each in result.candidates])  # type: ignore[operator]
        first = result.candidates[0].choice == 0
        gaps.append(first - weights[0] / weights.sum())
    assert abs(np.mean(gaps)) < 4 * np.std(gaps) / len(gaps) ** 0.5


def same_as_best_of_n(n: int, choices: int, seed: int, **parameters: Any) -> None:
    toy = Toy(random_table(50), rewards={"r": lambda text: float(sum(map(ord, text)) % 13)})
    sampling = SamplingParams(seed=seed, max_tokens=7)
    best = toy.run(PROMPT, sampling, n=choices, decoding={"strategy": "best_of_n", "n": n, "reward": "r"})
    decoding = {"strategy": "particle_filter", "n": n, "reward": "r", "block": 3, **parameters}
    found = toy.run(PROMPT, sampling, n=choices, decoding=decoding)
    assert [each.token_ids for each in found.choices] == [each.token_ids for each in best.choices]
    assert [(each.text, each.reward, each.choice) for each in found.candidates] == [
        (each.text, each.reward, each.choice) for each in best.candidates
    ]


@pytest.mark.parametrize("choices", [1, 3])
def test_without_resampling_the_best_particle_is_best_of_n(choices: int) -> None:
    for seed in range(5):
        same_as_best_of_n(6, choices, seed, ess=0.0, select="argmax")


def test_one_particle_is_plain_sampling() -> None:
    for seed in range(5):
        toy = Toy(random_table(50), rewards={"r": lambda text: float(len(text))})
        sampling = SamplingParams(seed=seed, max_tokens=7)
        decoding = {"strategy": "particle_filter", "n": 1, "reward": "r", "block": 2, "ess": 1.0}
        assert toy.run(PROMPT, sampling, decoding=decoding).choices == toy.run(PROMPT, sampling).choices


@pytest.mark.parametrize("n", [3, 6, 7])
def test_particles_of_equal_weight_stay_as_they_are(n: int) -> None:
    """Resampling them copies each once, and the first copy is the particle itself with its random stream."""
    toy = Toy(random_table(50), rewards={"flat": lambda text: 0.25})
    sampling = SamplingParams(seed=n, max_tokens=8)
    decoding = {"strategy": "particle_filter", "n": n, "reward": "flat", "block": 2, "ess": 1.0, "beta": 3.0}
    result = toy.run(PROMPT, sampling, decoding=decoding)
    drafts = toy.run(PROMPT, sampling, decoding={"strategy": "best_of_n", "n": n, "reward": "flat"})
    assert [each.text for each in result.candidates] == [each.text for each in drafts.candidates]
    assert result.report["ess"] == pytest.approx([n] * 4)
    assert result.report["log_normaliser"] == pytest.approx(0.75)


FIRST = LETTERS[int(TABLE(PROMPT).argmax())]


def hungry(text: str) -> float:
    """Overwhelmingly for answers that begin with the likeliest letter."""
    return 50.0 * (text[0] == FIRST)


def test_a_heavy_particle_takes_over_and_its_copies_go_their_own_ways() -> None:
    toy = Toy(TABLE, rewards={"r": hungry})
    decoding = {"strategy": "particle_filter", "n": 16, "reward": "r", "block": 1, "ess": 1.0}
    handles = [toy.submit(PROMPT, SamplingParams(seed=s, max_tokens=6), decoding=decoding) for s in range(10)]
    toy.finish()
    for handle in handles:
        result = toy.result(handle)
        assert {each.text[0] for each in result.candidates} == {FIRST}
        assert len({each.text for each in result.candidates}) > 8
        assert [each.reward for each in result.candidates] == [50.0] * 16
        assert result.report["resamplings"] == 1
        assert result.report["ess"][0] < 16
        assert result.report["ess"][1:] == [16] * 5


def test_what_all_particles_share_is_streamed_before_the_end() -> None:
    toy = Toy(TABLE, rewards={"r": hungry})
    decoding = {"strategy": "particle_filter", "n": 16, "reward": "r", "block": 1, "ess": 1.0}
    handle = toy.submit(PROMPT, SamplingParams(seed=0, max_tokens=6), decoding=decoding)
    toy.finish()
    deltas = [delta.text for delta in toy.deltas(handle)]
    assert deltas[0].startswith(FIRST)
    assert len(deltas) > 1
    assert "".join(deltas) == toy.result(handle).choices[0].text


def test_a_rule_that_counts_sees_each_particle_as_often_as_it_weighs() -> None:
    """The most frequent draft loses the vote against one that weighs e^20 times as much."""
    toy = Toy(lambda prefix: np.array([3.0, 1.0, 0.0]), rewards={"r": lambda text: 20.0 * (text == '"')})
    sampling = SamplingParams(seed=4, max_tokens=1)
    shared = {"strategy": "particle_filter", "n": 32, "reward": "r", "block": 1}
    voted = toy.run(PROMPT, sampling, decoding={**shared, "select": {"rule": "mbr", "similarity": "exact"}})
    drafts = Counter(
        each.text for each in toy.run(PROMPT, sampling, decoding={**shared, "select": "argmax"}).candidates
    )
    assert drafts.most_common(1)[0][0] == "!"
    assert drafts['"'] > 0
    assert voted.choices[0].text == '"'


def test_steps_end_at_the_separator() -> None:
    seen: list[str] = []

    def value(text: str) -> float:
        seen.append(text)
        return 0.0

    toy = Toy(TABLE, rewards={"r": lambda text: 0.0, "v": value})
    decoding = {"strategy": "particle_filter", "n": 4, "reward": "r", "value": "v", "separator": "#"}
    result = toy.run(PROMPT, SamplingParams(seed=1, max_tokens=12), decoding=decoding)
    assert len(seen) > 4
    assert all(text.endswith("#") for text in seen)
    assert {text.count("#") for text in seen} >= {1, 2}
    assert len(result.report["ess"]) > 2


@pytest.mark.parametrize(
    ("parameters", "stop", "most_stages"),
    [({"block": 16}, None, 1), ({"block": 2}, "#", 4), ({"block": 3, "ess": 1.0}, '"!', 3)],
)
def test_short_limits_and_stop_strings_inside_a_block(
    parameters: dict[str, Any], stop: str | None, most_stages: int
) -> None:
    toy = Toy(TABLE, rewards={"r": lambda text: 0.3 * len(text)})
    sampling = SamplingParams(max_tokens=8, seed=2, stop=() if stop is None else (stop,))
    result = toy.run(PROMPT, sampling, n=2, decoding={"strategy": "particle_filter", "reward": "r", **parameters})
    assert len(result.report["ess"]) <= most_stages
    assert len(result.choices) == 2
    for each in (*result.choices, *result.candidates):
        assert stop is None or stop not in each.text
        assert len(each.text) == 8 or each.finish_reason == "stop"


def failing(bad: Callable[[str], bool]) -> Callable[[str], float]:
    return lambda text: math.nan if bad(text) else 0.0


def test_particles_on_which_a_guide_fails_are_lost() -> None:
    toy = Toy(TABLE, rewards={"r": failing(lambda text: "!" in text), "end": failing(lambda text: text[-1] == "!")})
    handles = {
        name: [
            toy.submit(
                PROMPT,
                SamplingParams(seed=s, max_tokens=3),
                decoding={"strategy": "particle_filter", "reward": name, "n": 12, "block": 1},
            )
            for s in range(30)
        ]
        for name in ("r", "end")
    }
    toy.finish()
    assert all("!" not in toy.result(handle).choices[0].text for handle in handles["r"])
    assert all(toy.result(handle).choices[0].text[-1] != "!" for handle in handles["end"])


def test_nothing_but_nan_is_an_error_that_names_the_guide() -> None:
    toy = Toy(TABLE, rewards={"broken": failing(lambda text: True)})
    decoding = {"strategy": "particle_filter", "reward": "broken", "block": 1, "ess": 1.0}
    handle = toy.submit(PROMPT, SamplingParams(seed=0, max_tokens=3), decoding=decoding)
    toy.finish()
    end = toy.end(handle)
    assert isinstance(end, Failure)
    assert "broken" in str(end.error)
