"""Streamed answers made up by tests, as the server would send them."""

import json
from typing import Any

from playwright.sync_api import Page, Route

CHAT = "**/v1/chat/completions"


def record(text: str, base: float = -2.0, steered: float = -1.0, **more: Any) -> dict[str, Any]:
    """A token of a trace."""
    top = [
        {"id": index, "text": each, "logprob": -1.0 - index}
        for index, each in enumerate((text, " a", " b", " c", " d"))
    ]
    return {
        "id": 1, "text": text, "source": "steered", "logprob_base": base, "logprob_steered": steered, "entropy": 1.0,
        "entropy_base": 2.0, "kl": 0.1, "values": {}, "top_base": top, "top_steered": top, **more,
    }  # fmt: skip


def event(data: Any) -> str:
    return f"data: {json.dumps(data)}\n\n"


def chunk(text: str, trace: list[dict[str, Any]] | None = None, finish: str | None = None) -> str:
    """A chunk that adds text to choice 0."""
    choice: dict[str, Any] = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    if trace is not None:
        choice["trace"] = trace
    return event({"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice]})


def ending(**decoding: Any) -> str:
    """The last chunk and the end of the stream."""
    told = {
        "spec": {"strategy": "sample"},
        "chosen": [0],
        "candidates": [],
        "steering": [None],
        "model_tokens": {"base": 9},
        "forwards": {"base": 9},
        "milliseconds": {"total": 100.0},
        "preemptions": 0,
        "stopped_by": "finished",
        "seed": 1,
        **decoding,
    }
    usage = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
    return event({"id": "chatcmpl-1", "choices": [], "usage": usage, "decoding": told}) + "data: [DONE]\n\n"


def stream(page: Page, body: str) -> None:
    """Let every chat completion of the page be answered with this stream."""

    def answer(route: Route) -> None:
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    page.route(CHAT, answer)


def refuse(page: Page, status: int, headers: dict[str, str], message: str, times: int) -> None:
    """Refuse the next chat completions; what comes after goes on to whatever was there before."""
    body = json.dumps({"error": {"message": message, "type": "error", "param": None, "code": None}})

    def answer(route: Route) -> None:
        route.fulfill(status=status, headers=headers, content_type="application/json", body=body)

    page.route(CHAT, answer, times=times)
