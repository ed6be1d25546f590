"""CARDS against its exact law on an enumerated toy, and against plain sampling where everything is accepted."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from toy import Toy, byte_tokenizer, random_table

from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.results import Result
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.vocabulary import Vocabulary

VOCAB, LENGTH, PROMPT = 3, 3, [1]
TABLE = random_table(VOCAB, scale=1.2)
WORDS = Vocabulary(byte_tokenizer())
Tokens = tuple[int, ...]
Score = Callable[[str], float]


def taste(text: str) -> float:
    """A reward drawn once per text; that of the empty text is 0.4."""
    return float(np.random.default_rng([0, *text.encode()]).normal()) if text else 0.4


def probabilities(answer: Tokens) -> np.ndarray:
    z = TABLE([*PROMPT, *answer])
    return np.exp(z) / np.exp(z).sum()


@dataclass(frozen=True)
class Law:
    """The paper's algorithm in float64: every segment, every chance to accept or to give up."""

    target: float
    alpha: float = 0.5
    beta: float = 0.7
    hard: bool = False
    entropy: float = 0.7
    min_segment: int = 1
    max_segment: int = 2
    length: int = 128
    attempts: int = 3

    def segments(self, answer: Tokens, written: int = 0) -> Iterator[tuple[Tokens, float]]:
        """Where a segment may lead, with the probability to propose it."""
        p = probabilities(answer)
        unsure = written >= self.min_segment and -(p * np.log(p)).sum() >= self.entropy
        if unsure or written == self.max_segment or len(answer) == LENGTH:
            yield answer, 1.0
            return
        for token in range(VOCAB):
            for end, probability in self.segments((*answer, token), written + 1):
                yield end, probability * float(p[token])

    def acceptance(self, answer: Tokens) -> float:
        first = (1 - self.alpha) * taste("") + self.alpha * self.target
        tau = first + len(answer) / min(self.length, LENGTH) * (self.target - first)
        gap = taste(WORDS.decode(answer)) - min(tau, self.target)
        return float(gap >= 0) if self.hard else min(1.0, math.exp(min(gap, 0.0) / self.beta))

    def step(self, answer: Tokens) -> dict[Tokens, float]:
        """Law of the next accepted segment."""
        proposals = dict(self.segments(answer))
        accepted = {end: p * self.acceptance(end) for end, p in proposals.items()}
        refused = 1.0 - sum(accepted.values())
        law = {end: p * sum(refused**k for k in range(self.attempts)) for end, p in accepted.items()}
        below = 0.0  # sub-probability to propose and refuse something worse
        for end in sorted(proposals, key=lambda end: taste(WORDS.decode(end))):
            here = proposals[end] - accepted[end]
            law[end] += (below + here) ** self.attempts - below**self.attempts
            below += here
        return law

    def answers(self) -> dict[Tokens, float]:
        open_: dict[Tokens, float] = {(): 1.0}
        done: dict[Tokens, float] = {}
        while open_:
            answer, probability = open_.popitem()
            for end, p in self.step(answer).items():
                where = done if len(end) == LENGTH else open_
                where[end] = where.get(end, 0.0) + probability * p
        return done


LAWS = {
    "soft": Law(target=0.5),
    "hard": Law(target=0.5, hard=True),
    "early target": Law(target=1.5, length=2, alpha=0.0, beta=0.5, attempts=8),
    "falling": Law(target=-0.6, alpha=0.0, beta=0.2, attempts=8),
    "out of reach": Law(target=50.0, hard=True, attempts=4),
    "one try": Law(target=0.5, attempts=1, min_segment=2),
}


@pytest.mark.parametrize("name", LAWS)
def test_the_law_sums_to_one(name: str) -> None:
    assert sum(LAWS[name].answers().values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "parallel"),
    [("soft", 1), ("soft", 2), ("hard", 4), ("early target", 2), ("falling", 1), ("out of reach", 3), ("one try", 3)],
)
def test_the_answer_follows_the_exact_law(name: str, parallel: int) -> None:
    """Chi-square on 1000 draws; drawing several segments at once changes nothing."""
    how = LAWS[name]
    law = how.answers()
    draws = 1000
    decoding = {"strategy": "cards", "reward": "taste", "parallel": parallel, **vars(how)}
    toy = Toy(TABLE, rewards={"taste": taste}, pages=40_000)
    sampling = [SamplingParams(seed=seed, max_tokens=LENGTH) for seed in range(draws)]
    handles = [toy.submit(PROMPT, each, decoding=decoding) for each in sampling]
    toy.finish()
    counts = dict.fromkeys(law, 0)
    for handle in handles:
        counts[toy.result(handle).choices[0].token_ids] += 1
    expected = np.array(list(law.values())) * draws
    observed = np.array(list(counts.values()))
    variation = 0.5 * np.abs(observed - expected).sum() / draws
    common = expected >= 5
    statistic = ((observed - expected) ** 2 / expected.clip(min=1e-9))[common].sum()
    freedom = max(1, common.sum() - 1)
    # The chi-square quantile at 0.9999, by Wilson and Hilferty's cube.
    limit = freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < limit, f"chi2 {statistic:.1f} > {limit:.1f}, total variation {variation:.4f}"


