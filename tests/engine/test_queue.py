"""What may wait, when to come back, and who is served first."""

import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from gate import Gate
from toy import FunctionReward, Toy, random_table

from trimtab.engine.backlog import Backlog, Load
from trimtab.engine.errors import Draining, Overloaded
from trimtab.engine.phases import MOST, Phases
from trimtab.engine.rating import Rating
from trimtab.engine.request import Request
from trimtab.engine.results import Event, Failure, Phase, Result
from trimtab.engine.rewards import Pair
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.settings import EngineSettings
from trimtab.engine.worker import Worker

TABLE = random_table(256)
SAMPLED = SamplingParams(temperature=1.0, seed=3, max_tokens=4)


def settings(**changes: object) -> EngineSettings:
    return EngineSettings.model_validate({"guides": {}, **changes})


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def backlog(clock: Callable[[], float] | None = None, **limits: int) -> Backlog:
    return Backlog(settings(**limits), clock or Clock())


@pytest.mark.parametrize(
    ("limits", "load", "words"),
    [
        ({"max_waiting": 3}, Load(1, 1, 1), "3 requests are waiting already and 3 may .setting engine.max_waiting.:"),
        ({"max_waiting_rows": 12}, Load(1, 1, 1), "12 rows .*engine.max_waiting_rows"),
        ({"max_waiting_rows": 14}, Load(1, 3, 1), "12 rows .*14 may"),
        ({"max_waiting_tokens": 300}, Load(1, 1, 1), "300 tokens .*engine.max_waiting_tokens"),
    ],
)
def test_each_limit_refuses_and_is_named(limits: dict[str, int], load: Load, words: str) -> None:
    queue = backlog(**limits)
    for _ in range(3):
        queue.check(Load(1, 4, 100))
        queue.enter(Load(1, 4, 100))
    assert not queue.fits(load)
    with pytest.raises(Overloaded, match=words):
        queue.check(load)
    queue.leave(Load(1, 4, 100))
    queue.check(load)


def test_a_request_larger_than_the_limits_waits_alone() -> None:
    queue, large = backlog(max_waiting_rows=4, max_waiting_tokens=10), Load(1, 64, 9000)
    queue.check(large)
    queue.enter(large)
    with pytest.raises(Overloaded):
        queue.check(Load(1, 1, 1))
    queue.leave(large)
    queue.check(large)


def test_when_to_come_back_follows_the_pace_of_the_last_half_minute() -> None:
    clock = Clock()
    queue = backlog(clock, max_waiting=10)
    for _ in range(10):
        queue.enter(Load(1, 1, 100))

    def told() -> float:
        with pytest.raises(Overloaded) as refused:
            queue.check(Load(1, 1, 100))
        return refused.value.retry_after

    assert told() == 1.0, "nothing is known yet"
    clock.now += 7.0
    assert told() == 7.0, "nothing has left for so long"
    clock.now += 500.0
    assert told() == 60.0
    queue.restart()
    for _ in range(40):  # one leaves every four seconds, another comes
        clock.now += 4.0
        queue.leave(Load(1, 1, 100))
        queue.enter(Load(1, 1, 100))
        queue.note()
    assert told() == pytest.approx(4.0, rel=0.1)
    for _ in range(400):  # ten each second
        clock.now += 0.1
        queue.leave(Load(1, 1, 100))
        queue.enter(Load(1, 1, 100))
        queue.note()
    assert told() == 1.0
    assert queue.seconds(Load(0, 0, 100_000)) == 60.0
    assert queue.seconds(Load(0, 0, 20_000)) == pytest.approx(20.0, rel=0.1)


def request_of(toy: Toy, *arguments: object, **options: object) -> Request:
    """The request that the toy would submit."""
    caught: list[Request] = []
    submit, toy.engine.submit = toy.engine.submit, caught.append  # type: ignore[method-assign]
    toy.submit(*arguments, **options)  # type: ignore[arg-type]
    toy.engine.submit = submit  # type: ignore[method-assign]
    return caught[0]


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


