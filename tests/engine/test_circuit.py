"""A guide that fails again and again is left alone for a while; requests without it go on."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest
from collector import Collector
from tiny import tiny_folder

from trimtab import LLM, EngineSettings, SamplingParams
from trimtab.engine.circuit import Circuits
from trimtab.engine.errors import GuideError, GuideUnavailable, InvalidRequest, Overloaded
from trimtab.engine.results import Failure, Result
from trimtab.engine.rewards import Judgement, Pair, Reward
from trimtab.requests import GenerationRequest

BEST = {"strategy": "best_of_n", "n": 2, "reward": "moody"}
SHORT = SamplingParams(seed=1, max_tokens=3)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def circuits(clock: Clock, gauge: dict[str, int] | None = None) -> Circuits:
    return Circuits(3, 30.0, {} if gauge is None else gauge, clock)


def refused(each: Circuits, *guides: str) -> float | None:
    """When to come back; None: come in."""
    try:
        each.enter(guides)
    except GuideUnavailable as error:
        return error.retry_after
    return None


def test_failures_in_a_row_open_it_and_a_success_between_them_does_not() -> None:
    clock, gauge = Clock(), dict[str, int]()
    each = circuits(clock, gauge)
    for _ in range(5):
        each.failed("a", object())
        each.failed("a", object())
        each.succeeded(["a"])
    assert refused(each, "a") is None
    assert each.quiet
    for _ in range(3):
        assert gauge == {}
        each.failed("a", object())
    assert gauge == {"a": 1}
    clock.now += 10
    assert refused(each, "b", "a") == 20.0
    assert refused(each, "b") is None


def test_one_request_tries_when_the_time_is_over() -> None:
    clock, gauge = Clock(), dict[str, int]()
    each = circuits(clock, gauge)
    for _ in range(3):
        each.failed("a", object())
    clock.now += 30
    assert refused(each, "a") is None
    assert refused(each, "a") == 30.0, "the second one waits for what the first one finds"
    clock.now += 5
    each.failed("a", object())
    assert refused(each, "a") == 30.0
    clock.now += 30
    assert refused(each, "a") is None
    each.succeeded(["a"])
    assert gauge == {"a": 0}
    assert [refused(each, "a") for _ in range(5)] == [None] * 5


def test_a_try_of_which_nothing_is_heard_leaves_room_for_the_next() -> None:
    clock = Clock()
    each = circuits(clock)
    for _ in range(3):
        each.failed("a", object())
    for _ in range(3):
        clock.now += 30
        assert refused(each, "a") is None
        assert refused(each, "a") == 30.0


def test_a_request_of_two_guides_spends_no_try_on_one_while_the_other_rests() -> None:
    clock = Clock()
    each = circuits(clock)
    for name in ("a", "b"):
        for _ in range(3):
            each.failed(name, object())
        clock.now += 20
    clock.now -= 10  # a: over since; b: 20 seconds to go
    assert refused(each, "a", "b") == 20.0
    assert refused(each, "a") is None


class Moody:
    """A reward that fails where and how the test says."""

    name = "moody"
    labels = ("LABEL_0",)

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.calls = 0

    def judge(self, pairs: Sequence[Pair]) -> list[Judgement]:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return [Judgement(1.0, (1.0,)) for _ in pairs]

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        return [each.score for each in self.judge(pairs)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("circuit") / "tiny")


@pytest.fixture
def llm(folder: Path) -> Iterator[LLM]:
    settings = EngineSettings(
        model=str(folder), device="cpu", threads=1, pool_tokens=1024, guide_failures=2, guide_retry_after=5.0
    )
    with LLM(settings=settings) as llm:
        yield llm


@pytest.fixture
def moody(llm: LLM) -> Moody:
    moody = Moody()
    cast(dict[str, Reward], llm.rewards)["moody"] = moody
    return moody


def run(llm: LLM, decoding: dict[str, object] | None = None) -> Result | Failure:
    """Submit one request and wait for its end; raises what submitting raises."""
    collector = Collector()
    llm.submit(llm.prepare(GenerationRequest(prompt="go", sampling=SHORT, decoding=decoding)), object(), collector)
    assert collector.done.wait(20)
    last = collector.events[-1]
    assert isinstance(last, Result | Failure)
    return last


def open_it(llm: LLM, moody: Moody) -> None:
    moody.error = RuntimeError("out of order")
    for _ in range(2):
        end = run(llm, BEST)
        assert isinstance(end, Failure)
        assert isinstance(end.error, GuideError)


def test_a_request_counts_once_however_many_answers_it_loses() -> None:
    gauge: dict[str, int] = {}
    circuits = Circuits(2, 10.0, gauge)
    one = object()
    for _ in range(5):
        circuits.failed("a", one)
    circuits.enter({"a"})
    circuits.failed("a", object())
    with pytest.raises(GuideUnavailable):
        circuits.enter({"a"})


def test_requests_that_need_the_guide_are_refused_and_others_go_on(llm: LLM, moody: Moody) -> None:
    open_it(llm, moody)
    calls = moody.calls
    with pytest.raises(GuideUnavailable, match="'moody' has failed 2 times in a row") as caught:
        run(llm, BEST)
    assert isinstance(caught.value, Overloaded)
    assert caught.value.guide == "moody"
    assert 0 < caught.value.retry_after <= 5.0
    with pytest.raises(GuideUnavailable):
        llm.judge("moody", [Pair((), "x")])
    expression = {"sum": ["length", {"guide": "moody", "weight": 0.0}]}
    with pytest.raises(GuideUnavailable):
        run(llm, {**BEST, "reward": expression})
    assert moody.calls == calls
    assert llm.stats.guide_circuit == {"moody": 1}
    assert llm.stats.guide_errors == {"moody": 2}
    assert isinstance(run(llm), Result)
    assert isinstance(run(llm, {**BEST, "reward": "length"}), Result)
    assert llm._worker.engine.backlog.waiting == (0, 0, 0)


def test_it_closes_again_when_the_guide_does(llm: LLM, moody: Moody) -> None:
    open_it(llm, moody)
    clock = Clock()
    llm._worker.engine.circuits._clock = clock
    for circuit in llm._worker.engine.circuits._failing.values():
        circuit.until = clock.now + 5
    with pytest.raises(GuideUnavailable):
        run(llm, BEST)
    clock.now += 5
    assert isinstance(run(llm, BEST), Failure), "one tries, and fails"
    with pytest.raises(GuideUnavailable):
        run(llm, BEST)
    clock.now += 5
    moody.error = None
    assert isinstance(run(llm, BEST), Result)
    assert isinstance(run(llm, BEST), Result)
    assert llm.stats.guide_circuit == {"moody": 0}
    moody.error = RuntimeError("once more")
    assert isinstance(run(llm, BEST), Failure)
    assert isinstance(run(llm, BEST), Failure), "the count began anew"


def test_a_callers_mistake_never_counts(llm: LLM, moody: Moody) -> None:
    error = GuideError("moody", "system messages are not for me")
    error.__cause__ = InvalidRequest("system messages are not for me", param="messages")
    moody.error = error
    for _ in range(5):
        assert isinstance(run(llm, BEST), Failure)
        with pytest.raises(InvalidRequest):
            llm.score("moody", [Pair((), "x")])
    assert llm.stats.guide_circuit == {}
    moody.error = None
    assert isinstance(run(llm, BEST), Result)


def test_a_queue_without_room_spends_no_try(llm: LLM, moody: Moody, monkeypatch: pytest.MonkeyPatch) -> None:
    open_it(llm, moody)
    clock = Clock()
    llm._worker.engine.circuits._clock = clock
    with monkeypatch.context() as patch:
        patch.setattr(llm._worker.engine.backlog, "check", _full)
        with pytest.raises(Overloaded, match="full"):
            run(llm, BEST)
    for circuit in llm._worker.engine.circuits._failing.values():
        circuit.until = clock.now
    moody.error = None
    assert isinstance(run(llm, BEST), Result)


def _full(_: object) -> None:
    raise Overloaded("full")


def test_a_request_knows_the_guides_that_it_needs(llm: LLM, moody: Moody) -> None:
    def needs(decoding: dict[str, object]) -> frozenset[str]:
        return llm.prepare(GenerationRequest(prompt="go", sampling=SHORT, decoding=decoding)).guides

    assert needs({"strategy": "sample"}) == frozenset()
    assert needs(BEST) == {"moody"}
    assert needs({**BEST, "reward": {"min": ["length", {"mean": ["json", "moody"]}]}}) == {"length", "json", "moody"}
