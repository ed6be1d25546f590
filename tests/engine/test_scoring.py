"""Answers that callers have scored, beside those of searches: batches, order, cancelling, failures, counts."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from gate import Gate
from toy import FunctionReward, Toy, random_table

from trimtab.engine.errors import Cancelled, GuideError, InvalidRequest, Overloaded
from trimtab.engine.pages import OutOfPages
from trimtab.engine.rating import Rating
from trimtab.engine.results import Failure, Result
from trimtab.engine.rewards import Judgement, Pair, Reward
from trimtab.engine.rewards.base import FORWARD, batches
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.settings import EngineSettings
from trimtab.engine.vocabulary import Message
from trimtab.engine.worker import Worker

PROMPT = [70, 71]
SAMPLED = SamplingParams(temperature=1.0, seed=3)


class Batched(FunctionReward):
    """The length of an answer; keeps the answers of every batch, and fails on some answers."""

    def __init__(self, fails: Callable[[str], Exception | None] = lambda answer: None) -> None:
        super().__init__("length", len)
        self.batches: list[list[str]] = []
        self._fails = fails

    def judge(self, pairs: Sequence[Pair]) -> list[Judgement]:
        self.batches.append([pair.answer for pair in pairs])
        for pair in pairs:
            if (error := self._fails(pair.answer)) is not None:
                raise error
        return super().judge(pairs)


def toy(reward: Reward, **changes: object) -> Toy:
    settings = EngineSettings.model_validate({"max_rows": 64, "guides": {}, **changes})
    made = Toy(random_table(256), settings=settings)
    made.engine.scoring.rewards = {"length": reward}
    return made


def rated(made: Toy, *answers: str) -> Rating:
    rating = Rating("length", [Pair((), answer) for answer in answers])
    made.engine.rate(rating)
    return rating


def scores(rating: Rating) -> list[float]:
    return [judgement.score for judgement in rating.future.result(0)]


def test_requests_share_batches_in_the_order_of_their_arrival() -> None:
    made = toy(reward := Batched(), score_pairs=4)
    first, second, third = rated(made, *"abcdef"), rated(made, "gg"), rated(made, "hhh", "iiii")
    made.engine.tick()
    assert not first.ended
    made.engine.tick()
    assert first.ended
    assert second.ended
    assert not made.engine.idle
    made.finish()
    assert reward.batches == [["a", "b", "c", "d"], ["e", "f", "gg", "hhh"], ["iiii"]]
    assert [scores(each) for each in (first, second, third)] == [[1.0] * 6, [2.0], [3.0, 4.0]]


def test_a_search_shares_a_batch_with_a_caller_and_waits_behind_one_that_came_before() -> None:
    made = toy(reward := Batched(), score_pairs=4)
    decoding = {"strategy": "best_of_n", "n": 2, "reward": "length"}
    early = rated(made, *("x" * 58))
    handle = made.submit(PROMPT, SAMPLED, decoding=decoding)
    late = rated(made, "y", "y", "y")
    made.finish()
    texts = [candidate.text for candidate in made.result(handle).candidates]
    assert reward.batches == [["x"] * 4] * 14 + [["x", "x", *texts], ["y"] * 3]
    assert len(scores(early)) == 58
    assert scores(late) == [1.0] * 3


def test_what_its_caller_has_cancelled_is_dropped_at_the_next_tick() -> None:
    made = toy(reward := Batched(), score_pairs=2)
    gone, other = rated(made, "a", "b", "c", "d"), rated(made, "e")
    made.engine.tick()
    assert gone.future.cancel()
    made.finish()
    assert reward.batches == [["a", "b"], ["e"]]
    assert scores(other) == [1.0]


@pytest.mark.parametrize("errors", ["fail", "lose"])
def test_an_answer_that_a_reward_fails_on_fails_its_own_request(errors: str) -> None:
    """Also where answers of a search would lose: a caller who wants a score is told that there is none."""
    made = toy(Batched(lambda answer: ZeroDivisionError() if answer == "bad" else None), reward_errors=errors)
    good, bad = rated(made, "a", "bb"), rated(made, "a", "bad")
    handle = made.submit(PROMPT, SAMPLED, decoding={"strategy": "best_of_n", "n": 2, "reward": "length"})
    made.finish()
    assert scores(good) == [1.0, 2.0]
    assert isinstance(made.end(handle), Result)
    with pytest.raises(GuideError, match="'length'"):
        bad.future.result(0)
    assert made.stats.guide_errors == {"length": 1}


def test_a_conversation_that_the_template_refuses_is_the_callers_mistake() -> None:
    refused = GuideError("length", "no system messages here")
    refused.__cause__ = InvalidRequest("no system messages here", param="messages")
    made = toy(Batched(lambda answer: refused if answer == "bad" else None))
    good, bad = rated(made, "a"), rated(made, "bad")
    made.finish()
    assert scores(good) == [1.0]
    with pytest.raises(InvalidRequest, match="'length': no system messages here") as told:
        bad.future.result(0)
    assert told.value.param == "messages"
    assert made.stats.guide_errors == {}


def test_without_a_page_left_the_request_fails_and_says_what_to_raise() -> None:
    made = toy(Batched())
    made.engine.scoring.rewards = {"length": Batched(lambda answer: OutOfPages(made.runner.pool))}
    rating = rated(made, "a")
    made.finish()
    with pytest.raises(GuideError, match="raise pool_tokens"):
        rating.future.result(0)


def test_pages_are_taken_from_running_answers() -> None:
    """A reward that reads over pages finds none: the youngest answer gives its own back, and is computed again."""
    plain = Toy(random_table(256)).run(PROMPT, SAMPLED)
    made = toy(Batched())
    handle = made.submit(PROMPT, SAMPLED)
    for _ in range(3):
        made.engine.tick()
    full = iter([OutOfPages(made.runner.pool)])
    made.engine.scoring.rewards = {"length": Batched(lambda answer: next(full, None))}
    rating = rated(made, "a")
    made.finish()
    assert scores(rating) == [1.0]
    assert made.stats.preemptions == 1
    assert made.result(handle).choices[0].token_ids == plain.choices[0].token_ids


def test_everything_queued_ends_with_the_engine() -> None:
    made = toy(Batched(), score_pairs=1)
    begun, waiting, gone = rated(made, "a", "b"), rated(made, "c"), rated(made, "d")
    made.engine.tick()
    gone.future.cancel()
    made.engine.fail_all(Cancelled("the engine was closed"))
    assert made.engine.idle
    for rating in (begun, waiting):
        with pytest.raises(Cancelled):
            rating.future.result(0)


def test_callers_queue_up_to_the_limit_and_until_the_engine_stops() -> None:
    gate, reward = Gate(), Batched()
    reward.judge = gate.before(reward.judge)  # type: ignore[method-assign]
    made = toy(reward, max_waiting=2)
    worker = Worker(lambda: made.engine)
    first, second, third = (Rating("length", [Pair((), answer)]) for answer in ("a", "bb", "ccc"))
    worker.submit(first)
    gate.reach(1)
    worker.submit(second)
    with pytest.raises(Overloaded, match="2 requests are waiting"):
        worker.submit(third)
    gate.open()
    assert [each.future.result(20)[0].score for each in (first, second)] == [1.0, 2.0]
    worker.drain()
    with pytest.raises(Overloaded, match="shutting down"):
        worker.submit(third)
    worker.close()


def test_answers_of_like_length_are_scored_together_and_told_in_their_order() -> None:
    made = toy(reward := Batched(), score_pairs=2)
    rating = Rating("length", [Pair((Message(role="user", content="q" * n),), "a" * n) for n in (9, 1, 5, 2)])
    made.engine.rate(rating)
    made.finish()
    assert [[len(answer) for answer in batch] for batch in reward.batches] == [[1, 2], [5, 9]]
    assert scores(rating) == [9.0, 1.0, 5.0, 2.0]


def test_batches_are_cut_where_the_least_is_computed() -> None:
    def cost(sizes: Sequence[int], lengths: Sequence[int]) -> int:
        return sum(size * top + FORWARD for size, top in tops(sizes, lengths))

    def every(count: int) -> Iterator[list[int]]:
        if count == 0:
            yield []
        for first in range(1, count + 1):
            yield from ([first, *rest] for rest in every(count - first))

    random = np.random.default_rng(0)
    for scale in (30, 200, 600):
        lengths = sorted(random.integers(1, scale, size=9).tolist())
        limit = 2 * scale
        sizes = [len(batch) for batch in batches(lengths, limit)]
        allowed = [
            each for each in every(9) if all(size * top <= limit or size == 1 for size, top in tops(each, lengths))
        ]
        assert cost(sizes, lengths) == min(cost(each, lengths) for each in allowed)
        assert sizes in allowed
    assert [len(batch) for batch in batches([10] * 60 + [100] * 6, 16_384)] == [60, 6]
    assert list(batches([3, 1, 2], 16_384)) == [[1, 2, 0]]  # too few for a forward of their own
    assert list(batches([3, 1, 2], 1)) == [[1], [2], [0]]
    assert list(batches([], 1)) == []


def tops(sizes: Sequence[int], lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Each batch's rows and its longest row."""
    return [(size, lengths[sum(sizes[: index + 1]) - 1]) for index, size in enumerate(sizes)]


