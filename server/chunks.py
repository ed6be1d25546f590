"""The bytes of streamed chunks; everything that does not change is serialised once per stream."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pydantic_core import to_json

from trimtab.engine.results import Choice, Delta, Progress
from trimtab.engine.vocabulary import Vocabulary
from trimtab.server.logprobs import TextLogprobs, chat_logprobs

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


def event(data: Any) -> bytes:
    """One server-sent event with a JSON value."""
    return b"data: " + to_json(data) + b"\n\n"


def strict_json(value: object) -> bytes:
    """JSON in which a number that is not finite is null."""
    return to_json(value, inf_nan_mode="null")


def json_text(text: str) -> bytes:
    """A JSON string without U+0085, U+2028 and U+2029, at which some clients split a stream into lines."""
    raw: bytes = to_json(text)
    if not text.isascii():
        for mark, escaped in _LINE_MARKS:
            raw = raw.replace(mark, escaped)
    return raw


_LINE_MARKS = ((b"\xc2\x85", rb"\u0085"), (b"\xe2\x80\xa8", rb"\u2028"), (b"\xe2\x80\xa9", rb"\u2029"))


class Chunks:
    """Chunks of one stream. `head` holds the fields that all of them share: id, object, created, model."""

    def __init__(
        self,
        head: dict[str, Any],
        *,
        include_usage: bool,
        logprobs: bool,
        token_ids: bool,
        vocabulary: Vocabulary,
    ) -> None:
        self._head = b"data: " + to_json(head)[:-1] + b',"choices":['
        self._tail = b'],"usage":null' if include_usage else b"]"
        self._logprobs = logprobs
        self._token_ids = token_ids
        self._vocabulary = vocabulary

    def opening(self, indices: Sequence[int]) -> bytes:
        """What stands before the first text of every choice."""
        raise NotImplementedError

    def delta(self, index: int, delta: Delta) -> bytes:
        """New text of one choice; nothing while its bytes do not form a character yet."""
        if not (delta.text or self._logprobs or self._token_ids):
            return b""
        return self._chunk(self._piece(index, delta))

    def finish(self, index: int, choice: Choice, decoding: object | None) -> bytes:
        """The last chunk of one choice; `decoding` rides on the last of all, if no usage chunk follows."""
        ending = {"finish_reason": choice.finish_reason, "stop_reason": choice.stop_reason}
        piece = self._last(index) + to_json(ending)[1:]
        return self._chunk(piece, b"" if decoding is None else b',"decoding":' + strict_json(decoding))

    def progress(self, progress: Progress, prompt: int | None) -> bytes:
        """The chunk without choices that include_progress asks for; `prompt` is an index where there are several."""
        told = {**asdict(progress), "milliseconds": round(progress.milliseconds, 3)}
        if prompt is not None:
            told["prompt"] = prompt
        return self._chunk(b"", b',"progress":' + strict_json(told))

    def usage(self, usage: object, decoding: object) -> bytes:
        """The chunk without choices that include_usage asks for."""
        body = b'],"usage":' + to_json(usage) + b',"decoding":' + strict_json(decoding)
        return self._head + body + b"}\n\n"

    def _chunk(self, choice: bytes, extra: bytes = b"") -> bytes:
        return self._head + choice + self._tail + extra + b"}\n\n"

    def _ids(self, delta: Delta) -> bytes:
        return b',"token_ids":' + to_json(delta.token_ids) if self._token_ids else b""

    def _piece(self, index: int, delta: Delta) -> bytes:
        raise NotImplementedError

    def _last(self, index: int) -> bytes:
        raise NotImplementedError


class ChatChunks(Chunks):
    """Chunks of a chat completion."""

    def opening(self, indices: Sequence[int]) -> bytes:
        """One chunk per choice with the role and empty content."""
        start = b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
        return b"".join(self._chunk(start % index) for index in indices)

    def _piece(self, index: int, delta: Delta) -> bytes:
        logprobs = b"null"
        if delta.logprobs is not None:
            logprobs = to_json(chat_logprobs(delta.logprobs, self._vocabulary))
        return b'{"index":%d,"delta":{"content":%b},"logprobs":%b,"finish_reason":null%b}' % (
            index, json_text(delta.text), logprobs, self._ids(delta),
        )  # fmt: skip

    def _last(self, index: int) -> bytes:
        return b'{"index":%d,"delta":{},"logprobs":null,' % index


class TextChunks(Chunks):
    """Chunks of a text completion; `echo` is the text that precedes each choice, by its index."""

    def __init__(
        self,
        head: dict[str, Any],
        *,
        include_usage: bool,
        logprobs: bool,
        token_ids: bool,
        vocabulary: Vocabulary,
        echo: Sequence[str],
        skip_special: bool,
    ) -> None:
        super().__init__(
            head, include_usage=include_usage, logprobs=logprobs, token_ids=token_ids, vocabulary=vocabulary
        )
        self._echo = echo
        self._aligned = [TextLogprobs(vocabulary, len(text), skip_special=skip_special) for text in echo]

    def opening(self, indices: Sequence[int]) -> bytes:
        """The echoed prompt of each choice, where one was asked for."""
        return b"".join(
            self._chunk(self._piece(index, Delta(index, self._echo[index], (), None)))
            for index in indices
            if self._echo[index]
        )

    def _piece(self, index: int, delta: Delta) -> bytes:
        logprobs = b"null"
        if delta.logprobs is not None:
            logprobs = to_json(self._aligned[index].add(delta.logprobs))
        return b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":null%b}' % (
            index, json_text(delta.text), logprobs, self._ids(delta),
        )  # fmt: skip

    def _last(self, index: int) -> bytes:
        return b'{"index":%d,"text":"","logprobs":null,' % index
