"""A server of another make that judges answers by their length, with faults to switch on."""

import math
from collections.abc import Callable
from typing import Any

from running import Played
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from trimtab.server.serve import bind
from trimtab.server.settings import ServerSettings

Body = dict[str, Any]


class FakeScorer:
    """Answers under the dialect of one kind of server, on a port of its own until `stop`.

    `trimtab`: conversations; `vllm`: a conversation under the server's chat template, `reranker`: pairs of texts, as
    vLLM serves cross-encoders; `tokens`: /pooling with numbers per token; `sglang`: texts.
    """

    def __init__(
        self,
        dialect: str,
        *,
        classes: int = 1,
        names: tuple[str, ...] | None = None,
        probabilities: bool = False,
        judge: Callable[[str], float] = len,
        port: int = 0,
    ) -> None:
        self.calls: list[tuple[str, Body]] = []
        """what came, in order"""
        self.before: Callable[[str, Body], Any] = lambda path, body: None
        """called in a thread of the call's own; what it returns is answered instead, a Response as it is"""
        self.change: Callable[[Body], Any] = lambda answer: answer
        """what becomes of an answer before it is sent"""
        self._dialect, self._classes, self._names, self._judge = dialect, classes, names, judge
        self._probabilities = probabilities
        app = Starlette(routes=[Route("/{path:path}", self._take, methods=["POST"])])
        listener = bind(ServerSettings(port=port))
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._played = Played(app, listener)

    def stop(self) -> None:
        self._played.stop()

    async def _take(self, request: Request) -> Response:
        body, path = await request.json(), request.url.path
        self.calls.append((path, body))
        instead = await run_in_threadpool(self.before, path, body)
        if isinstance(instead, Response):
            return instead
        answers = self._answers(path, body)
        if answers is None:
            return JSONResponse({"error": {"message": "no such thing", "code": "not_found"}}, 404)
        tokens = sum(map(len, answers))
        data = [self._entry(path, index, answer) for index, answer in enumerate(answers)]
        told = {"object": "list", "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
        return JSONResponse(self.change(told))

    def _answers(self, path: str, body: Body) -> list[str] | None:
        """The answers of a body in the dialect's own form; None for what it does not know."""
        match self._dialect, path:
            case "trimtab", "/v1/score" | "/v1/classify" if "conversations" in body and body.get("model") == "taste":
                return [each[-1]["content"] for each in body["conversations"]]
            case ("vllm", "/classify") | ("tokens", "/pooling") if "messages" in body:
                return [body["messages"][-1]["content"]]
            case "reranker", "/score" if "text_1" in body:
                return list(body["text_2"])
            case "sglang", "/v1/classify" if isinstance(body.get("input"), str):
                return [body["input"].rpartition("\n")[2]]
        return None

    def _entry(self, path: str, index: int, answer: str) -> Body:
        value = float(self._judge(answer))
        values = [value * (number + 1) / self._classes for number in range(self._classes)]
        if self._probabilities:
            masses = [math.exp(each - max(values)) for each in values]
            values = [mass / sum(masses) for mass in masses] if len(values) > 1 else [1 / (1 + math.exp(-value))]
        if path.endswith("/score"):
            return {"index": index, "object": "score", "score": value}
        if path.endswith("/pooling"):
            return {"index": index, "object": "pooling", "data": [[0.5] * self._classes, values]}
        best = values.index(max(values))
        label = self._names[best] if self._names else None
        return {"index": index, "label": label, "probs": values, "num_classes": len(values)}
