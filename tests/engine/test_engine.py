"""The engine over a toy model: what a request gets does not depend on who else is there or on memory."""

import math
from collections.abc import Generator, Sequence

import numpy as np
import pytest
from toy import Toy, random_table

from trimtab.engine.errors import Cancelled, GuideError
from trimtab.engine.program import Answer, Context, Extend, Op, Score
from trimtab.engine.results import Failure
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.settings import EngineSettings

VOCAB = 256
TABLE = random_table(VOCAB)
PROMPTS = [np.random.default_rng(i).integers(0, VOCAB, 3 + 5 * i).tolist() for i in range(8)]


def settings(**changes: object) -> EngineSettings:
    return EngineSettings.model_validate({"max_rows": 64, "guides": {}, **changes})


def sampled(seed: int, tokens: int = 12) -> SamplingParams:
    return SamplingParams(seed=seed, max_tokens=tokens)


def alone(prompt: Sequence[int], sampling: SamplingParams, **options: object) -> tuple[int, ...]:
    return Toy(TABLE, settings=settings()).run(prompt, sampling, **options).choices[0].token_ids


def test_greedy_follows_the_argmax() -> None:
    prefix = PROMPTS[0].copy()
    for _ in range(6):
        prefix.append(int(TABLE(prefix).argmax()))
    got = alone(PROMPTS[0], SamplingParams(temperature=0, max_tokens=6))
    assert list(got) == prefix[len(PROMPTS[0]) :]


@pytest.mark.parametrize("changes", [{}, {"prefill_tokens": 3}, {"max_rows": 2}, {"prefix_cache": False}])
def test_a_request_gets_the_same_tokens_alone_and_in_any_batch(changes: dict[str, object]) -> None:
    toy = Toy(TABLE, settings=settings(**changes))
    handles = [toy.submit(prompt, sampled(seed)) for seed, prompt in enumerate(PROMPTS)]
    toy.finish()
    for seed, (prompt, handle) in enumerate(zip(PROMPTS, handles, strict=True)):
        assert toy.result(handle).choices[0].token_ids == alone(prompt, sampled(seed))
    width = {"max_rows": 2, "prefill_tokens": 3}.get(next(iter(changes), ""), len(PROMPTS))
    assert max(toy.runner.widths) == width, "the requests did not share their batches as they can"


def test_running_out_of_pages_preempts_and_changes_no_token() -> None:
    toy = Toy(TABLE, settings=settings(), pages=25, page_size=4)
    handles = [toy.submit(prompt, sampled(seed, 40), n=2) for seed, prompt in enumerate(PROMPTS)]
    toy.finish()
    assert toy.stats.preemptions > 0
    for seed, (prompt, handle) in enumerate(zip(PROMPTS, handles, strict=True)):
        result = toy.result(handle)
        assert result.choices[0].token_ids == alone(prompt, sampled(seed, 40))
        assert len(result.choices[1].token_ids) == 40


def test_one_request_larger_than_the_pool_runs_its_rows_one_after_another() -> None:
    toy = Toy(TABLE, settings=settings(), pages=9, page_size=4)
    result = toy.run(PROMPTS[1], sampled(1, 20), n=6)
    roomy = Toy(TABLE, settings=settings()).run(PROMPTS[1], sampled(1, 20), n=6)
    assert [c.token_ids for c in result.choices] == [c.token_ids for c in roomy.choices]
    assert result.usage.preemptions > 0


def test_seed_and_stream_decide_the_draw() -> None:
    results = {alone(PROMPTS[2], sampled(seed)) for seed in range(5)}
    assert len(results) == 5
    both = Toy(TABLE, settings=settings()).run(PROMPTS[2], sampled(0), n=2).choices
    assert both[0].token_ids != both[1].token_ids
    assert both[0].token_ids == alone(PROMPTS[2], sampled(0))


def test_choices_are_forks_after_one_prefill() -> None:
    toy = Toy(TABLE, settings=settings())
    toy.run(PROMPTS[5], sampled(0), n=4)
    assert toy.runner.prefilled == len(PROMPTS[5]) - 1
    assert max(toy.runner.widths) == 4


def test_a_shared_prefix_is_prefilled_once() -> None:
    toy = Toy(TABLE, settings=settings())
    for tail in range(5):
        result = toy.run([*PROMPTS[7], tail], sampled(tail))
        assert result.choices[0].token_ids == alone([*PROMPTS[7], tail], sampled(tail))
    length = len(PROMPTS[7])
    cached = length // toy.runner.pool.page_size * toy.runner.pool.page_size
    assert toy.runner.prefilled == length + 4 * (length - cached)
    assert result.usage.cached_tokens == cached
    assert toy.stats.prefix_hits == 4 * cached


