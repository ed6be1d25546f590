"""Guided speculative inference against its exact law for few drafts, and the tilted law that many approach."""

import math
from collections import Counter
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from exact import assert_law, total_variation
from toy import Logits, Toy, byte_tokenizer, random_table

from trimtab.engine.errors import InvalidRequest
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.vocabulary import Vocabulary

VOCAB, LENGTH, PROMPT = 3, 2, [1]
BASE = random_table(VOCAB, scale=0.7)
SMALL: Logits = lambda prefix: 0.6 * BASE(prefix) + random_table(VOCAB, scale=0.5)([9, *prefix])  # noqa: E731
WORDS = Vocabulary(byte_tokenizer())
BETA = 1.5
Law = dict[tuple[int, ...], float]


def taste(text: str) -> float:
    """A reward drawn once per text."""
    return float(np.random.default_rng([5, *text.encode()]).uniform())


def toy(base: Logits = BASE, small: Logits = SMALL, reward: Callable[[str], float] = taste, **options: Any) -> Toy:
    made = Toy(base, rewards={"taste": reward}, pages=60_000, **options)
    made.add_lm("small", small)
    return made


def gsi(**changes: object) -> dict[str, object]:
    return {"strategy": "gsi", "draft": "small", "value": "taste", "beta": BETA, **changes}


def plain(table: Logits) -> Law:
    """Law of one model's answers, in float64."""
    law = {}
    for answer in product(range(VOCAB), repeat=LENGTH):
        rows = [table([*PROMPT, *answer[:step]]) for step in range(LENGTH)]
        law[answer] = math.prod(np.exp(z[v]) / np.exp(z).sum() for z, v in zip(rows, answer, strict=True))
    return law


def drawn(drafts: Law, scores: Law, n: int) -> Law:
    """Law of the one that the softmax of the scores draws from n drafts, over all tuples of drafts."""
    law = dict.fromkeys(drafts, 0.0)
    for pool in product(drafts, repeat=n):
        weights = [math.exp(scores[answer]) for answer in pool]
        for answer, weight in zip(pool, weights, strict=True):
            law[answer] += math.prod(drafts[each] for each in pool) * weight / sum(weights)
    return law


def tilted() -> Law:
    """beta * r~ of each answer, as a draft of the small model."""
    base, small = plain(BASE), plain(SMALL)
    return {y: BETA * taste(WORDS.decode(y)) + math.log(base[y] / small[y]) for y in base}


def soft_best_of(n: int) -> Law:
    base = plain(BASE)
    return drawn(base, {y: BETA * taste(WORDS.decode(y)) for y in base}, n)


def speculated(n: int, threshold: float) -> Law:
    law = drawn(plain(SMALL), tilted(), n)
    kept = {y: p if tilted()[y] >= BETA * threshold else 0.0 for y, p in law.items()}
    return {y: kept[y] + (1 - sum(kept.values())) * p for y, p in soft_best_of(n).items()}


def counted(decoding: dict[str, object], draws: int) -> Counter[tuple[int, ...]]:
    engine = toy()
    sampling = [SamplingParams(seed=seed, max_tokens=LENGTH) for seed in range(draws)]
    handles = [engine.submit(PROMPT, each, decoding=decoding) for each in sampling]
    engine.finish()
    return Counter(engine.result(handle).choices[0].token_ids for handle in handles)


@pytest.mark.parametrize(
    ("changes", "law"),
    [
        ({"n": 1}, lambda: plain(SMALL)),
        ({"n": 3}, lambda: drawn(plain(SMALL), tilted(), 3)),
        ({"n": 3, "draft": "base"}, lambda: soft_best_of(3)),
        ({"n": 3, "threshold": 1e9}, lambda: soft_best_of(3)),
        ({"n": 2, "threshold": 0.5}, lambda: speculated(2, 0.5)),
    ],
)
def test_the_answer_follows_the_exact_law(changes: dict[str, object], law: Callable[[], Law]) -> None:
    """With steps as long as the answer; drafts of the base, and none accepted, are soft best-of-n. Chi-square."""
    expected = law()
    assert sum(expected.values()) == pytest.approx(1)
    assert_law(counted(gsi(**changes), 1000), expected)


