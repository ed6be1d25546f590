"""Blockwise controlled decoding against its restatement, and what it is at its limits."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from replay import Path, Replay, letter, noise
from toy import Toy, random_table

from trimtab.engine.results import Progress
from trimtab.engine.sampling import SamplingParams

VOCAB, EOS, PROMPT = 12, 7, [1, 5, 2, 9, 3]
TABLE = random_table(VOCAB)


def toy(value: Callable[[str], float] = noise, eos: int | None = EOS) -> Toy:
    return Toy(TABLE, rewards={"value": value}, eos=eos)


def decoding(**fields: object) -> dict[str, object]:
    return {"strategy": "cd_blockwise", "value": "value", **fields}


def restated(
    replay: Replay, k: int, block: int, value: Callable[[str], float] = noise
) -> tuple[Path, list[Path], int, int]:
    """The answer, the blocks among which it was chosen last, the rounds, and answers that lost to unfinished ones."""
    (answer,), rounds, early = replay.begin(1), 0, 0
    drafts = [answer]
    while not answer.ended:
        rounds += 1
        drafts = [answer, *replay.fork(answer, k - 1)]
        for draft in drafts:
            replay.extend(draft, block)
            draft.value = replay.judge(draft, value)
        answer = max(drafts, key=lambda draft: draft.value)
        early += 0 if answer.ended else sum(draft.ended for draft in drafts)
    return answer, drafts, rounds, early


@pytest.mark.parametrize(("k", "block", "length"), [(2, 1, 6), (4, 3, 10), (3, 4, 9), (5, 2, 2)])
def test_blocks_are_chosen_as_the_paper_has_it(k: int, block: int, length: int) -> None:
    stopped = early = 0
    for seed in range(8):
        result = toy().run(PROMPT, SamplingParams(seed=seed, max_tokens=length), decoding=decoding(k=k, block=block))
        answer, drafts, rounds, lost = restated(Replay(TABLE, PROMPT, seed, length, EOS), k, block)
        assert result.choices[0].token_ids == answer.answer
        assert [candidate.tokens for candidate in result.candidates] == [len(draft.answer) for draft in drafts]
        assert [candidate.value for candidate in result.candidates] == [draft.value for draft in drafts]
        assert result.report == {
            "kl_bound": (math.log(k) - (k - 1) / k) * math.ceil(len(answer.answer) / block),
            "blocks": k * rounds,
            "rounds": rounds,
            "expanded": k * rounds,
            "kept": rounds,
            "finished_early": lost,
        }
        stopped += result.choices[0].finish_reason == "stop"
        early += lost
    assert stopped, "no seed ends an answer by its end-of-text token"
    assert early or block >= length, "no seed lets an ended block lose to one that goes on"


def test_k_1_is_plain_sampling() -> None:
    for seed in range(10):
        sampling = SamplingParams(seed=seed, max_tokens=11)
        engine = toy()
        searched = engine.run(PROMPT, sampling, decoding=decoding(k=1, block=3))
        assert searched.choices[0].token_ids == engine.run(PROMPT, sampling).choices[0].token_ids
        assert searched.report["kl_bound"] == 0.0


def test_one_block_for_all_is_best_of_k() -> None:
    for seed in range(10):
        sampling = SamplingParams(seed=seed, max_tokens=8)
        engine = toy()
        searched = engine.run(PROMPT, sampling, decoding=decoding(k=5, block=8))
        best = engine.run(PROMPT, sampling, decoding={"strategy": "best_of_n", "n": 5, "reward": "value"})
        assert searched.choices[0].token_ids == best.choices[0].token_ids
        assert [each.text for each in searched.candidates] == [each.text for each in best.candidates]
        assert [each.reward for each in searched.candidates] == [each.reward for each in best.candidates]


def test_equal_values_leave_plain_sampling() -> None:
    sampling = SamplingParams(seed=4, max_tokens=9)
    engine = toy(lambda text: 0.5)
    searched = engine.run(PROMPT, sampling, decoding=decoding(k=4, block=2))
    assert searched.choices[0].token_ids == engine.run(PROMPT, sampling).choices[0].token_ids


def test_a_value_that_is_missing_loses() -> None:
    def failing(text: str) -> float:
        return math.nan if noise(text) > 0.5 else noise(text)

    def losing(text: str) -> float:
        return -math.inf if noise(text) > 0.5 else noise(text)

    missed = 0
    for seed in range(10):
        result = toy(failing).run(PROMPT, SamplingParams(seed=seed, max_tokens=8), decoding=decoding(k=3, block=2))
        answer, *_ = restated(Replay(TABLE, PROMPT, seed, 8, EOS), 3, 2, losing)
        assert result.choices[0].token_ids == answer.answer
        missed += any(candidate.value == -math.inf for candidate in result.candidates)
    assert missed


def test_everything_may_end_in_the_first_block() -> None:
    surely = np.where(np.arange(VOCAB) == EOS, 50.0, 0.0)
    engine = Toy(lambda prefix: surely, rewards={"value": noise}, eos=EOS)
    result = engine.run(PROMPT, SamplingParams(seed=1, max_tokens=8), decoding=decoding(k=4, block=3))
    assert result.choices[0].token_ids == (EOS,)
    assert result.report["rounds"] == 1
    assert result.report["finished_early"] == 0


def test_a_stop_string_ends_a_block() -> None:
    stop = letter(3)
    ends = 0
    for seed in range(10):
        sampling = SamplingParams(seed=seed, max_tokens=12, stop=(stop,))
        result = toy(eos=None).run(PROMPT, sampling, decoding=decoding(k=3, block=4))
        answer, *_ = restated(Replay(TABLE, PROMPT, seed, 12, stop=stop), 3, 4)
        assert result.choices[0].token_ids == answer.answer
        assert stop not in result.choices[0].text
        ends += result.choices[0].finish_reason == "stop" and len(answer.answer) % 4 != 0
    assert ends, "no seed stops inside a block"


def test_every_choice_is_an_answer_of_its_own_and_sent_block_by_block() -> None:
    engine = toy(eos=None)
    searched = decoding(k=3, block=2)
    handle = engine.submit(PROMPT, SamplingParams(seed=3, max_tokens=9), n=3, decoding=searched, progress=True)
    engine.finish()
    result = engine.result(handle)
    replay = Replay(TABLE, PROMPT, 3, 9)
    restatement = [restated(replay, 3, 2) for _ in range(3)]
    assert [choice.token_ids for choice in result.choices] == [answer.answer for answer, *_ in restatement]
    assert result.report["blocks"] == 3 * sum(rounds for *_, rounds, _ in restatement)
    for index, choice in enumerate(result.choices):
        sent = [delta.text for delta in engine.deltas(handle) if delta.choice == index]
        assert "".join(sent) == choice.text
        assert len(sent) >= 5
    assert engine.runner.prefilled == len(PROMPT) - 1
    held = [event.candidates for event in engine.events[handle] if isinstance(event, Progress)]
    assert max(held) == 2 + 3, "two answers, and the blocks of the third"


def test_a_value_that_is_enough_ends_the_search() -> None:
    """The first ended block of the value asked for is the answer, whatever the others might become."""
    cut = 0
    for seed in range(12):
        sampling = SamplingParams(seed=seed, max_tokens=12)
        limited = decoding(k=4, block=2, budget={"reward_at_least": 0.6})
        result = toy().run(PROMPT, sampling, decoding=limited)
        full = toy().run(PROMPT, sampling, decoding=decoding(k=4, block=2))
        if result.stopped_by == "reward_at_least":
            assert result.choices[0].finish_reason is not None
            assert noise(result.choices[0].text) >= 0.6
            cut += result.choices[0].token_ids != full.choices[0].token_ids
        else:
            assert result.choices == full.choices
    assert cut
