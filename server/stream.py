"""A streamed answer: server-sent events written as the engine delivers them."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from trimtab.server import report
from trimtab.server.bridge import Exchange, News
from trimtab.server.chunks import DONE, KEEP_ALIVE, Chunks, event
from trimtab.server.errors import ClientGone, api_error
from trimtab.server.offload import build, weight
from trimtab.server.service import Service


class EventStream(Response):
    """Streams one exchange; a client that leaves cancels it.

    Everything that became readable at once goes out in one write; after a silence a comment is sent.
    """

    media_type = "text/event-stream"

    def __init__(self, service: Service, exchange: Exchange, chunks: Chunks) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._bridge = service.bridge
        self._exchange = exchange
        self._chunks = chunks
        self._keep_alive = service.settings.keep_alive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with (
            self._bridge.watched(self._exchange, receive),
            _Silence(self._exchange, self._keep_alive) as silence,
        ):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async for body in self._events():
                    silence.broken = body is not KEEP_ALIVE
                    await send({"type": "http.response.body", "body": body, "more_body": True})
            except ClientGone:
                return
            except Exception as error:
                told = api_error(error)
                if self._exchange.record is not None:
                    self._exchange.record.error = told.code
                body = event(told.body) + DONE
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncIterator[bytes]:
        exchange, chunks = self._exchange, self._chunks
        opening = chunks.opening(range(len(exchange.prepared) * exchange.choices))
        if opening:
            yield opening
        running = len(exchange.prepared)  # as far as this reader knows; the exchange may be ahead of it
        while running:
            news = await exchange.read()
            if not any(news):
                yield KEEP_ALIVE
                continue
            heavy = weight(exchange.results if news.ended else (), news.deltas.values())
            body = await build(heavy, partial(self._told, news, running))
            running -= len(news.ended)
            if body:
                yield body
        yield DONE

    def _told(self, news: News, running: int) -> bytes:
        """The chunks of what is new; `running` prompts had not ended before."""
        exchange, chunks = self._exchange, self._chunks
        body = b"".join([chunks.delta(index, delta) for index, delta in news.deltas.items()])
        for part, progress in news.progress.items():
            body += chunks.progress(progress, part if len(exchange.prepared) > 1 else None)
        for number, part in enumerate(news.ended, 1):
            body += self._endings(part, last=number == running)
        return body

    def _endings(self, part: int, *, last: bool) -> bytes:
        exchange = self._exchange
        result = exchange.results[part]
        assert result is not None
        done = [result for result in exchange.results if result is not None]
        decoding = report.decodings(exchange, done, trace_sent=self._chunks.extras.trace) if last else None
        rides_on_usage = last and self._chunks.extras.usage
        body = b""
        for number, choice in enumerate(result.choices):
            final = last and number == len(result.choices) - 1 and not rides_on_usage
            body += self._chunks.finish(part * exchange.choices + number, choice, decoding if final else None)
        if rides_on_usage:
            body += self._chunks.usage(report.usage(done).model_dump(), decoding)
        return body


class _Silence:
    """Wakes a stream's reader once per `seconds` in which nothing was sent; one timer, re-armed rarely."""

    def __init__(self, exchange: Exchange, seconds: float) -> None:
        self.broken = False
        self._exchange = exchange
        self._seconds = seconds

    def __enter__(self) -> "_Silence":
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(self._seconds, self._tick)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _tick(self) -> None:
        if not self.broken:
            self._exchange.nudge()
        self.broken = False
        self._timer = self._loop.call_later(self._seconds, self._tick)
