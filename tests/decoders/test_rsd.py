"""Reward-guided speculative decoding against its exact law on an enumerated toy, and at its two ends."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from exact import assert_law
from toy import Logits, Toy, byte_tokenizer, random_table

from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.settings import EngineSettings
from trimtab.engine.vocabulary import Vocabulary

VOCAB, LENGTH, PROMPT = 4, 2, [1]
BASE = random_table(VOCAB, scale=0.8)
SMALL: Logits = lambda prefix: random_table(VOCAB, scale=0.8)([9, *prefix])  # noqa: E731
WORDS = Vocabulary(byte_tokenizer())
Answer = tuple[int, ...]


def taste(text: str) -> float:
    """A reward drawn once per text; a third of them below 0, a third above 1."""
    return float(np.random.default_rng([7, *text.encode()]).uniform(-1.0, 2.0))


def toy(base: Logits = BASE, small: Logits = SMALL, reward: Callable[[str], float] = taste, **options: Any) -> Toy:
    made = Toy(base, rewards={"taste": reward}, pages=60_000, **options)
    made.add_lm("small", small)
    return made


def rsd(**changes: object) -> dict[str, object]:
    return {"strategy": "rsd", "draft": "small", "value": "taste", **changes}


def probs(table: Logits, answer: Sequence[int]) -> np.ndarray:
    z = np.exp(table([*PROMPT, *answer]))
    return z / z.sum()


def exact(keeps: Callable[[float], float]) -> dict[Answer, float]:
    """Law of the answers with steps of one token, in float64."""
    law = {}
    for answer in product(range(VOCAB), repeat=LENGTH):
        probability = 1.0
        for step, token in enumerate(answer):
            drafted = probs(SMALL, answer[:step])
            kept = np.array([keeps(taste(WORDS.decode([*answer[:step], v]))) for v in range(VOCAB)]) * drafted
            probability *= kept[token] + (1 - kept.sum()) * probs(BASE, answer[:step])[token]
        law[answer] = float(probability)
    return law


@pytest.mark.parametrize(
    ("changes", "keeps"),
    [
        ({"delta": 0.5}, lambda r: float(r >= 0.5)),
        ({"accept": "clip"}, lambda r: min(1.0, max(0.0, r))),
        ({"delta": -1e9}, lambda r: 1.0),
        ({"delta": 1e9}, lambda r: 0.0),
    ],
)
def test_the_answer_follows_the_exact_law(changes: dict[str, object], keeps: Callable[[float], float]) -> None:
    """w P_draft + (1 - E[w]) P_base at every step; without drafts, plain sampling from the base. Chi-square."""
    law = exact(keeps)
    assert sum(law.values()) == pytest.approx(1)
    engine, draws = toy(), 1000
    sampling = [SamplingParams(seed=seed, max_tokens=LENGTH) for seed in range(draws)]
    handles = [engine.submit(PROMPT, each, decoding=rsd(step_tokens=1, **changes)) for each in sampling]
    engine.finish()
    counts = Counter(engine.result(handle).choices[0].token_ids for handle in handles)
    assert_law(counts, law)


def greedy(table: Logits, answer: Sequence[int], count: int) -> list[int]:
    """The answer with `count` tokens more."""
    tokens = list(answer)
    for _ in range(count):
        tokens.append(int(table([*PROMPT, *tokens]).argmax()))
    return tokens


@pytest.mark.parametrize("step_tokens", [1, 3, 100])
def test_greedy_steps_are_those_of_the_model_that_the_reward_chooses(step_tokens: int) -> None:
    base, small, length = random_table(40), random_table(40, scale=1.6), 10
    answer: list[int] = []
    written = Counter[str]()
    while len(answer) < length:
        count = min(step_tokens, length - len(answer))
        drafted = greedy(small, answer, count)
        kept = taste(WORDS.decode(drafted)) >= 0.5
        written.update({"draft_tokens" if kept else "base_tokens": count, "drafted": 1, "accepted": int(kept)})
        written["discarded_tokens"] += 0 if kept else count
        answer = drafted if kept else greedy(base, answer, count)
    result = toy(base, small).run(
        PROMPT,
        SamplingParams(temperature=0.0, max_tokens=length, seed=1),
        decoding=rsd(step_tokens=step_tokens, delta=0.5),
    )
    assert list(result.choices[0].token_ids) == answer
    rate = written["accepted"] / written["drafted"]
    expected = {name: written[name] for name in ("drafted", "accepted", "draft_tokens", "base_tokens")}
    assert result.report == {**expected, "discarded_tokens": written["discarded_tokens"], "acceptance_rate": rate}


def test_each_model_reads_every_token_once() -> None:
    """The base reads nothing while drafts are kept, and the draft model what the base wrote in their place alone."""

    def spent(delta: float) -> dict[str, int]:
        sampling = SamplingParams(seed=1, max_tokens=20)
        engine = toy(settings=EngineSettings(max_rows=4096, score_pairs=4096, prefix_cache=False, guides={}))
        return engine.run([1, 2, 3, 0, 2], sampling, decoding=rsd(step_tokens=4, delta=delta)).usage.model_tokens

    prompt, written, last_steps = 5, 20, 4 * 4
    assert spent(-1e9) == {"base": prompt - 1, "small": prompt - 1 + written}
    assert spent(1e9) == {"base": prompt - 1 + written, "small": prompt - 1 + written + last_steps}


def test_a_rejected_step_is_written_by_the_steered_base() -> None:
    """With every draft rejected, a greedy answer is that of token-level steering alone."""
    sampling = SamplingParams(temperature=0.0, max_tokens=12, seed=1)
    steer = [{"method": "mixture", "weights": {"base": 0.5, "other": 2.0}}]

    def run(decoding: dict[str, object]) -> Answer:
        engine = toy(random_table(30), random_table(30, scale=1.7))
        engine.add_lm("other", lambda prefix: random_table(30)([8, *prefix]))
        return engine.run(PROMPT, sampling, decoding=decoding).choices[0].token_ids

    steered = run({"steer": steer})
    assert run(rsd(step_tokens=4, delta=1e9, steer=steer)) == steered != run(rsd(step_tokens=4, delta=1e9))


def test_a_step_that_no_reward_can_be_given_for_is_written_by_the_base() -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=6, seed=1)
    for accept in ({"delta": -1e9}, {"accept": "clip"}):
        result = toy(reward=lambda text: math.nan).run(PROMPT, sampling, decoding=rsd(step_tokens=2, **accept))
        assert list(result.choices[0].token_ids) == greedy(BASE, [], 6)
        assert result.report["accepted"] == 0


def test_steps_end_with_the_separator_and_answers_with_a_stop_string() -> None:
    """Three letters, of which "c" ends a step and "ba" the answer, in the middle of a step."""
    letters = [WORDS.tokens[each] for each in "abc"]

    def table(prefix: Sequence[int]) -> np.ndarray:
        z = np.full(257, -1e9)
        z[letters] = random_table(3, scale=0.5)(prefix)
        return z

    scored: list[str] = []
    engine = toy(table, table, reward=lambda text: scored.append(text) or 1.0)  # type: ignore[func-returns-value]
    sampling = SamplingParams(seed=4, max_tokens=60, stop=("ba",))
    handle = engine.submit(letters, sampling, decoding=rsd(separator="c", step_tokens=5))
    engine.finish()
    text = engine.result(handle).choices[0].text
    assert text == scored[-1]
    assert engine.result(handle).choices[0].finish_reason == "stop"
    assert "ba" not in text
    steps = [later.removeprefix(earlier) for earlier, later in zip(["", *scored], scored, strict=False)]
    assert {len(step) == 5 or step.endswith("c") for step in steps[:-1]} == {True}
    assert {"c" in step[:-1] for step in steps} == {False}
    assert max(map(len, steps)) <= 5
    assert any(step.endswith("c") and len(step) < 5 for step in steps)


def test_each_choice_is_an_answer_of_its_own_and_streams_step_by_step() -> None:
    engine = toy(random_table(60), random_table(60, scale=1.2))
    handle = engine.submit(PROMPT, SamplingParams(seed=3, max_tokens=12), n=3, decoding=rsd(step_tokens=5, delta=0.5))
    engine.finish()
    result = engine.result(handle)
    assert len({choice.token_ids for choice in result.choices}) == 3
    assert [candidate.choice for candidate in result.candidates] == [0, 1, 2]
    for index, choice in enumerate(result.choices):
        deltas = [delta for delta in engine.deltas(handle) if delta.choice == index]
        assert "".join(delta.text for delta in deltas) == choice.text
        assert [len(delta.token_ids) for delta in deltas if delta.token_ids] == [5, 5, 2]


@pytest.mark.parametrize("max_tokens", [1, 3])
def test_an_answer_may_be_shorter_than_a_step(max_tokens: int) -> None:
    for delta in (-1e9, 1e9):
        result = toy().run(PROMPT, SamplingParams(seed=1, max_tokens=max_tokens), decoding=rsd(delta=delta))
        assert len(result.choices[0].token_ids) == max_tokens
        assert result.report["drafted"] == 1


def test_a_drafted_end_of_the_answer_ends_it() -> None:
    """The token that ends answers is the only one the draft model writes."""
    ends: Logits = lambda prefix: np.array([0.0, 0.0, 0.0, 60.0])  # noqa: E731
    result = toy(small=ends, eos=3).run(PROMPT, SamplingParams(seed=1, max_tokens=9), decoding=rsd(delta=-1e9))
    assert result.choices[0].token_ids == (3,)
    assert result.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("delta", [-1e9, 0.5, 1e9])
def test_a_budget_that_runs_out_leaves_what_was_committed(delta: float) -> None:
    for budget in range(3, 16, 3):
        engine = toy(random_table(60), random_table(60, scale=1.2))
        decoding = rsd(step_tokens=5, delta=delta, budget={"max_model_tokens": budget})
        handle = engine.submit(PROMPT, SamplingParams(seed=3, max_tokens=20), decoding=decoding)
        engine.finish()
        result = engine.result(handle)
        assert result.stopped_by == "max_model_tokens"
        assert len(result.choices[0].token_ids) < 20
        assert "".join(delta.text for delta in engine.deltas(handle)) == result.choices[0].text


def test_clip_takes_no_threshold() -> None:
    with pytest.raises(InvalidRequest, match="leave delta out"):
        DecodingSpec.parse(rsd(accept="clip", delta=0.7))


def test_a_draft_model_that_is_missing_is_named() -> None:
    with pytest.raises(InvalidRequest, match="large") as caught:
        toy().submit(PROMPT, decoding=rsd(draft="large"))
    assert caught.value.param == "decoding.draft"