def test_counts() -> None:
    class Reading(Batched):
        def judge(self, pairs: Sequence[Pair]) -> list[Judgement]:
            return [Judgement(each.score, each.logits, tokens=9, cached=4) for each in super().judge(pairs)]

    made = toy(Reading(), score_pairs=2)
    rated(made, "a", "b", "c")
    made.finish()
    stats = made.stats
    sizes, seconds = stats.reward_batch_size["length"], stats.reward_latency["length"]
    assert (sizes.sum, sum(sizes.counts), stats.model_tokens) == (3, 2, {"length": 15})
    assert sum(seconds.counts) == 2
    assert seconds.sum > 0.0


def test_probabilities_are_the_softmax_of_the_logits_or_the_sigmoid_of_one() -> None:
    assert Judgement(0.0, (math.log(1), math.log(2), math.log(5))).probabilities == pytest.approx([1 / 8, 2 / 8, 5 / 8])
    assert Judgement(0.0, (math.log(3),)).probabilities == pytest.approx([0.75])
    for far in (1e4, -1e4):
        assert Judgement(far, (far,)).probabilities == [float(far > 0)]
        assert Judgement(far, (0.0, far)).probabilities == [float(far < 0), float(far > 0)]


def test_a_failed_search_is_told_as_before() -> None:
    made = toy(Batched(lambda answer: ZeroDivisionError()))
    handle = made.submit(PROMPT, SAMPLED, decoding={"strategy": "best_of_n", "n": 2, "reward": "length"})
    made.finish()
    assert isinstance(made.end(handle), Failure)
