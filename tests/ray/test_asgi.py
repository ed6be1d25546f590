"""An application driven without a socket."""

import asyncio
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from trimtab.cluster.asgi import Driver
from trimtab.cluster.protocol import PROTOCOL, Call, Reply, route

CALL: Call = {
    "protocol": PROTOCOL,
    "route": route(),
    "method": "POST",
    "path": "/p",
    "query": b"q=1",
    "headers": [(b"a", b"b")],
    "body": b"asked",
}


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer in two pieces what was asked, slowly."""
    message = await receive()
    await send({"type": "http.response.start", "status": 201, "headers": scope["headers"]})
    await asyncio.sleep(0.12)
    for piece in (scope["path"].encode(), scope["query_string"] + message["body"]):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def run(app: Any, beat: float = 10.0) -> list[Reply]:
    async def all_of_it() -> list[Reply]:
        return [each async for each in Driver(app, beat).drive(CALL)]

    return asyncio.run(all_of_it())


def test_what_is_at_hand_comes_as_one_message() -> None:
    assert run(echo) == [("start", 201, [(b"a", b"b")]), ("body", b"/pq=1asked")]


def test_silence_is_broken_by_signs_of_life() -> None:
    kinds = [each[0] for each in run(echo, beat=0.05)]
    assert kinds == ["start", "beat", "beat", "body"]


def test_what_the_application_raises_is_raised() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        run(broken)


def test_one_that_is_given_up_sees_its_client_go_and_ends_by_itself() -> None:
    seen: list[str] = []

    async def patient(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        seen.append((await receive())["type"])
        await asyncio.sleep(0)
        seen.append("ended")

    async def leave() -> None:
        replies = Driver(patient, 10.0).drive(CALL)
        assert (await anext(replies))[0] == "start"
        await replies.aclose()
        await asyncio.sleep(0.05)

    asyncio.run(leave())
    assert seen == ["http.disconnect", "ended"]
