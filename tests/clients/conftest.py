"""A stand-in server that speaks the API's wire format from a script; clients know nothing of the real one."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

DECODING = {
    "spec": {"strategy": "best_of_n", "n": 2},
    "chosen": [1],
    "candidates": [{"reward": 0.25, "tokens": 2}, {"reward": 0.75, "tokens": 2}],
    "model_tokens": {"base": 9},
    "milliseconds": {"total": 1500.0},
}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


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
        yield {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}], "usage": None}
        for piece in self.pieces:
            yield {"choices": [{"delta": {"content": piece}, "finish_reason": None}], "usage": None}
        if self.failure is not None:
            yield {"error": self.failure}
            return
        yield {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": None}
        yield {"choices": [], "usage": USAGE, "decoding": self.decoding(body)}


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
