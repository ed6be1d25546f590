"""Servers to ask: one that speaks from a script, one that says any bytes, and the real one on a tiny model."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from running import Running
from steered import furnish, guides, load

from trimtab.clients.aio import AsyncTrimtabClient
from trimtab.clients.client import TrimtabClient
from trimtab.clients.stream import Event
from trimtab.server.settings import ServerSettings

DECODING = {
    "spec": {"strategy": "best_of_n", "n": 2},
    "chosen": [1],
    "candidates": [{"reward": 0.25, "tokens": 2}, {"reward": 0.75, "tokens": 2}],
    "model_tokens": {"base": 9},
    "milliseconds": {"total": 1500.0},
}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "tiny"}


class Scripted:
    """Answers every chat with `pieces`; `bodies` are the requests it got."""

    def __init__(self) -> None:
        self.pieces = ["Hel", "lo"]
        self.bodies: list[dict[str, Any]] = []
        self.refusal: dict[str, Any] | None = None
        self.failure: dict[str, Any] | None = None
        self.decoding: Callable[[dict[str, Any]], dict[str, Any]] = lambda _: DECODING
        """what the answer to a request says of it"""
        self.judged = {
            "/v1/score": [{"index": 0, "score": 0.5}, {"index": 1, "score": -1.0}],
            "/v1/classify": [{"index": 0, "label": "glad", "probs": [0.25, 0.75], "num_classes": 2}],
        }
        """what rewards say of answers"""
        self.url = ""

    def stream(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
            return {**HEAD, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], "usage": None}

        yield chunk({"role": "assistant", "content": ""})
        for piece in self.pieces:
            yield chunk({"content": piece})
        if self.failure is not None:
            yield {"error": self.failure}
            return
        yield chunk({}, "stop")
        yield {**HEAD, "choices": [], "usage": USAGE, "decoding": self.decoding(body)}

    def whole(self, body: dict[str, Any]) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(self.pieces), "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        told = {"choices": [choice], "usage": USAGE, "decoding": self.decoding(body)}
        return {**HEAD, "object": "chat.completion", **told}


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """The scripted server, listening."""
    script = Scripted()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            listed = {
                "/v1/models": [{"id": "tiny"}],
                "/v1/strategies": [{"name": "best_of_n", "summary": "Draw n.", "schema": {"properties": {"n": {}}}}],
            }
            self._answer(200, "application/json", json.dumps({"data": listed[self.path]}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            script.bodies.append(body)
            if script.refusal is not None:
                self._answer(400, "application/json", json.dumps({"error": script.refusal}))
                return
            if self.path in script.judged:
                self._answer(200, "application/json", json.dumps({"data": script.judged[self.path]}))
                return
            if not body.get("stream"):
                self._answer(200, "application/json", json.dumps(script.whole(body)))
                return
            lines = [f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n" for chunk in script.stream(body)]
            self._answer(200, "text/event-stream", ": keep-alive\n\n".join(lines) + "data: [DONE]\n\n")

        def _answer(self, status: int, media: str, body: str) -> None:
            self.send_response(status)
            self.send_header("content-type", media)
            self.send_header("content-length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        script.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield script
        server.shutdown()
        thread.join()


class Sockets:
    """A server that answers its connections in turn with the bytes of `script`, piece by piece, and closes them.

    A piece may be a number of seconds to wait. `requests` are what it was sent, `gone` tells that a client left first.
    """

    def __init__(self) -> None:
        self.script: list[Sequence[bytes | float]] = []
        self.requests: list[bytes] = []
        self.gone = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(10)
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        self.requests.append(_request(connection))
        try:
            for piece in self.script.pop(0):
                if isinstance(piece, bytes):
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    connection.sendall(piece)
                else:
                    time.sleep(piece)
        except OSError:
            self.gone.set()


def _request(connection: socket.socket) -> bytes:
    """A whole request with its body."""
    read = b""
    while b"\r\n\r\n" not in read:
        read += connection.recv(65536)
    head, _, body = read.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while lengths and len(body) < int(lengths[0].partition(b":")[2]):
        more = connection.recv(65536)
        body += more
        read += more
    return read


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    """The server of bytes, listening."""
    server = Sockets()
    yield server
    server.close()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The real server, on a tiny model with a guide for every role; its URL. The model is called `base`."""
    place = furnish(tmp_path_factory.mktemp("models"))
    with load(place / "base", guides(place)) as llm:
        running = Running(llm, ServerSettings())
        yield running.url
        running.stop()


class Client:
    """Either client behind one interface: `ask` returns an answer, `stream` the events of a stream."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def ask(self, url: str, method: str, *args: Any, options: dict[str, Any] | None = None, **fields: Any) -> Any:
        if self._kind == "sync":
            with TrimtabClient(url, **(options or {})) as client:
                return getattr(client, method)(*args, **fields)

        async def ask() -> Any:
            async with AsyncTrimtabClient(url, **(options or {})) as client:
                return await getattr(client, method)(*args, **fields)

        return asyncio.run(ask())

    def stream(
        self,
        url: str,
        method: str,
        *args: Any,
        most: int | None = None,
        left: threading.Event | None = None,
        **fields: Any,
    ) -> list[Event]:
        """Every event, or the first `most`, after which the loop is left; `left` must come before the client closes."""
        if self._kind == "sync":
            with TrimtabClient(url) as client:
                with contextlib.closing(getattr(client, method)(*args, **fields)) as events:
                    read = [event for _, event in zip(range(most or 10**6), events, strict=False)]
                assert left is None or left.wait(5)
                return read

        async def read() -> list[Event]:
            told: list[Event] = []
            async with AsyncTrimtabClient(url) as client:
                async with contextlib.aclosing(getattr(client, method)(*args, **fields)) as events:
                    async for event in events:
                        told.append(event)
                        if len(told) == most:
                            break
                assert left is None or left.wait(5)
            return told

        return asyncio.run(read())


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest) -> Client:
    """Both clients, one after the other."""
    return Client(request.param)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between tries."""
    monkeypatch.setattr("trimtab.clients.retries.random", SimpleNamespace(uniform=lambda low, high: 0.0))