def test_what_waits_is_counted_from_its_arrival_to_its_admission_or_end(gate: Gate) -> None:
    toy = Toy(TABLE, settings=settings(max_rows=2, max_waiting_rows=3), rewards={"length": len})
    toy.runner.decode = gate.before(toy.runner.decode)  # type: ignore[method-assign]
    worker = Worker(lambda: toy.engine)
    requests = [request_of(toy, [7, i], SAMPLED, n=n) for i, n in enumerate((2, 1, 1, 1))]
    worker.submit(requests[0])
    gate.reach(1)
    assert toy.engine.backlog.waiting == Load(), "it was admitted"
    for request in requests[1:]:
        worker.submit(request)
    assert toy.engine.backlog.waiting == Load(3, 3, 3 * (2 + 4))
    with pytest.raises(Overloaded, match="3 rows are waiting"):
        worker.submit(Rating("length", [Pair((), "abcd" * 5)]))
    worker.cancel(requests[2].handle)
    gate.reach(2)
    worker.submit(rating := Rating("length", [Pair((), "abcd" * 5)]))
    assert toy.engine.backlog.waiting == Load(3, 3, 2 * (2 + 4) + 5)
    gate.open()
    assert rating.future.result(20)[0].score == 20.0
    worker.ask(lambda: None).result(20)
    worker.close()
    assert toy.engine.backlog.waiting == Load()
    assert toy.runner.pool.used == 0


def test_a_tick_that_raises_leaves_the_queue_empty_and_the_worker_alive(gate: Gate) -> None:
    toy = Toy(TABLE, settings=settings(max_rows=1))
    decode, toy.runner.decode = toy.runner.decode, gate.before(fail)  # type: ignore[method-assign, assignment]
    worker = Worker(lambda: toy.engine)
    handles = []
    for i in range(4):
        worker.submit(request := request_of(toy, [7, i], SAMPLED))
        handles.append(request.handle)
    gate.open()
    worker.ask(lambda: None).result(20)
    while not all(toy.events[handle] for handle in handles):
        worker.ask(lambda: None).result(20)
    assert all(isinstance(toy.end(handle), Failure) for handle in handles)
    assert toy.engine.backlog.waiting == Load()
    toy.runner.decode = decode  # type: ignore[method-assign]
    worker.submit(request := request_of(toy, [9], SAMPLED))
    while not any(isinstance(event, Result) for event in toy.events[request.handle]):
        worker.ask(lambda: None).result(20)
    worker.close()
    toy.runner.pool.check([])


def fail(*_: object) -> None:
    raise RuntimeError("broken")


def order_of_ends(toy: Toy, handles: list[object]) -> list[int]:
    """Which request ends first, second, ..."""
    ends: list[int] = []
    while not toy.engine.idle:
        toy.engine.tick()
        ends += [i for i, handle in enumerate(handles) if i not in ends and ended(toy.events[handle])]
    return ends


def ended(events: list[Event]) -> bool:
    return bool(events) and isinstance(events[-1], Result | Failure)


def test_lower_priorities_run_first_and_equals_in_the_order_of_their_arrival() -> None:
    toy = Toy(TABLE, settings=settings(max_rows=1))
    priorities = (0, 5, 0, -3, 5, -3)
    handles = [toy.submit([7, i], SAMPLED, priority=priority) for i, priority in enumerate(priorities)]
    assert order_of_ends(toy, handles) == [3, 5, 0, 2, 1, 4]


def test_scoring_goes_by_priority_too() -> None:
    toy = Toy(TABLE, settings=settings(score_pairs=2))
    toy.engine.scoring.rewards = {"length": FunctionReward("length", len)}
    ratings = [Rating("length", [Pair((), "x"), Pair((), "y")], priority) for priority in (1, 0, -1)]
    for rating in ratings:
        toy.engine.rate(rating)
    ends = []
    for _ in range(3):
        toy.engine.tick()
        ends.append([rating.ended for rating in ratings])
    assert ends == [[False, False, True], [False, True, True], [True] * 3]


def test_pages_are_taken_from_the_worst_priority_first() -> None:
    toy = Toy(TABLE, pages=14, page_size=4, settings=settings(max_rows=8))
    long = SamplingParams(seed=1, max_tokens=24)
    handles = []
    for i, priority in enumerate((1, 2, 0)):
        handles.append(toy.submit([7, i], long, priority=priority))
        toy.engine.tick()
    toy.finish()
    read = [toy.result(handle).usage.model_tokens["base"] for handle in handles]
    assert toy.stats.preemptions > 0
    assert read[2] == 2 + 24 - 1, "nothing of the best one was computed twice, though it came last"
    assert read[2] <= read[0] < read[1]


