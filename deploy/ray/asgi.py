"""An application that runs in its own process, as a stream of what it sends."""

import asyncio
from collections.abc import AsyncGenerator, MutableMapping
from typing import Any

from starlette.types import ASGIApp, Message

from trimtab.cluster.protocol import Call, Reply


class Driver:
    """Runs ASGI requests. One that is given up sees its client go, and ends by itself."""

    def __init__(self, app: ASGIApp, beat: float) -> None:
        """`beat`: seconds of silence after which a sign of life is sent."""
        self._app = app
        self._beat = beat
        self._running: set[asyncio.Task[None]] = set()

    async def drive(self, call: Call) -> AsyncGenerator[Reply, None]:
        """Answer one call; what the application raises is raised here."""
        gone = asyncio.Event()
        sent: asyncio.Queue[Message | None] = asyncio.Queue()
        asked = False

        async def receive() -> Message:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": call["body"], "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.put_nowait(message)

        task = asyncio.ensure_future(_call(self._app, _scope(call), receive, send))
        self._running.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._running.discard)
        task.add_done_callback(lambda _: sent.put_nowait(None))
        try:
            while True:
                try:
                    message = await asyncio.wait_for(sent.get(), self._beat)
                except TimeoutError:
                    yield ("beat",)
                    continue
                if message is None:
                    task.result()
                    return
                if message["type"] == "http.response.start":
                    yield ("start", message["status"], [(bytes(k), bytes(v)) for k, v in message["headers"]])
                elif body := message.get("body", b""):
                    yield ("body", body + _at_hand(sent))
        finally:
            gone.set()


async def _call(app: ASGIApp, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    await app(scope, receive, send)


def _at_hand(sent: "asyncio.Queue[Message | None]") -> bytes:
    """The bodies that wait already: one message costs as much as many."""
    joined = b""
    while not sent.empty():
        message = sent.get_nowait()
        if message is None:
            sent.put_nowait(None)
            break
        joined += message.get("body", b"")
    return joined


def _scope(call: Call) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": call["method"],
        "scheme": "http",
        "path": call["path"],
        "raw_path": call["path"].encode(),
        "root_path": "",
        "query_string": call["query"],
        "headers": [tuple(pair) for pair in call["headers"]],
        "client": None,
        "server": None,
        "state": {},
    }