def test_another_salt_shares_nothing() -> None:
    toy = Toy(TABLE, settings=settings())
    toy.run(PROMPTS[7], sampled(0), salt=b"a")
    assert toy.run(PROMPTS[7], sampled(0), salt=b"b").usage.cached_tokens == 0
    assert toy.run(PROMPTS[7], sampled(0), salt=b"a").usage.cached_tokens > 0


@pytest.mark.parametrize("phase", ["waiting", "prefill", "decode", "score"])
def test_cancelling_frees_every_page(phase: str) -> None:
    toy = Toy(
        TABLE,
        settings=settings(prefill_tokens=4, score_pairs=1, max_rows=4),
        rewards={"length": lambda text: float(len(text))},
    )
    decoding = {"strategy": "best_of_n", "n": 4, "reward": "length"}
    blocker = toy.submit(PROMPTS[7], sampled(3, 30)) if phase == "waiting" else None
    handle = toy.submit(PROMPTS[6], sampled(2, 5), decoding=decoding)
    if blocker is not None:
        toy.engine.scheduler._max_rows = 1
    job = toy.engine._jobs[handle]
    reached = {
        "waiting": lambda: job in toy.engine.scheduler.waiting,
        "prefill": lambda: job.run is None and job.prompt.table.length > 0,
        "decode": lambda: isinstance(job.op, Extend) and job.prompt.family[1].generated == 2,
        "score": lambda: isinstance(job.op, Score) and len(job.rewards) == 2,
    }[phase]
    for _ in range(50):
        toy.engine.tick()
        if reached():
            break
    assert reached(), f"never saw the phase {phase}"
    toy.engine.cancel(handle)
    toy.engine.deliver()
    end = toy.end(handle)
    assert isinstance(end, Failure)
    assert isinstance(end.error, Cancelled)
    if blocker is not None:
        toy.engine.cancel(blocker)
    assert toy.engine.idle
    toy.runner.pool.check([])
    assert toy.runner.pool.used == 0


def test_deltas_concatenate_to_the_choice() -> None:
    toy = Toy(TABLE, settings=settings())
    handle = toy.submit(PROMPTS[3], SamplingParams(seed=5, max_tokens=30, logprobs=2), n=2)
    toy.finish()
    for index, choice in enumerate(toy.result(handle).choices):
        own = [delta for delta in toy.deltas(handle) if delta.choice == index]
        assert "".join(delta.text for delta in own) == choice.text
        assert tuple(token for delta in own for token in delta.token_ids) == choice.token_ids
        assert tuple(each for delta in own for each in delta.logprobs or ()) == choice.logprobs
        assert len(own) == 30


def test_logprobs_are_the_base_models() -> None:
    result = Toy(TABLE, settings=settings()).run(
        PROMPTS[3], SamplingParams(seed=5, max_tokens=4, logprobs=3, temperature=0.5, logit_bias={7: 3.0})
    )
    prefix = PROMPTS[3].copy()
    logprobs = result.choices[0].logprobs
    assert logprobs is not None
    for each in logprobs:
        z = TABLE(prefix)
        expected = z - np.log(np.exp(z).sum())
        assert each.logprob == pytest.approx(expected[each.id], abs=1e-5)
        best = np.argsort(-expected)[:3]
        assert [token for token, _ in each.top] == best.tolist()
        assert [value for _, value in each.top] == pytest.approx(expected[best].tolist(), abs=1e-5)
        prefix.append(each.id)


def constant(vocab: int, favourites: dict[int, float]) -> np.ndarray:
    z = np.zeros(vocab)
    for token, value in favourites.items():
        z[token] = value
    return z


def test_eos_ends_an_answer_and_is_no_text() -> None:
    toy = Toy(lambda prefix: constant(VOCAB, {10 if len(prefix) < 6 else 11: 50.0}), eos=11)
    choice = toy.run([1, 2, 3], SamplingParams(seed=0)).choices[0]
    assert choice.token_ids == (10, 10, 10, 11)
    assert choice.finish_reason == "stop"
    assert choice.stop_reason is None
    assert choice.text == toy.vocabulary.decode([10, 10, 10])
    again = toy.run([1, 2, 3], SamplingParams(seed=0, ignore_eos=True, max_tokens=6)).choices[0]
    assert again.finish_reason == "length"
    assert len(again.token_ids) == 6


