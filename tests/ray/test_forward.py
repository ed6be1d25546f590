"""Whom the ingress asks, with replicas that do what a test says."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fake_handle import DIES, HANGS, JSON, STREAM, UNAVAILABLE, Handle, Response

from trimtab.cluster.forward import Forwarder, Lost
from trimtab.cluster.protocol import PROTOCOL, Call, route
from trimtab.cluster.settings import Patience
from trimtab.server.errors import ApiError

pytestmark = pytest.mark.ray

GOOD = (("hello", "b"), ("beat",), ("start", 200, JSON), ("body", b"o"), ("body", b"k"))
FULL = (("hello", "a"), ("start", 503, [*JSON, (b"retry-after", b"7")]), ("body", b"full"))
OLD = (("refused", "too old"),)
BEGUN = (("hello", "a"), ("start", 200, STREAM), ("body", b"data: 1"), DIES)
PATIENCE = Patience(beat=0.05, silence=0.1, no_replica=0.2, shunned=0.3)


def answered(
    handle: Handle, path: str = "/v1/completions", method: str = "POST", forwarder: Forwarder | None = None
) -> list[Any]:
    """What the client gets, up to the exception that ended it."""
    asking = forwarder or Forwarder(handle, PATIENCE)  # type: ignore[arg-type]
    call: Call = {
        "protocol": PROTOCOL,
        "route": route("key"),
        "method": method,
        "path": path,
        "query": b"",
        "headers": [],
        "body": b"",
    }

    async def all_of_it() -> list[Any]:
        told: list[Any] = []
        try:
            async for each in asking.answer(call):
                told.append(each)
        except (ApiError, Lost) as error:
            told.append(error)
        return told

    return asyncio.run(all_of_it())


WHOLE = [("start", 200, JSON), ("body", b"ok")]


@pytest.mark.parametrize("end", [DIES, HANGS])
@pytest.mark.parametrize("said", [0, 1, 3, 4])
def test_an_answer_that_has_not_begun_comes_from_another(said: int, end: str) -> None:
    handle = Handle([*(("hello", "a"), *GOOD[1:])[:said], end], GOOD)
    assert answered(handle) == WHOLE
    assert handle.avoided == [set(), {"a"}]


def test_a_stream_that_has_begun_is_lost_with_its_replica() -> None:
    *told, error = answered(Handle(BEGUN))
    assert told == [("start", 200, STREAM), ("body", b"data: 1")]
    assert isinstance(error, Lost)


def test_losses_come_to_an_end() -> None:
    handle = Handle(*[[DIES]] * 3)
    (error,) = answered(handle)
    assert len(handle.scripts) == 1, "a request that kills replicas gets no third"
    assert (error.status_code, error.code, error.headers["retry-after"]) == (503, "replica_lost", "1")


def test_what_changes_something_is_sent_once() -> None:
    (error,) = answered(Handle([DIES], GOOD), "/v1/norms")
    assert (error.status_code, error.code) == (503, "replica_lost")
    assert error.headers == {"x-should-retry": "false"}, "OpenAI's clients would send it again by themselves"
    assert answered(Handle(FULL, GOOD), "/v1/norms") == [FULL[1], FULL[2]]
    assert answered(Handle([DIES], GOOD), "/v1/norms", "GET") == WHOLE
    assert answered(Handle([DIES], GOOD), "/v1/norms/search", "POST") == WHOLE
    for method in ("PUT", "PATCH", "DELETE"):
        (error,) = answered(Handle([DIES], GOOD), "/v1/norms/search", method)
        assert error.code == "replica_lost", "the norm whose id is search"


def test_later_requests_pass_a_lost_replica_over_for_a_while() -> None:
    handle = Handle(BEGUN, GOOD, GOOD)
    forwarder = Forwarder(handle, PATIENCE)  # type: ignore[arg-type]
    assert isinstance(answered(handle, forwarder=forwarder)[-1], Lost)
    answered(handle, forwarder=forwarder)
    time.sleep(PATIENCE.shunned)
    answered(handle, forwarder=forwarder)
    assert handle.avoided == [set(), {"a"}, set()]


def test_who_did_not_take_a_call_is_not_blamed_for_it() -> None:
    handle = Handle([DIES], GOOD, GOOD, chosen=["a", "b"], taken=["b"])
    forwarder = Forwarder(handle, PATIENCE)  # type: ignore[arg-type]
    for _ in range(2):
        assert answered(handle, forwarder=forwarder) == WHOLE
    assert handle.avoided == [set(), {"b"}, {"b"}]


def test_who_took_the_first_try_is_not_blamed_for_the_second() -> None:
    handle = Handle([DIES], [HANGS], GOOD, taken=["b"])
    forwarder = Forwarder(handle, PATIENCE)  # type: ignore[arg-type]
    answered(handle, forwarder=forwarder)
    answered(handle, forwarder=forwarder)
    assert handle.avoided == [set(), {"b"}, {"a", "b"}]


def test_who_was_one_of_several_that_a_call_was_offered_to_is_not_blamed_for_it() -> None:
    handle = Handle([HANGS], GOOD, chosen=["a", "b"])
    assert answered(handle) == WHOLE
    assert handle.avoided == [set(), set()]


def test_what_a_call_has_met_itself_is_told_apart_from_what_others_have_lost() -> None:
    handle = Handle([DIES], GOOD, [DIES], GOOD, taken=["a", "a", "b", "a"])
    forwarder = Forwarder(handle, PATIENCE)  # type: ignore[arg-type]
    for _ in range(2):
        assert answered(handle, forwarder=forwarder) == WHOLE
    assert handle.avoided == [set(), {"a"}, {"a"}, {"a", "b"}]
    assert handle.met == [set(), {"a"}, set(), {"b"}]


def test_a_full_replica_is_replaced_once_and_then_believed() -> None:
    assert answered(Handle(FULL, GOOD)) == WHOLE
    (start, body) = answered(Handle(FULL, FULL))
    assert (start[1], body[1]) == (503, b"full")
    assert (b"retry-after", b"7") in start[2]
    assert answered(Handle(FULL, known=["a"]))[0][1] == 503


def test_another_version_is_replaced_once() -> None:
    assert answered(Handle(OLD, GOOD)) == WHOLE
    (error,) = answered(Handle(OLD, OLD))
    assert (error.status_code, error.code) == (503, "version_skew")
    assert int(error.headers["retry-after"]) > 0


def test_where_nobody_is_the_client_is_told_so() -> None:
    for script in ([HANGS], [UNAVAILABLE]):
        (error,) = answered(Handle(script, known=[]))
        assert (error.status_code, error.code) == (503, "no_replica")
        assert "x-should-retry" not in error.headers


def test_where_nobody_is_the_client_waits_as_long_as_was_set_and_no_longer() -> None:
    for silence, no_replica in ((5.0, 0.3), (0.1, 0.3)):
        began, handle = time.monotonic(), Handle([HANGS], known=[])
        patience = Patience(beat=0.05, silence=silence, no_replica=no_replica)
        answered(handle, forwarder=Forwarder(handle, patience))  # type: ignore[arg-type]
        assert no_replica <= time.monotonic() - began < no_replica + 1.0


def test_a_replica_that_comes_late_gets_its_whole_time() -> None:
    """It is offered the call as the wait for it is nearly over, and is silent for less than it may be."""
    silence = 0.6

    async def late(call: Call) -> AsyncIterator[Any]:
        await asyncio.sleep(0.5)
        call["route"]["chosen"] = ["a"]
        await asyncio.sleep(0.3)
        for each in GOOD:
            yield each

    class Late(Handle):
        def remote(self, call: Call) -> Any:
            return Response(late(call), broken=False)

    handle = Late()
    patience = Patience(beat=0.05, silence=silence, no_replica=10.0)
    assert answered(handle, "/v1/norms", forwarder=Forwarder(handle, patience)) == WHOLE  # type: ignore[arg-type]
