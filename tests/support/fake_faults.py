"""What may go wrong with the answers of a fake server, and how they are sent then."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

COMPLETIONS = ("/v1/completions", "/generate", "/completion")


@dataclass
class Fault:
    """What happens to a call instead of, or on top of, its answer."""

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    """bytes in place of the answer"""
    delay: float = 0.0
    """seconds before anything is answered"""
    pause: float = 0.0
    """seconds before each chunk of a stream"""
    mangle: Callable[[Any], Any] | None = None
    """changes the answer, or each chunk of a stream"""
    drop_after: int | None = None
    """events, or halves of an answer, before the connection is cut; 0: before the head"""
    only: tuple[str, ...] = COMPLETIONS
    """paths that it befalls"""


class WithTransport:
    """Puts the connection where an answer finds it, to cut it."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._app({**scope, "transport": send.__self__.transport}, receive, send)


class Faulty(Response):
    """Sends an answer as a fault wants it, and notices a client that leaves."""

    def __init__(self, fake: Any, fault: Fault, answer: Any, status: int, *, stream: bool) -> None:
        super().__init__(status_code=status, headers=dict(fault.headers))
        self._fake, self._fault, self._answer, self._stream = fake, fault, answer, stream
        self._runs = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        fake = self._fake
        self._runs = 1
        fake.running += 1
        fake.most = max(fake.most, fake.running)
        sending = asyncio.create_task(self._send(scope, send))
        leaving = asyncio.create_task(receive())
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not sending.done() and self._fault.drop_after is None:
                fake.gone += 1
        finally:
            self._end()
            for task in (sending, leaving):
                task.cancel()
            ended, _ = await asyncio.gather(sending, leaving, return_exceptions=True)
            if isinstance(ended, Exception):
                raise ended

    async def _send(self, scope: Any, send: Any) -> None:
        fault = self._fault
        await asyncio.sleep(fault.delay)
        if fault.drop_after == 0:
            await _cut_off(scope)
            return
        kind = b"text/event-stream" if self._stream else b"application/json"
        headers = [(b"content-type", kind), *((k.encode(), v.encode()) for k, v in fault.headers.items())]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        sent = 0
        async for piece in self._pieces():
            if fault.drop_after is not None and sent >= fault.drop_after:
                await _cut_off(scope)
                return
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            sent += 1
        self._end()  # before the client knows, which may ask again at once
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _end(self) -> None:
        self._fake.running -= self._runs
        self._runs = 0

    async def _pieces(self) -> AsyncIterator[bytes]:
        fault = self._fault
        if fault.body is not None:
            yield fault.body
            return
        mangle = fault.mangle or (lambda value: value)
        if not self._stream:
            whole = json.dumps(mangle(self._answer)).encode()
            for half in (whole[: len(whole) // 2], whole[len(whole) // 2 :]):
                yield half
            return
        for chunk in self._fake.chunks(self._answer):
            await asyncio.sleep(fault.pause)
            yield b"data: " + json.dumps(mangle(chunk)).encode() + b"\n\n"
        yield b"data: [DONE]\n\n"


async def _cut_off(scope: Any) -> None:
    scope["transport"].abort()
    await asyncio.sleep(0.05)  # until the server has noticed, and answers nothing in our place
