"""`trimtab serve`: bind, load, listen, drain."""

import logging
import socket
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from trimtab.engine.errors import TrimtabError
from trimtab.server.service import Service
from trimtab.server.settings import ServerSettings, Settings

log = logging.getLogger("trimtab.server")

FORCED = 1.0
"""seconds that connections get to close once running requests are done or out of time"""


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


def serve(settings: Settings) -> None:
    """Serve until a signal ends it; raises TrimtabError when the port or the model is not to be had."""
    listener = bind(settings.server)
    try:
        # Imported after the port is ours: torch takes seconds to import, a taken port should be told at once.
        from trimtab.llm import LLM
        from trimtab.server.app import create_app

        llm = LLM(settings.engine.model, settings=settings.engine)
        try:
            app = create_app(llm, settings)
            server = DrainingServer(app.state.service, uvicorn_config(app))
            server.run(sockets=[listener])
        finally:
            llm.close()
    finally:
        listener.close()


def uvicorn_config(app: FastAPI) -> uvicorn.Config:
    """How uvicorn runs `app` here; uvloop and httptools are used where they are installed."""
    return uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=max(1, round(FORCED)),
        server_header=False,
    )


class DrainingServer(uvicorn.Server):
    """Keeps listening while it drains, so that /ready says so and new requests get a 503, not a reset."""

    def __init__(self, service: Service, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._service = service
        self._deadline: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second ends at once."""
        if self._deadline is not None:
            super().handle_exit(sig, frame)
            return
        self._deadline = time.monotonic() + self._service.settings.shutdown_timeout
        self._service.drain()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether the main loop ends."""
        if self._deadline is not None and (self._service.bridge.open == 0 or time.monotonic() >= self._deadline):
            self.should_exit = True
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say where and how to try it."""
        await super().startup(sockets=sockets)
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            print(_welcome(f"http://{_reachable(host)}:{port}", self._service.llm.model_name), flush=True)


def _reachable(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        return "localhost"
    return f"[{host}]" if ":" in host else host


def _welcome(url: str, model: str) -> str:
    return (
        f"trimtab serves {model} at {url}\n"
        f"  curl {url}/v1/chat/completions -H 'content-type: application/json' \\\n"
        f'    -d \'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}]}}\''
    )
