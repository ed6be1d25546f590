"""One HTTP request on its way through the replicas: whom to ask, when to ask another, when to give up."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from trimtab.cluster.protocol import SKEW, Body, Call, Reply, Start
from trimtab.cluster.settings import Patience
from trimtab.server.errors import NO_RETRY, ApiError

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

LOST = "replica_lost"
"""code of the error of a request whose replica died"""
LOSSES = 2
"""replicas that a request may lose before it is given up: it may be the request that kills them"""
PURE = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/score",
        "/v1/classify",
        "/tokenize",
        "/detokenize",
        "/v1/norms/search",
    }
)
"""routes that change nothing whatever their method is, so that they may be asked twice"""


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
        pure = call["method"] in ("GET", "HEAD", "OPTIONS") or call["path"] in PURE
        losses, refused = LOSSES if pure else 1, False
        while True:
            call["route"]["avoid"] = self._avoided(call)
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

    async def ask_only(self, call: Call, replica: str, seconds: float) -> bytes | None:
        """The body of one replica's answer; None unless it answers 200 in time."""
        call["route"]["only"] = replica
        try:
            async with asyncio.timeout(seconds), aclosing(self._attempt(call)) as replies:
                start = await anext(replies)
                body = b"".join([reply[1] async for reply in replies if reply[0] == "body"])
        except (TimeoutError, Lost, ApiError, _Skew, StopAsyncIteration):
            return None
        return body if start[1] == 200 else None

    async def _attempt(self, call: Call) -> AsyncGenerator[Start | Body, None]:
        """One replica's answer; the replica that gave it, or was chosen for it, is avoided from now on."""
        call["route"]["chosen"], call["route"]["accepted"] = [], []
        response = self._ask.remote(call)
        begun, ended = time.monotonic(), False
        try:
            while True:
                try:
                    reply = await self._next(response, call, begun)
                except Lost:
                    self._shun(_met(call))
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
                response.cancel()  # type: ignore[no-untyped-call]

    async def _next(self, response: Any, call: Call, begun: float) -> Reply | None:
        """What the replica says next, None at its end."""
        task = asyncio.ensure_future(_one(response))
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=self._patience.silence)
                if task.done():
                    break
                if _met(call):
                    raise Lost
                if time.monotonic() - begun > self._patience.no_replica:
                    raise no_replica()
        finally:
            if not task.done():
                task.add_done_callback(_read)
                task.cancel()
        if task.cancelled():  # not by us: the replica was stopped
            raise Lost
        try:
            return task.result()
        except BackPressureError:
            message = "too many requests wait for a replica; try again later"
            raise ApiError(503, message, code="overloaded", headers={"retry-after": "1"}) from None
        except RayTaskError:
            message = "internal error; the log of the replica has the details under this x-request-id"
            raise ApiError(500, message, code="internal_error", headers=NO_RETRY) from None
        except RayError:
            raise Lost from None
        except RayServeException:
            raise no_replica() from None

    def _shun(self, replicas: list[str]) -> None:
        self._shunned |= dict.fromkeys(replicas, time.monotonic() + self._patience.shunned)

    def _avoided(self, call: Call) -> list[str]:
        """Replicas that this request has met, and those lost not long ago."""
        now = time.monotonic()
        self._shunned = {each: until for each, until in self._shunned.items() if until > now}
        return list({*call["route"]["avoid"], *_met(call), *self._shunned})

    @staticmethod
    def _alone(call: Call) -> bool:
        """Whether there is nobody else to ask."""
        return not {*call["route"]["known"]} - {*call["route"]["avoid"], *_met(call)}


class _Skew(Exception):
    """The replica speaks another protocol."""


def _met(call: Call) -> list[str]:
    """The replica that has taken the call; while none has, those that it was offered to."""
    return call["route"]["accepted"] or call["route"]["chosen"]


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