def test_many_drafts_of_another_model_give_the_tilted_law_of_the_base() -> None:
    """pi_base(y) exp(beta r) / Z; the total variation falls with n."""
    weights = {y: p * math.exp(BETA * taste(WORDS.decode(y))) for y, p in plain(BASE).items()}
    target = {y: weight / sum(weights.values()) for y, weight in weights.items()}
    few = [0.5 * sum(abs(drawn(plain(SMALL), tilted(), n)[y] - target[y]) for y in target) for n in (1, 2, 4)]
    far = [*few, total_variation(counted(gsi(n=24), 400), target)]
    assert sorted(far, reverse=True) == far, f"total variation {far}"
    assert far[-1] < 0.12 < 0.36 < far[0], f"total variation {far}"  # 400 draws of 9 answers are 0.05 off by chance


@pytest.mark.parametrize("temperature", [0.6, 1.0])
@pytest.mark.parametrize("threshold", [None, 0.45])
def test_a_draft_model_like_the_base_drafts_as_the_base(temperature: float, threshold: float | None) -> None:
    table = random_table(50)
    for seed in range(5):
        sampling = SamplingParams(seed=seed, max_tokens=12, temperature=temperature)
        decoding = gsi(n=4, step_tokens=3, threshold=threshold)
        results = [
            toy(table, table).run(PROMPT, sampling, decoding={**decoding, "draft": d}) for d in ("small", "base")
        ]
        assert results[0].choices[0].token_ids == results[1].choices[0].token_ids
        assert results[0].report["ess"] == pytest.approx(results[1].report["ess"])
        assert {**results[0].report, "ess": 0} == {**results[1].report, "ess": 0}


def test_the_steps_are_counted_and_the_base_writes_the_rejected_ones_alone() -> None:
    sampling = SamplingParams(seed=1, max_tokens=8)
    runs = {u: toy().run([1, 2, 0], sampling, decoding=gsi(n=4, step_tokens=2, threshold=u)) for u in (None, -1e9, 1e9)}
    kept, low, high = (runs[u].report for u in (None, -1e9, 1e9))
    assert kept == low
    assert kept["drafted"] == kept["accepted"] == 4
    assert (kept["draft_tokens"], kept["discarded_tokens"], kept["base_tokens"]) == (8, 0, 0)
    assert (high["draft_tokens"], high["discarded_tokens"], high["base_tokens"]) == (0, 8, 8)
    assert (kept["acceptance_rate"], high["acceptance_rate"]) == (1.0, 0.0)
    prompt, drafted = 2, 4 * 4 * 2  # all but the prompt's last token, and 4 drafts of each of 4 steps of 2 tokens
    assert runs[None].usage.model_tokens == {"small": prompt + drafted, "base": prompt + drafted}
    read = 3 * 2  # by the draft model, once, of what the base wrote before the last step
    assert runs[1e9].usage.model_tokens == {"small": prompt + drafted + read, "base": prompt + 2 * drafted}


def test_the_effective_sample_size_counts_drafts_that_could_have_been_drawn() -> None:
    sampling = SamplingParams(seed=1, max_tokens=6)
    flat = toy(reward=lambda text: 3.0)
    assert flat.run(PROMPT, sampling, decoding=gsi(n=5, draft="base")).report["ess"] == pytest.approx(5)
    steep = toy(random_table(200))  # all drafts differ
    assert steep.run(PROMPT, sampling, decoding=gsi(n=5, draft="base", beta=1e6)).report["ess"] == pytest.approx(1)


def test_the_reward_weighs_by_beta() -> None:
    """At a large beta the best of n drafts of the base is returned."""
    table, sampling = random_table(100), SamplingParams(seed=2, max_tokens=5)
    best = toy(table).run(PROMPT, sampling, decoding=gsi(n=8, draft="base", beta=1e5)).choices[0]
    seen: list[float] = []
    noted = toy(table, reward=lambda text: seen.append(taste(text)) or seen[-1])  # type: ignore[func-returns-value]
    other = noted.run(PROMPT, sampling, decoding=gsi(n=8, draft="base", beta=1e-5)).choices[0]
    assert len(seen) == 8
    assert taste(best.text) == max(seen) > taste(other.text)


