"""`trimtab serve`: bind, load, listen, drain."""

import asyncio
import logging
import signal
import socket
import threading
import time
from contextlib import closing
from types import FrameType

import uvicorn
from fastapi import FastAPI

from trimtab.engine.errors import Draining, TrimtabError
from trimtab.server import telemetry
from trimtab.server.logs import logging_to
from trimtab.server.protocol import BoundedProtocol, ProtocolConfig
from trimtab.server.service import Service
from trimtab.server.settings import ServerSettings, Settings, Source

log = logging.getLogger("trimtab.server")

FORCED = 1.0
"""seconds that connections get to close once running requests are done or out of time"""
LAST = 1.0
"""seconds before that time at which searches are told to end with the best that they have"""


class PortTaken(TrimtabError):
    """The address cannot be bound."""


def bind(settings: ServerSettings) -> socket.socket:
    """A bound socket that does not listen yet; raises PortTaken with the way out."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        raise PortTaken(
            f"cannot listen on {where} ({error.strerror or error}): "
            "choose another port with --port, or --port 0 for any free one"
        ) from None
    return listener


def serve(source: Source) -> None:
    """Serve until a signal ends it; raises TrimtabError when settings, port or model are not to be had."""
    settings = source.load()
    with logging_to(settings.server.log):
        if settings.server.telemetry:
            telemetry.check()
        listener = bind(settings.server)
        try:
            _serve(settings, source, listener)
        finally:
            listener.close()


def _serve(settings: Settings, source: Source, listener: socket.socket) -> None:
    # Imported after the port is ours: transformers takes seconds to import, and a taken port is told before.
    from trimtab.decoders.library import Library
    from trimtab.llm import LLM
    from trimtab.server.app import create_app

    with closing(Library(settings.server.library)) as library:
        llm = LLM(settings=settings.engine, library=library, attributes=settings.attributes)
        try:
            app = create_app(llm, settings, source.load)
        except TrimtabError:
            llm.close()
            raise
        try:
            DrainingServer(app.state.service, uvicorn_config(app)).run(sockets=[listener])
        finally:
            app.state.service.close()


def uvicorn_config(app: FastAPI) -> ProtocolConfig:
    """How uvicorn runs `app` here."""
    return ProtocolConfig(app, app.state.service.settings, graceful=FORCED)


class DrainingServer(uvicorn.Server):
    """Keeps listening while it drains, so that /ready says so and new requests get a 503, not a reset."""

    def __init__(self, service: Service, config: ProtocolConfig) -> None:
        super().__init__(config)
        self._service = service
        self._deadline: float | None = None
        self._interrupted = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second ends at once."""
        if self._deadline is not None:
            super().handle_exit(sig, frame)
            self.force_exit = True
            return
        self._deadline = time.monotonic() + self._service.settings.shutdown_timeout
        self._service.drain()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether the main loop ends."""
        if self._deadline is not None:
            self._drain(self._deadline - time.monotonic())
        return await super().on_tick(counter)

    def _drain(self, left: float) -> None:
        """End when nobody waits for an answer; `left` seconds remain until the rest is told an error."""
        if not any(isinstance(each, BoundedProtocol) and each.busy for each in self.server_state.connections):
            self.should_exit = True
            return
        if left <= LAST and not self._interrupted:
            self._interrupted = True
            for llm in self._service.llms.values():
                llm.interrupt_all()
        if left <= 0:
            log.warning("out of time: %d requests end with an error", self._service.bridge.open)
            self._service.bridge.halt(Draining("the server is shutting down and is out of time"))
            self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say where and how to try it; from now on SIGHUP reloads."""
        await super().startup(sockets=sockets)
        if threading.current_thread() is threading.main_thread():
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGHUP, lambda: loop.run_in_executor(None, self._service.try_reload))
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            url = f"http://{_reachable(host)}:{port}"
            print(_welcome(url, next(iter(self._service.llms)), self._service.settings.playground), flush=True)


def _reachable(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        return "localhost"
    return f"[{host}]" if ":" in host else host


def _welcome(url: str, model: str, playground: bool) -> str:
    page = f"\n  see what steering does: {url}/" if playground else ""
    return (
        f"trimtab serves {model} at {url}\n"
        f"  curl {url}/v1/chat/completions -H 'content-type: application/json' \\\n"
        f'    -d \'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}]}}\'{page}'
    )