ROOM, EOS = random_table(12), 3
"""a toy of which every token is one character"""
ANYTHING = {"hard": True, "target": -1e9}


def search(
    sampling: SamplingParams, *, choices: int = 1, reward: Score = taste, eos: int | None = EOS, **changes: Any
) -> Result:
    toy = Toy(ROOM, eos=eos, rewards={"taste": reward, "other": lambda text: -taste(text)})
    decoding = {"strategy": "cards", "reward": "taste", "target": 0.0, "entropy": 1.5, "min_segment": 2, **changes}
    return toy.run(PROMPT, sampling, n=choices, decoding=decoding)


@pytest.mark.parametrize("parallel", [1, 4])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_p": 0.9}, {"stop": ("$%", "!")}, {"max_tokens": 1}])
def test_a_hard_threshold_below_everything_is_plain_sampling_with_the_same_seed(
    parallel: int, sampling: Mapping[str, Any]
) -> None:
    for seed in range(8):
        params = SamplingParams(seed=seed, **{"max_tokens": 30, **sampling})
        plain = Toy(ROOM, eos=EOS).run(PROMPT, params, n=2)
        result = search(params, choices=2, parallel=parallel, max_segment=7, **ANYTHING)
        assert result.choices == plain.choices
        assert result.report["acceptance_rate"] == 1.0
        assert result.report["proposals"] == parallel * result.report["segments"]


def test_no_token_at_all_is_an_answer_too() -> None:
    result = search(SamplingParams(seed=1, max_tokens=0))
    assert result.choices[0].token_ids == ()


def test_the_report_counts_what_was_drawn() -> None:
    """Nothing is ever accepted: 5 rejections, in rounds of 2, for each segment of 3 tokens."""
    result = search(
        SamplingParams(seed=1, max_tokens=9), eos=None, hard=True, target=1e9, attempts=5, parallel=2, max_segment=3,
        entropy=99.0,
    )  # fmt: skip
    assert result.report == {"acceptance_rate": 0.0, "segments": 3, "forced": 3, "proposals": 15}
    assert result.usage.model_tokens["base"] == 15 * 3 + len(PROMPT) - 1


def test_one_value_leads_and_another_judges() -> None:
    for seed in range(4):
        sampling = SamplingParams(seed=seed, max_tokens=8)
        led = search(sampling, value="other", target=0.3)
        assert led.choices == search(sampling, reward=lambda text: -taste(text), target=0.3).choices
        assert led.candidates[0].reward == pytest.approx(taste(led.choices[0].text))
        assert led.candidates[0].value == pytest.approx(-taste(led.choices[0].text))


def test_a_segment_on_which_the_guide_fails_is_not_accepted() -> None:
    """The guide fails on every text with the most likely first letter."""
    likely = WORDS.decode([int(ROOM(PROMPT).argmax())])

    def fragile(text: str) -> float:
        return math.nan if likely in text else 0.0

    for seed in range(8):
        assert likely not in search(SamplingParams(seed=seed, max_tokens=5), reward=fragile, **ANYTHING).choices[0].text


def test_without_any_value_the_answer_is_written_all_the_same() -> None:
    """The guide fails on the empty text, so the threshold is the target from the start; then on everything."""
    result = search(SamplingParams(seed=1, max_tokens=9), reward=lambda text: 1.0 if text else math.nan, target=1.0)
    assert result.report["acceptance_rate"] == 1.0
    failed = search(SamplingParams(seed=1, max_tokens=9), reward=lambda text: math.nan, attempts=3)
    assert failed.report["forced"] == failed.report["segments"] > 0
    assert failed.choices[0].token_ids


def test_accepted_segments_are_sent_as_they_come() -> None:
    toy = Toy(ROOM, rewards={"taste": taste})
    decoding = {"strategy": "cards", "reward": "taste", "target": 0.5, "entropy": 99.0, "max_segment": 4}
    handle = toy.submit(PROMPT, SamplingParams(seed=1, max_tokens=16), decoding=decoding)
    toy.finish()
    deltas, (choice,) = toy.deltas(handle), toy.result(handle).choices
    sent = [delta.token_ids for delta in deltas if delta.token_ids]
    assert sent == [choice.token_ids[start : start + 4] for start in range(0, 16, 4)]
    assert "".join(delta.text for delta in deltas) == choice.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "required"),
        ({"target": math.inf}, "finite"),
        ({"target": 0.0, "beta": 0.0}, "greater than 0"),
        ({"target": 0.0, "min_segment": 9, "max_segment": 8}, "above max_segment"),
        ({"target": 0.0, "attempts": 257}, "less than or equal to 256"),
    ],
)
def test_a_wrong_parameter_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        DecodingSpec.parse({"strategy": "cards", "reward": "x", **changes})