def test_drafts_without_a_reward_are_not_drawn_and_where_there_are_none_but_such_the_base_writes() -> None:
    table = random_table(100)
    sampling = SamplingParams(seed=3, max_tokens=6)

    def picky(text: str) -> float:
        return taste(text) if taste(text) > 0.7 else math.nan

    chosen = toy(table, table, reward=picky).run(PROMPT, sampling, decoding=gsi(n=16))
    assert taste(chosen.choices[0].text) > 0.7
    late = toy(table, table, reward=lambda text: math.nan if len(text) < 6 else 0.0)
    result = late.run(PROMPT, sampling, decoding=gsi(n=3, step_tokens=3, threshold=-1e9))
    assert (result.report["accepted"], result.report["base_tokens"]) == (1, 3)
    assert len(result.choices[0].token_ids) == 6


def test_the_fallback_is_steered_as_the_request_has_it() -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=9, seed=1)
    steer = [{"method": "mixture", "weights": {"base": 0.5, "other": 2.0}}]

    def run(decoding: dict[str, object]) -> tuple[int, ...]:
        engine = toy(random_table(30), random_table(30, scale=1.7))
        engine.add_lm("other", lambda prefix: random_table(30)([8, *prefix]))
        return engine.run(PROMPT, sampling, decoding=decoding).choices[0].token_ids

    steered = run({"steer": steer})
    assert run(gsi(n=2, step_tokens=4, threshold=1e9, steer=steer)) == steered
    assert run(gsi(n=2, step_tokens=4, draft="base", steer=steer)) == steered != run(gsi(n=2, draft="base"))


def test_each_choice_is_an_answer_of_its_own_and_streams_step_by_step() -> None:
    engine = toy(random_table(60), random_table(60, scale=1.2))
    handle = engine.submit(PROMPT, SamplingParams(seed=3, max_tokens=12), n=3, decoding=gsi(n=2, step_tokens=5))
    engine.finish()
    result = engine.result(handle)
    assert len({choice.token_ids for choice in result.choices}) == 3
    assert [candidate.choice for candidate in result.candidates] == [0, 1, 2]
    for index, choice in enumerate(result.choices):
        deltas = [delta for delta in engine.deltas(handle) if delta.choice == index]
        assert "".join(delta.text for delta in deltas) == choice.text
        assert [len(delta.token_ids) for delta in deltas if delta.token_ids] == [5, 5, 2]


@pytest.mark.parametrize("draft", ["small", "base"])
def test_answers_end_at_eos_at_a_stop_string_and_within_a_step(draft: str) -> None:
    """Drafts of one step end at different places; what has ended competes and is not extended."""
    letters = [WORDS.tokens[each] for each in "abc"]

    def table(prefix: tuple[int, ...]) -> np.ndarray:
        z = np.full(257, -1e9)
        z[[*letters, 256]] = random_table(4, scale=0.5)(prefix) - [0, 0, 0, 1]
        return z

    reasons = Counter[object]()
    for seed in range(12):
        engine = toy(table, table, eos=256)
        sampling = SamplingParams(seed=seed, max_tokens=7, stop=("ba",))
        decoding = gsi(n=3, draft=draft, separator="c", step_tokens=4)
        (choice,) = engine.run(letters, sampling, decoding=decoding).choices
        assert "ba" not in choice.text
        assert choice.token_ids.count(256) == (choice.token_ids[-1] == 256)
        assert choice.finish_reason == "stop" or len(choice.token_ids) == 7
        reasons[choice.stop_reason or choice.finish_reason] += 1
    assert reasons.keys() == {"ba", "stop", "length"}


@pytest.mark.parametrize("threshold", [None, 1e9])
def test_a_budget_that_runs_out_leaves_what_was_committed(threshold: float | None) -> None:
    """Whatever model was writing, the answer begins with the steps that were streamed."""
    for budget in range(10, 70, 13):
        engine = toy(random_table(60), random_table(60, scale=1.2))
        decoding = gsi(n=3, step_tokens=3, threshold=threshold, budget={"max_model_tokens": budget})
        handle = engine.submit(PROMPT, SamplingParams(seed=1, max_tokens=12), decoding=decoding)
        engine.finish()
        result = engine.result(handle)
        assert result.stopped_by == "max_model_tokens"
        assert "".join(delta.text for delta in engine.deltas(handle)) == result.choices[0].text


def test_a_draft_model_that_is_missing_is_named() -> None:
    with pytest.raises(InvalidRequest, match="large") as caught:
        toy().submit(PROMPT, decoding=gsi(draft="large"))
    assert caught.value.param == "decoding.draft"
