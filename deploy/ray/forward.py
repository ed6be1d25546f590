"""One HTTP request on its way through the replicas: whom to ask, when to ask another, when to give up."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from trimtab.cluster.protocol import SKEW, Body, Call, Reply, Start, changes, meets
from trimtab.cluster.settings import Patience
from trimtab.server.errors import NO_RETRY, ApiError

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

LOST = "replica_lost"
"""code of the error of a request whose replica died"""
LOSSES = 2
"""replicas that a request may lose before it is given up: it may be the request that kills them"""
LOOKS = 10
"""times in `patience.silence` that a call which nobody was asked yet is looked after"""


class Lost(Exception):
    """The replica has died, or has been silent for too long."""


class Forwarder:
    """Asks replicas through a handle, and remembers for a while which ones were lost."""

    def __init__(self, handle: "DeploymentHandle[Any]", patience: Patience) -> None:
        self._ask = handle.options(stream=True).answer
        self._patience = patience
        self._shunned: dict[str, float] = {}
        """lost replicas, each with the time at which it may be asked again"""

    async def answer(self, call: Call) -> AsyncGenerator[Start | Body, None]:
        """The answer of one replica: its start, then its body.

        Nothing is yielded before it has begun; until then a replica that is lost, or refuses, is replaced by another.
        Raises ApiError where none answers, and Lost for a replica that is lost after the beginning.
        """
        pure = not changes(call["method"], call["path"])
        losses, refused = LOSSES if pure else 1, False
        while True:
            call["route"]["met"] += meets(call["route"])
            call["route"]["shunned"] = self._shunned_now()
            replies = self._attempt(call)
            async with aclosing(replies):
                try:
                    start = await anext(replies)
                    whole = await _whole(start, replies)
                except (Lost, StopAsyncIteration):
                    losses -= 1
                    if not losses:
                        raise (lost_error() if pure else unsure_error()) from None
                    continue
                except _Skew as error:
                    if refused or self._alone(call):
                        headers = {"retry-after": "5"}
                        raise ApiError(503, str(error), code=SKEW, headers=headers) from None
                    refused = True
                    continue
                if start[1] == 503 and pure and not refused and not self._alone(call):
                    refused = True
                    continue
                yield start
                if whole is not None:
                    yield ("body", whole)
                    return
                async for reply in replies:
                    assert reply[0] == "body"
                    yield reply
                return

    async def ask_only(self, call: Call, replica: str, seconds: float) -> list[Start | Body]:
        """One replica's answer; empty unless it is there as a whole in time."""
        call["route"]["only"] = replica
        try:
            async with asyncio.timeout(seconds), aclosing(self._attempt(call)) as replies:
                return [reply async for reply in replies]
        except (TimeoutError, Lost, ApiError, _Skew):
            return []

    async def _attempt(self, call: Call) -> AsyncGenerator[Start | Body, None]:
        """One replica's answer; a replica that is lost over it is shunned for a while."""
        call["route"]["chosen"], call["route"]["accepted"] = [], []
        response = self._ask.remote(call)
        begun, ended = time.monotonic(), False
        try:
            while True:
                try:
                    reply = await self._next(response, call, begun)
                except Lost:
                    self._shun(meets(call["route"]))
                    raise
                if reply is None:
                    ended = True
                    return
                match reply[0]:
                    case "hello":
                        call["route"]["accepted"] = [reply[1]]
                    case "refused":
                        raise _Skew(reply[1])
                    case "start" | "body":
                        yield reply
        finally:
            if not ended:
                with suppress(RayError, RayServeException):  # what has ended the call already, once more
                    response.cancel()  # type: ignore[no-untyped-call]

    async def _next(self, response: Any, call: Call, begun: float) -> Reply | None:
        """What the replica says next, None at its end."""
        task = asyncio.ensure_future(_one(response))
        silence, last = self._patience.silence, begun + self._patience.no_replica
        try:
            while not task.done():
                offered = bool(call["route"]["chosen"])  # the silence of a replica begins no earlier
                look = silence if offered else max(0.0, min(silence / LOOKS, last - time.monotonic()))
                await asyncio.wait({task}, timeout=look)
                if task.done():
                    break
                if offered:
                    raise Lost
                if not call["route"]["chosen"] and time.monotonic() >= last:
                    raise no_replica()
        finally:
            if not task.done():
                task.add_done_callback(_read)
                task.cancel()
        if task.cancelled():  # not by us: the replica was stopped
            raise Lost
        try:
            return task.result()
        except RayTaskError:
            message = "internal error; the log of the replica has the details under this x-request-id"
            raise ApiError(500, message, code="internal_error", headers=NO_RETRY) from None
        except RayError:
            raise Lost from None
        except RayServeException:
            raise no_replica() from None

    def _shun(self, replicas: list[str]) -> None:
        self._shunned |= dict.fromkeys(replicas, time.monotonic() + self._patience.shunned)

    def _shunned_now(self) -> list[str]:
        """Replicas lost not long ago."""
        now = time.monotonic()
        self._shunned = {each: until for each, until in self._shunned.items() if until > now}
        return list(self._shunned)

    @staticmethod
    def _alone(call: Call) -> bool:
        """Whether there is nobody else to ask."""
        asked = call["route"]
        return not {*asked["known"]} - {*asked["met"], *asked["shunned"], *meets(asked)}


class _Skew(Exception):
    """The replica speaks another protocol."""


def _read(task: "asyncio.Task[Any]") -> None:
    """Look at how a task that was given up has ended, so that asyncio does not complain that nobody did."""
    if not task.cancelled():
        task.exception()


async def _one(response: Any) -> Reply | None:
    try:
        return await anext(response)
    except StopAsyncIteration:
        return None


async def _whole(start: Start | Body, replies: AsyncGenerator[Start | Body, None]) -> bytes | None:
    """The body of an answer that is no stream: it has begun once it is there as a whole. None for a stream."""
    assert start[0] == "start"
    kind = next((value for name, value in start[2] if name.lower() == b"content-type"), b"")
    if kind.startswith(b"text/event-stream"):
        return None
    return b"".join([reply[1] async for reply in replies if reply[0] == "body"])


def lost_error() -> ApiError:
    """What a client is told whose replica was lost, and whose request can be sent again."""
    message = "the replica that answered was lost; send the request again"
    return ApiError(503, message, code=LOST, headers={"retry-after": "1"})


def unsure_error() -> ApiError:
    """The same for a request that changes something; clients that retry by themselves must not."""
    message = (
        "the replica was lost while it worked; nobody knows whether the change was made: look before you send it again"
    )
    return ApiError(503, message, code=LOST, headers=NO_RETRY)


def no_replica() -> ApiError:
    """What a client is told while there are none."""
    message = "no replica is there to answer; try again later"
    return ApiError(503, message, code="no_replica", headers={"retry-after": "5"})