def test_min_tokens_bans_the_end_until_then() -> None:
    toy = Toy(lambda prefix: constant(VOCAB, {11: 50.0, 12: 40.0}), eos=11)
    assert toy.run([1], SamplingParams(temperature=0)).choices[0].token_ids == (11,)
    assert toy.run([1], SamplingParams(temperature=0, min_tokens=3)).choices[0].token_ids == (12, 12, 12, 11)
    stop = SamplingParams(temperature=0, min_tokens=2, stop_token_ids=(12,))
    choice = toy.run([1], stop).choices[0]
    assert choice.token_ids[:2] == (choice.token_ids[0],) * 2
    assert choice.token_ids[0] not in (11, 12)


def test_a_stop_token_is_named() -> None:
    toy = Toy(lambda prefix: constant(VOCAB, {12: 50.0}))
    choice = toy.run([1], SamplingParams(temperature=0, stop_token_ids=(12,))).choices[0]
    assert (choice.finish_reason, choice.stop_reason, choice.text) == ("stop", 12, "")


def test_a_stop_string_across_tokens_is_never_sent() -> None:
    toy = Toy(TABLE)
    word = toy.vocabulary.encode("abcdef")
    toy = Toy(lambda prefix: constant(VOCAB, {word[(len(prefix) - 1) % 6]: 50.0}))
    handle = toy.submit([1], SamplingParams(temperature=0, stop=("cd",), max_tokens=30))
    toy.finish()
    choice = toy.result(handle).choices[0]
    assert (choice.text, choice.finish_reason, choice.stop_reason) == ("ab", "stop", "cd")
    assert "".join(delta.text for delta in toy.deltas(handle)) == "ab"


def test_penalties_and_bias_change_the_choice() -> None:
    def flat(prefix: Sequence[int]) -> np.ndarray:
        return constant(VOCAB, {20: 1.0, 21: 0.9, 22: 0.8})

    def greedy(**changes: object) -> tuple[int, ...]:
        sampling = SamplingParams.model_validate({"temperature": 0, "max_tokens": 3, **changes})
        return Toy(flat).run([5, 20], sampling).choices[0].token_ids

    assert greedy() == (20, 20, 20)
    assert greedy(repetition_penalty=2.0) == (21, 22, 20), "the prompt counts"
    assert greedy(presence_penalty=0.15) == (20, 21, 20), "once per token"
    assert greedy(frequency_penalty=0.15) == (20, 21, 20)
    assert greedy(logit_bias={22: 0.5}) == (22, 22, 22)
    assert greedy(logit_bias={20: -100.0}) == (21, 21, 21)


def test_max_tokens_zero_answers_nothing() -> None:
    toy = Toy(TABLE)
    choice = toy.run(PROMPTS[0], sampled(0, 0)).choices[0]
    assert (choice.text, choice.token_ids, choice.finish_reason) == ("", (), "length")
    assert toy.runner.widths == []


def test_a_model_without_finite_logits_fails_its_request_alone() -> None:
    def logits(prefix: Sequence[int]) -> np.ndarray:
        return np.full(VOCAB, math.nan) if prefix[0] == 99 and len(prefix) > 3 else TABLE(prefix)

    toy = Toy(logits)
    bad, good = toy.submit([99, 1], sampled(0), n=3), toy.submit(PROMPTS[1], sampled(1))
    toy.finish()
    assert isinstance(toy.end(bad), Failure)
    assert toy.result(good).choices[0].token_ids == alone(PROMPTS[1], sampled(1))


def test_a_failing_neighbour_leaves_the_pages_it_shares_alone() -> None:
    shared = PROMPTS[7]

    def logits(prefix: Sequence[int]) -> np.ndarray:
        failing = len(prefix) > len(shared) + 3 and prefix[len(shared)] == 99
        return np.full(VOCAB, math.nan) if failing else TABLE(prefix)

    toy = Toy(logits, settings=settings())
    good = toy.submit([*shared, 1], sampled(1, 20))
    while toy.stats.generation_tokens == 0:
        toy.engine.tick()
    bad = toy.submit([*shared, 99], sampled(2, 20), n=2)
    toy.finish()
    assert isinstance(toy.end(bad), Failure)
    assert toy.result(good).choices[0].token_ids == alone([*shared, 1], sampled(1, 20))


