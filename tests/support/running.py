"""A server of the tests' own process: the app behind a real uvicorn, in a thread."""

import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import uvicorn

from trimtab.server.app import create_app
from trimtab.server.serve import DrainingServer, bind, uvicorn_config
from trimtab.server.settings import ServerSettings, Settings

if TYPE_CHECKING:
    from trimtab.llm import LLM


class Running:
    """An app in a thread; `url` is where it listens: on any free port, or on `port` where one was served before."""

    def __init__(
        self,
        llm: "LLM",
        given: ServerSettings | Settings,
        source: Callable[[], Settings] | None = None,
        *,
        port: int = 0,
    ) -> None:
        settings = given if isinstance(given, Settings) else Settings(server=given)
        settings = settings.model_copy(update={"server": settings.server.model_copy(update={"port": port})})
        app = create_app(llm, settings, source)
        listener = bind(settings.server)
        self.service = app.state.service
        self.server = DrainingServer(self.service, uvicorn_config(app))
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]})
        self.thread.start()
        wait_until(lambda: self.server.started)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)
        assert not self.thread.is_alive()


class Played:
    """An app that plays another server, in a thread; its end cuts all connections, as that of a killed process does."""

    def __init__(self, app: Any, listener: socket.socket) -> None:
        # uvicorn's own set-up of logging would be that of the whole process
        config = uvicorn.Config(app, log_config=None, lifespan="off", access_log=False, timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]})
        self._thread.start()
        wait_until(lambda: self._server.started)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)
        assert not self.alive


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Poll until the condition holds; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.005)