@pytest.mark.parametrize("seed", range(4))
def test_every_request_ends_whatever_the_priorities_and_with_its_own_answer(seed: int) -> None:
    rng = random.Random(seed)
    toy = Toy(TABLE, pages=20, page_size=4, settings=settings(max_rows=6, prefill_tokens=8), rewards={"length": len})
    asked = []
    for i in range(12):
        sampling = SamplingParams(seed=i, max_tokens=rng.randrange(1, 30))
        prompt = [rng.randrange(250) for _ in range(rng.randrange(1, 20))]
        decoding = {"strategy": "best_of_n", "n": 3, "reward": "length"} if i % 3 == 0 else None
        handle = toy.submit(prompt, sampling, decoding=decoding, priority=rng.randrange(-2, 3))
        asked.append((handle, prompt, sampling, decoding))
        toy.engine.tick()
    toy.finish()
    assert toy.stats.preemptions > 0
    for handle, prompt, sampling, decoding in asked:
        alone = Toy(TABLE, rewards={"length": len}).run(prompt, sampling, decoding=decoding)
        assert [c.token_ids for c in toy.result(handle).choices] == [c.token_ids for c in alone.choices]


def test_phases_follow_each_other_and_cover_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(np.arange(0.0, 1e6, 0.25).tolist())
    for module in ("job", "phases"):
        monkeypatch.setattr(f"trimtab.engine.{module}.monotonic", lambda: next(now))
    toy = Toy(TABLE, settings=settings(), rewards={"length": len})
    usage = toy.run([7, 8], SAMPLED, decoding={"strategy": "best_of_n", "n": 2, "reward": "length"}).usage
    names = [phase.name for phase in usage.phases]
    assert names == ["queue", "prefill", "select", "decode", "select", "guide", "select"]
    assert all(before.ended == after.began for before, after in zip(usage.phases, usage.phases[1:], strict=False))
    assert all(phase.began < phase.ended for phase in usage.phases[1:])
    assert set(usage.milliseconds) == {"queue", "prefill", "decode", "score", "total"}


def test_many_phases_end_in_one() -> None:
    phases = Phases(0.0)
    for i in range(100):
        phases.end("decode" if i % 2 else "guide")
    assert len(phases.told) == MOST
    assert [phase.name for phase in phases.told[:2]] == ["guide", "decode"]
    assert phases.told[-1].ended > phases.told[-2].ended
    merged = Phases(0.0)
    for _ in range(3):
        merged.end("decode")
    assert [Phase(each.name, 0.0, 0.0) for each in merged.told] == [Phase("decode", 0.0, 0.0)]


def test_steps_tell_their_rows_and_strategies() -> None:
    toy = Toy(TABLE, settings=settings(), rewards={"length": len})
    toy.submit([7], SAMPLED, n=2)
    toy.submit([8], SAMPLED, decoding={"strategy": "best_of_n", "n": 2, "reward": "length"})
    toy.finish()
    stats = toy.stats
    assert stats.steps == 4
    assert stats.rows_per_step.sum == 16
    assert stats.rows_per_step.counts[stats.rows_per_step.bounds.index(4.0)] == 4
    assert stats.strategies_per_step.counts[stats.strategies_per_step.bounds.index(2.0)] == 4
    assert stats.reward_batch_size["length"].counts[stats.reward_batch_size["length"].bounds.index(2.0)] == 1
    assert sum(stats.reward_latency["length"].counts) == 1


def test_a_shutdown_ends_searches_with_their_best_and_the_rest_with_an_error() -> None:
    toy = Toy(TABLE, eos=None, settings=settings(max_rows=8), rewards={"length": len})
    search = toy.submit(
        [7, 8],
        SamplingParams(seed=1, max_tokens=12),
        decoding={"strategy": "cbs", "w": 2, "k": 2, "chunk": 3, "value": "length"},
    )
    plain = toy.submit([7, 9], SamplingParams(seed=1, max_tokens=12))
    waiting = toy.submit([7, 9], SamplingParams(seed=1, max_tokens=12), n=8)
    while "length" not in toy.stats.reward_batch_size or sum(toy.stats.reward_batch_size["length"].counts) < 2:
        toy.engine.tick()
    rating = Rating("length", [Pair((), "x")])
    toy.engine.rate(rating)
    toy.engine.interrupt_all()
    toy.engine.interrupt_all()
    toy.engine.tick()
    toy.finish()
    best = toy.result(search)
    assert best.stopped_by == "shutdown"
    assert len(best.choices[0].token_ids) >= 3
    for handle in (plain, waiting):
        end = toy.end(handle)
        assert isinstance(end, Failure)
        assert isinstance(end.error, Draining)
        assert end.error.retry_after > 0
        assert end.usage is not None
        assert end.usage.phases
    with pytest.raises(Draining):
        rating.future.result(0)
    assert toy.runner.pool.used == 0
