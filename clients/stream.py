"""Answers that come piece by piece: bytes in, text, progress and the whole answer out. Touches no network."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from trimtab.clients.errors import ClientError
from trimtab.clients.results import Answer, Result, TokenTrace

TRACED = ("tokens", "both")
"""values of `decoding.trace` that keep a record of each token"""


class Piece(str):
    """New text of one choice; a string that knows the choice's index."""

    __slots__ = ("choice",)

    choice: int

    def __new__(cls, text: str, choice: int) -> "Piece":
        piece = super().__new__(cls, text)
        piece.choice = choice
        return piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(Result):
    """How far a search is."""

    phase: str
    """what has just ended: decode or score"""
    candidates: int
    finished: int
    best_reward: float | None
    model_tokens: int
    """of all models so far"""
    seconds: float
    """since the request arrived"""


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """The next part of a tool call: first its id and name, then its arguments as JSON text that grows."""

    choice: int
    index: int
    id: str | None
    name: str | None
    arguments: str


@dataclass(frozen=True, slots=True)
class Traced:
    """What shaped the next tokens of one choice; comes before the text that they make."""

    choice: int
    tokens: tuple[TokenTrace, ...]


Event = Piece | Progress | ToolCallDelta | Traced | Answer
"""what a stream yields; an Answer is the last"""


@dataclass(slots=True)
class _Growing:
    """One choice so far."""

    text: list[str] = field(default_factory=list)
    logprobs: dict[str, Any] | None = None
    token_ids: list[int] | None = None
    trace: list[Mapping[str, Any]] = field(default_factory=list)
    tool_calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    last: Mapping[str, Any] = field(default_factory=dict)


class Reader:
    """Turns the bytes of a streamed answer into events.

    Lines end as server-sent events end them, at a line feed: str.splitlines would also split at U+2028 inside a text.
    """

    def __init__(self, request_id: str | None) -> None:
        self._request_id = request_id
        self._rest: list[bytes] = []
        self._choices: dict[int, _Growing] = {}
        self.complete = False

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that end in `data`; raises ClientError for one that tells of an error."""
        first, *more = data.split(b"\n")
        self._rest.append(first)
        for line in more:
            whole, self._rest = b"".join(self._rest), [line]
            yield from self._line(whole.rstrip(b"\r"))

    def end(self) -> None:
        """Raise ClientError if the stream ended before its answer did."""
        if not self.complete:
            raise ClientError("the stream ended without an answer", request_id=self._request_id)

    def _line(self, line: bytes) -> Iterator[Event]:
        if not line.startswith(b"data:"):
            return
        content = line.removeprefix(b"data:").strip()
        if content == b"[DONE]":
            return
        try:
            yield from self._chunk(json.loads(content))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            message = f"an event is not that of a trimtab server ({type(error).__name__}: {error})"
            raise ClientError(message, request_id=self._request_id) from error

    def _chunk(self, chunk: Mapping[str, Any]) -> Iterator[Event]:
        if "error" in chunk:
            error = chunk["error"]
            raise ClientError(
                error["message"], code=error.get("code"), param=error.get("param"), request_id=self._request_id
            )
        for choice in chunk["choices"]:
            yield from self._grow(choice)
        if "progress" in chunk:
            yield _progress(chunk["progress"])
        if "decoding" in chunk:
            self.complete = True
            yield Answer.of(self._whole(chunk), self._request_id)

    def _grow(self, choice: Mapping[str, Any]) -> Iterator[Event]:
        index = choice["index"]
        growing = self._choices.setdefault(index, _Growing())
        growing.last = choice
        delta = choice.get("delta") or {}
        if (logprobs := choice.get("logprobs")) is not None:
            growing.logprobs = _joined(growing.logprobs or {}, logprobs)
        if (ids := choice.get("token_ids")) is not None:
            growing.token_ids = [*(growing.token_ids or ()), *ids]
        if trace := choice.get("trace"):
            growing.trace += trace
            yield Traced(index, tuple(TokenTrace.of(each) for each in trace))
        if text := delta.get("content") or choice.get("text"):
            growing.text.append(text)
            yield Piece(text, index)
        for part in delta.get("tool_calls") or ():
            yield _tool_call(growing.tool_calls, index, part)

    def _whole(self, last: Mapping[str, Any]) -> dict[str, Any]:
        """The response that the same request gets without a stream."""
        chat = last.get("object") == "chat.completion.chunk"
        return {
            **last,
            "object": "chat.completion" if chat else "text_completion",
            "choices": [_choice(index, growing, chat=chat) for index, growing in sorted(self._choices.items())],
            "decoding": self._decoding(last["decoding"]),
        }

    def _decoding(self, told: Any) -> Any:
        """What was done with each prompt, with the trace of its choices where that came piece by piece."""
        traces = iter([growing.trace for _, growing in sorted(self._choices.items())])

        def whole(one: Mapping[str, Any]) -> Mapping[str, Any]:
            own = list(islice(traces, len(one["chosen"])))
            kept = one["spec"].get("trace") in TRACED
            return {**one, "trace": own} if kept and "trace" not in one else one

        return [whole(each) for each in told] if isinstance(told, list) else whole(told)


def _choice(index: int, growing: _Growing, *, chat: bool) -> dict[str, Any]:
    text = "".join(growing.text)
    told: dict[str, Any] = {name: value for name, value in growing.last.items() if name not in ("delta", "text")}
    told |= {"index": index, "logprobs": growing.logprobs}
    if growing.token_ids is not None:
        told["token_ids"] = growing.token_ids
    if not chat:
        return told | {"text": text}
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if growing.tool_calls:
        message |= {"content": text or None, "tool_calls": [call for _, call in sorted(growing.tool_calls.items())]}
    return told | {"message": message}


def _joined(before: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Log-probabilities of a choice with those of its next tokens: their lists, one after the other."""
    return {
        name: [*(before.get(name) or ()), *value] if isinstance(value, list) else value for name, value in more.items()
    }


def _tool_call(calls: dict[int, dict[str, Any]], choice: int, part: Mapping[str, Any]) -> ToolCallDelta:
    """Add a part to the call that it belongs to."""
    index, function = part["index"], part.get("function") or {}
    call = calls.setdefault(index, {"id": None, "type": "function", "function": {"name": None, "arguments": ""}})
    call["id"] = part.get("id") or call["id"]
    call["function"]["name"] = function.get("name") or call["function"]["name"]
    arguments = function.get("arguments") or ""
    call["function"]["arguments"] += arguments
    return ToolCallDelta(choice, index, part.get("id"), function.get("name"), arguments)


def _progress(raw: Mapping[str, Any]) -> Progress:
    return Progress(
        raw=raw,
        phase=raw["phase"],
        candidates=raw["candidates"],
        finished=raw["finished"],
        best_reward=raw["best_reward"],
        model_tokens=raw["model_tokens"],
        seconds=raw["milliseconds"] / 1000,
    )