def test_a_mistake_in_a_program_or_a_reward_ends_its_own_request_alone() -> None:
    def broken(text: str) -> float:
        raise ZeroDivisionError

    class Broken:
        def rows(self, choices: int) -> int:
            return 1

        def run(self, context: Context) -> Generator[Op, None, Answer]:
            yield Extend(context.prompt.fork(1), max_tokens=2)
            raise ZeroDivisionError

    toy = Toy(TABLE, rewards={"broken": broken})
    good = toy.submit(PROMPTS[1], sampled(1))
    scored = toy.submit(PROMPTS[2], sampled(2, 3), decoding={"strategy": "best_of_n", "n": 2, "reward": "broken"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trimtab.decoders.spec.DecodingSpec.program", Broken())
        programmed = toy.submit(PROMPTS[3], sampled(3))
    toy.finish()
    assert toy.result(good).choices[0].token_ids == alone(PROMPTS[1], sampled(1))
    ends = [toy.end(handle) for handle in (scored, programmed)]
    assert isinstance(ends[0], Failure)
    assert isinstance(ends[0].error, GuideError)
    assert "broken" in str(ends[0].error)
    assert isinstance(ends[1], Failure)
    assert isinstance(ends[1].error, ZeroDivisionError)


def test_a_reward_that_raises_fails_the_request_that_it_cannot_score() -> None:
    forced = 65
    disliked = Toy(TABLE).vocabulary.decode([forced] * 3)
    batches: list[str] = []

    def fussy(text: str) -> float:
        batches.append(text)
        if text == disliked:
            raise GuideError("fussy", "cannot read this")
        return 1.0

    toy = Toy(TABLE, rewards={"fussy": fussy})
    decoding = {"strategy": "best_of_n", "n": 2, "reward": "fussy"}
    bias = SamplingParams(seed=0, max_tokens=3, logit_bias={forced: 100.0})
    before = toy.submit(PROMPTS[0], sampled(0, 3), decoding=decoding)
    bad = toy.submit(PROMPTS[0], bias, decoding=decoding)
    after = toy.submit(PROMPTS[0], sampled(1, 3), decoding=decoding)
    toy.finish()
    assert batches.index(disliked) == 2, "the three were not scored in one batch"
    end = toy.end(bad)
    assert isinstance(end, Failure)
    assert "cannot read this" in str(end.error)
    for handle in (before, after):
        assert [candidate.reward for candidate in toy.result(handle).candidates] == [1.0, 1.0]
    assert toy.stats.guide_errors == {"fussy": 1}


class TwoSteps:
    """Extends in two ops, then forks, trims and goes on."""

    def __init__(self, first: int | None) -> None:
        self.first = first

    def rows(self, choices: int) -> int:
        return 2

    def run(self, context: Context) -> Generator[Op, None, Answer]:
        (draft,) = context.prompt.fork(1)
        yield Extend([draft], max_tokens=self.first)
        yield Extend([draft])
        yield Extend([])
        (twin,) = draft.fork(1)
        twin.trim(4)
        twin.stream = draft.stream
        yield Extend([twin])
        return Answer([draft, twin], [])


@pytest.mark.parametrize("first", [None, 0, 1, 5, 100])
def test_extending_in_steps_equals_extending_at_once(first: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.decoders.spec.DecodingSpec.program", TwoSteps(first))
    toy = Toy(TABLE)
    draft, twin = toy.run(PROMPTS[4], sampled(8, 10)).choices
    monkeypatch.undo()
    assert draft.token_ids == alone(PROMPTS[4], sampled(8, 10))
    assert twin.token_ids == draft.token_ids, "the same stream draws the same tokens again after a cut"
    assert twin.text == draft.text


class FreesHalf:
    """Draws four answers, gives two back, and extends the others."""

    def __init__(self) -> None:
        self.used: list[int] = []

    def rows(self, choices: int) -> int:
        return 4

    def run(self, context: Context) -> Generator[Op, None, Answer]:
        drafts = context.prompt.fork(4)
        yield Extend(drafts, max_tokens=8)
        pool = context.prompt.table.pool
        self.used.append(pool.used)
        for draft in drafts[:2]:
            draft.free()
        self.used.append(pool.used)
        yield Extend(drafts[2:])
        return Answer(drafts, [])


def test_a_program_can_give_pages_back_and_still_answer_with_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    program = FreesHalf()
    monkeypatch.setattr("trimtab.decoders.spec.DecodingSpec.program", program)
    choices = Toy(TABLE).run(PROMPTS[0], sampled(4, 12), n=4).choices
    assert [len(choice.token_ids) for choice in choices] == [8, 8, 12, 12]
    assert all(choice.text for choice in choices)
    assert program.used[1] <= program.used[0] - 4, "two answers of eight tokens hold two pages of four each"
