"""A guide's deployment, called without one."""

import asyncio
from collections.abc import Sequence

import pytest
from on_ray import ray  # noqa: F401

from trimtab.cluster.guide import FAILURES, Answer, Guide
from trimtab.cluster.protocol import PROTOCOL, GuideCall, route
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.rewards import Judgement, Pair
from trimtab.server.settings import Settings

pytestmark = pytest.mark.ray

ODD = "odd"


class Judge:
    """Scores by length, and takes no odd answers."""

    labels = ("LABEL_0",)

    def __init__(self) -> None:
        self.batches: list[int] = []

    def judge(self, pairs: Sequence[Pair]) -> list[Judgement]:
        self.batches.append(len(pairs))
        for each in pairs:
            if each.answer == ODD:
                raise InvalidRequest("the conversation does not fit the template")
        return [Judgement(float(len(each.answer)), (1.0,), 1) for each in pairs]

    def check(self) -> None:
        """It is always well, as a classifier is."""

    def close(self) -> None: ...


def call(*answers: str) -> GuideCall:
    pairs = [{"prompt": "Hi", "answer": each} for each in answers]
    return {
        "protocol": PROTOCOL,
        "digest": "d",
        "route": route(),
        "path": "/v1/score",
        "body": {"model": "taste", "pairs": pairs},
    }


class Batch:
    """Serve's batches, which take a replica around them: the first so many calls are one."""

    guide: Guide

    def __init__(self) -> None:
        self.asked: list[list[Pair]] = []
        self.full = asyncio.Event()

    def set_max_batch_size(self, size: int) -> None:
        self.size = size

    def set_batch_wait_timeout_s(self, seconds: float) -> None: ...

    async def __call__(self, pairs: list[Pair]) -> list[Judgement] | Exception:
        place = len(self.asked)
        self.asked.append(pairs)
        if len(self.asked) == self.size:
            self.told = self.guide._judge_calls(self.asked)
            self.full.set()
        await self.full.wait()
        return self.told[place]


def answers(judge: Judge, *calls: GuideCall, monkeypatch: pytest.MonkeyPatch) -> list[Answer]:
    """Of calls that come at once, so that they make one batch."""
    batch = Batch()
    monkeypatch.setattr("trimtab.cluster.judge.load_judge", lambda *_: judge)
    monkeypatch.setattr(Guide, "_judged", batch)
    settings = Settings().model_dump(mode="json")

    async def together() -> list[Answer]:
        batch.guide = Guide(settings, "taste", "d", 0.0, len(calls), 0.5)
        return await asyncio.gather(*(batch.guide.post(each) for each in calls))

    return asyncio.run(together())


def scores(answer: Answer) -> list[float]:
    assert answer[0] == 200
    return [each["score"] for each in answer[1]["data"]]


def test_calls_that_come_at_once_are_judged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Judge()
    one, two = answers(judge, call("a", "bb"), call("ccc"), monkeypatch=monkeypatch)
    assert (scores(one), scores(two)) == ([1.0, 2.0], [3.0])
    assert judge.batches == [3]


def test_a_call_that_cannot_be_judged_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Judge()
    one, bad, two = answers(judge, call("a", "bb"), call("a", ODD), call("ccc"), monkeypatch=monkeypatch)
    assert (scores(one), scores(two)) == ([1.0, 2.0], [3.0])
    assert (bad[0], bad[1]["error"]["message"]) == (400, "the conversation does not fit the template")
    assert judge.batches == [5, 2, 2, 1], "each once with all, once alone"


class Broken(Judge):
    """A judge whose device fails while `broken`."""

    broken = True

    def judge(self, pairs: Sequence[Pair]) -> list[Judgement]:
        judged = super().judge(pairs)
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return judged


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> tuple[Guide, Broken]:
    judge = Broken()
    monkeypatch.setattr("trimtab.cluster.judge.load_judge", lambda *_: judge)
    monkeypatch.setattr(Guide, "_judged", Batch())
    return Guide(Settings().model_dump(mode="json"), "taste", "d", 0.0, 1, 0.5), judge


def fail(guide: Guide, times: int) -> None:
    for _ in range(times):
        with pytest.raises(RuntimeError, match="CUDA error"):
            guide._judge_calls([[Pair("Hi", "a")]])


def test_a_guide_whose_calls_all_fail_is_unwell(broken: tuple[Guide, Broken]) -> None:
    guide, _ = broken
    fail(guide, FAILURES - 1)
    guide.check_health()
    fail(guide, 1)
    with pytest.raises(RuntimeError, match="3 calls in a row"):
        guide.check_health()


def test_failures_between_answers_leave_a_guide_well(broken: tuple[Guide, Broken]) -> None:
    guide, judge = broken
    for _ in range(FAILURES):
        fail(guide, FAILURES - 1)
        judge.broken = False
        guide._judge_calls([[Pair("Hi", "a")]])
        judge.broken = True
    guide.check_health()


def test_calls_that_are_wrong_themselves_count_neither_way(broken: tuple[Guide, Broken]) -> None:
    guide, _ = broken
    wrong = [[Pair("Hi", ODD)]]
    for _ in range(FAILURES):
        assert isinstance(guide._judge_calls(wrong)[0], InvalidRequest)
    guide.check_health()
    fail(guide, FAILURES - 1)
    guide._judge_calls(wrong)
    fail(guide, 1)
    with pytest.raises(RuntimeError, match="in a row"):
        guide.check_health()
