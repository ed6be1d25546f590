"""HTTP/1.1 over one connection: uvicorn's protocol, with bounds on what a client may send, and how slowly."""

import asyncio
import logging
import uuid
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from trimtab.server.chunks import strict_json
from trimtab.server.errors import ApiError
from trimtab.server.settings import ServerSettings

log = logging.getLogger("trimtab.server")

IDLE = 65
"""seconds that an idle connection stays: longer than the 60 of most proxies, so that none sends into a closing one"""
MAX_HEADERS = 128
"""headers of one request"""
PIPELINE = 16
"""requests that wait behind a running one before reading stops; until then a client that leaves is noticed at once"""
MAX_PIPELINE = 256
"""requests that may wait in all: one read can bring thousands"""
SPARE = 64
"""connections beyond max_connections, so that an error and /health still find one"""


class ProtocolConfig(uvicorn.Config):
    """How uvicorn runs `app` here: no log of its own, no WebSockets, and BoundedProtocol."""

    def __init__(self, app: FastAPI, settings: ServerSettings, *, graceful: float) -> None:
        self.settings = settings
        super().__init__(
            app,
            http=BoundedProtocol,
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=IDLE,
            timeout_graceful_shutdown=max(1, round(graceful)),
            reset_contextvars=True,
        )


class Refused(Exception):
    """Ends the parsing of what cannot be answered; the error is what the client is told."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.detail)
        self.error = error


class BoundedProtocol(HttpToolsProtocol):
    """Ends a connection whose head is too large or too slow, that piles up requests, or that reads nothing.

    A client in the middle of an answer gets that answer first.
    """

    def __init__(
        self,
        config: ProtocolConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._settings = config.settings
        self._running: RequestResponseCycle | None = None
        """the oldest request that has no answer yet; `cycle` is the newest"""
        self._refusal: ApiError | None = None
        self._head: asyncio.TimerHandle | None = None
        """runs while the head of a request is awaited that the client has begun, or has connected for"""
        self._stalled: asyncio.TimerHandle | None = None
        """runs while the client has not read all that was written"""
        self._in_body = False
        self._fed = 0
        """bytes received that belong to no complete head and to no body"""
        self._kept = 0
        """bytes of the head's names and values"""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request, unless there are too many connections already."""
        super().connection_made(transport)
        if len(self.connections) > self._settings.max_connections + SPARE:
            transport.abort()
            return
        transport.set_write_buffer_limits(high=0)  # what is written and not sent is then always watched
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks; the request that runs learns of it, those behind it never start."""
        self._stop_head()
        self.resume_writing()
        if self._running is not None:
            self._running.disconnected = not self._running.response_complete
            self._running.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; a head that grows beyond max_header_bytes is not waited for."""
        if self._refusal is not None:
            return
        if self._head is None and not self._open:
            self._await_head()
        self._fed += len(data)
        super().data_received(data)
        if not self._in_body and self._fed > self._settings.max_header_bytes and self._refusal is None:
            self._refusal = self._too_large()
            self.send_400_response("")

    def on_message_begin(self) -> None:
        """A request has begun, perhaps behind one that still runs."""
        super().on_message_begin()
        self._kept = 0
        if self._head is None:
            self._await_head()

    def on_url(self, url: bytes) -> None:
        """Part of the request's path."""
        self._keep(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._keep(len(name) + len(value) + 4)
        if len(self.headers) >= MAX_HEADERS:
            self._refuse(ApiError(431, f"a request may have {MAX_HEADERS} headers at most", code="headers_too_large"))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole: start the request, or queue it behind the running one."""
        self._stop_head()
        self._in_body = True
        if len(self.pipeline) >= MAX_PIPELINE:
            message = f"more than {MAX_PIPELINE} requests wait on this connection: read answers before you send more"
            self._refuse(ApiError(429, message, code="pipeline_full"))
        super().on_headers_complete()
        if self.parser.should_upgrade():  # the parser takes nothing after a request that asks for another protocol
            self.cycle.keep_alive = False
        if 0 < len(self.pipeline) < PIPELINE:
            self.flow.resume_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._in_body = False
        self._fed = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """End the connection with an error, after the answers that are under way."""
        error = self._refusal or ApiError(400, "this is not HTTP/1.1 as the server reads it", code="invalid_http")
        self._refusal = error
        self._stop_head()
        log.info("refused what a connection sent: %s", error.code)
        if self._answering:
            self.cycle.keep_alive = False
            return
        if self._open:
            self.cycle.disconnected = True  # what is wrong is its body: nobody answers it but this
            self.cycle.message_event.set()
        body = strict_json(error.body)
        head = [STATUS_LINE[error.status_code], b"content-type: application/json\r\nconnection: close\r\n"]
        head += [b"%b: %b\r\n" % header for header in self.server_state.default_headers]
        head.append(b"content-length: %d\r\nx-request-id: %b\r\n\r\n" % (len(body), uuid.uuid4().hex.encode()))
        self.transport.write(b"".join([*head, body]))
        self.transport.close()

    def pause_writing(self) -> None:
        """The client has not read all: it gets write_timeout seconds to read some more."""
        super().pause_writing()
        if self._stalled is None:
            self._watch(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """The client has read all."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    @property
    def busy(self) -> bool:
        """Whether the client still waits for an answer, or for the rest of it."""
        return self._open or self.transport.get_write_buffer_size() > 0

    @property
    def _open(self) -> bool:
        """Whether a request has no whole answer yet."""
        return self._running is not None and not self._running.response_complete

    @property
    def _answering(self) -> bool:
        """Whether a request runs whose answer does not depend on what the client sends now."""
        if not self._open:
            return False
        return bool(self.pipeline) or self.cycle.response_started or not self.cycle.more_body

    def _keep(self, size: int) -> None:
        self._kept += size
        if self._kept > self._settings.max_header_bytes:
            self._refuse(self._too_large())

    def _refuse(self, error: ApiError) -> None:
        self._refusal = error
        raise Refused(error)  # out of the parser's callback, so that it takes nothing more

    def _too_large(self) -> ApiError:
        limit = self._settings.max_header_bytes
        message = f"the head of the request is larger than {limit} bytes (server.max_header_bytes)"
        return ApiError(431, message, code="headers_too_large")

    def _await_head(self) -> None:
        self._head = self.loop.call_later(self._settings.header_timeout, self._head_late)

    def _stop_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _head_late(self) -> None:
        self._head = None
        if self.transport.is_closing():
            return
        if self._in_body or not self._fed:  # the rest of a body that was answered already, or nothing at all
            self.transport.close()
            return
        seconds = self._settings.header_timeout
        message = f"the head of the request took longer than {seconds:g} s (server.header_timeout)"
        self._refusal = ApiError(408, message, code="header_timeout")
        self.send_400_response("")

    def _watch(self, unread: int) -> None:
        self._stalled = self.loop.call_later(self._settings.write_timeout, self._check_reader, unread)

    def _check_reader(self, unread: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left < unread:
            self._watch(left)
            return
        self._stalled = None
        log.info("ended a connection that read nothing for %g s", self._settings.write_timeout)
        self.transport.abort()
