"""How long a guide's deployment is waited for, and how often it is asked; without one."""

from collections.abc import Callable
from typing import Any

import pytest
from on_ray import ray, serve

from trimtab.cluster.protocol import GuideCall
from trimtab.cluster.transport import RETRY_AFTER, ServeTransport
from trimtab.engine.errors import RemoteError, RemoteUnavailable
from trimtab.engine.remote.settings import ConnectionSettings
from trimtab.engine.remote.stats import RemoteStats

pytestmark = pytest.mark.ray

FIRST, WAITING, ANSWERING = 600.0, 20.0, 60.0
TOLD = {"data": [1]}
ANSWER = (200, TOLD)
LATE = ray.exceptions.GetTimeoutError("Get timed out: some object(s) not ready.")
LOST = ray.exceptions.ActorDiedError()
TASK = ray.exceptions.RayTaskError("judge", "traceback", RuntimeError("CUDA error"))

Step = tuple[int, dict[str, Any]] | BaseException


class Handle:
    """A handle whose calls go as they are told: each a list of what `result` gives or raises, one after another."""

    def __init__(self, *calls: list[Step], accepted: bool = True) -> None:
        self.calls = list(calls)
        self.accepted = accepted
        self.waited: list[float] = []
        self.cancelled = 0

    @property
    def post(self) -> "Handle":
        return self

    def remote(self, asked: GuideCall) -> "Response":
        if self.accepted:
            asked["route"]["accepted"].append("replica")
        return Response(self, self.calls.pop(0))


class Response:
    def __init__(self, handle: Handle, steps: list[Step]) -> None:
        self.handle = handle
        self.steps = steps

    def result(self, timeout_s: float) -> tuple[int, dict[str, Any]]:
        self.handle.waited.append(timeout_s)
        step = self.steps.pop(0)
        if isinstance(step, BaseException):
            raise step
        return step

    def cancel(self) -> None:
        self.handle.cancelled += 1


Make = Callable[[Handle], ServeTransport]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    def made(handle: Handle) -> ServeTransport:
        monkeypatch.setattr(serve, "get_deployment_handle", lambda *_: handle)
        settings = ConnectionSettings.model_construct(url="serve://trimtab/guide-taste?digest=d")
        return ServeTransport(settings, RemoteStats(), first=FIRST, waiting=WAITING, answering=ANSWERING)

    return made


def test_a_guide_that_is_silent_is_asked_once(make: Make) -> None:
    handle = Handle([TimeoutError(), LATE])
    with pytest.raises(RemoteUnavailable, match="guide-taste does not answer in time") as caught:
        make(handle).post("/v1/score", {})
    assert caught.value.retry_after == RETRY_AFTER
    assert (handle.waited, handle.cancelled) == ([FIRST, ANSWERING], 1)


def test_a_guide_without_a_replica_is_told_so(make: Make) -> None:
    handle = Handle([TimeoutError()], accepted=False)
    with pytest.raises(RemoteUnavailable, match="has no replica"):
        make(handle).post("/v1/score", {})
    assert (handle.waited, handle.cancelled) == ([FIRST], 1)


def test_the_beginning_is_waited_for_longer(make: Make) -> None:
    handle = Handle([ANSWER], [TimeoutError(), ANSWER])
    transport = make(handle)
    assert [transport.post("/v1/score", {}) for _ in range(2)] == [TOLD, TOLD]
    assert (handle.waited, handle.cancelled) == ([FIRST, WAITING, ANSWERING], 0)


def test_a_replica_that_dies_is_replaced_once(make: Make) -> None:
    handle = Handle([LOST], [ANSWER])
    assert make(handle).post("/v1/score", {}) == TOLD
    assert (handle.waited, handle.cancelled) == ([FIRST, FIRST], 1)
    with pytest.raises(RemoteUnavailable, match=r"was lost \(ActorDiedError\)"):
        make(Handle([LOST], [LOST])).post("/v1/score", {})


def test_a_guide_that_fails_is_asked_once(make: Make) -> None:
    handle = Handle([TASK])
    with pytest.raises(RemoteError, match="failed with RuntimeError"):
        make(handle).post("/v1/score", {})
    assert len(handle.waited) == 1


@pytest.mark.parametrize(("status", "error"), [(503, RemoteUnavailable), (400, RemoteError)])
def test_refusals_are_passed_on(make: Make, status: int, error: type[Exception]) -> None:
    handle = Handle([(status, {"error": {"message": "too long"}})])
    with pytest.raises(error, match="too long"):
        make(handle).post("/v1/score", {})
