"""The bytes of streamed chunks; everything that does not change is serialised once per stream."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic_core import to_json

from trimtab.engine.results import Choice, Delta, Progress
from trimtab.engine.vocabulary import Vocabulary
from trimtab.server import trace
from trimtab.server.echo import Echo
from trimtab.server.logprobs import TextLogprobs, chat_logprobs
from trimtab.server.tools import Call, Calling, Piece, Splitter, finish_reason

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


def event(data: Any) -> bytes:
    """One server-sent event with a JSON value."""
    return b"data: " + to_json(data) + b"\n\n"


def strict_json(value: object) -> bytes:
    """JSON in which a number that is not finite is null."""
    return to_json(value, inf_nan_mode="null")


def json_text(value: object) -> bytes:
    """JSON without U+0085, U+2028 and U+2029, at which some clients split a stream into lines."""
    raw: bytes = to_json(value)
    if not raw.isascii():
        for mark, escaped in _LINE_MARKS:
            raw = raw.replace(mark, escaped)
    return raw


_LINE_MARKS = ((b"\xc2\x85", rb"\u0085"), (b"\xe2\x80\xa8", rb"\u2028"), (b"\xe2\x80\xa9", rb"\u2029"))


@dataclass(frozen=True, slots=True)
class Extras:
    """What a stream tells beside its text."""

    usage: bool
    logprobs: bool
    token_ids: bool
    trace: bool


class Chunks:
    """Chunks of one stream. `head` holds the fields that all of them share: id, object, created, model."""

    def __init__(self, head: dict[str, Any], extras: Extras, vocabulary: Vocabulary) -> None:
        self.extras = extras
        self._head = b"data: " + to_json(head)[:-1] + b',"choices":['
        self._tail = b'],"usage":null' if extras.usage else b"]"
        self._vocabulary = vocabulary

    def opening(self, indices: Sequence[int]) -> bytes:
        """What stands before the first text of every choice."""
        raise NotImplementedError

    def delta(self, index: int, delta: Delta) -> bytes:
        """New text of one choice; nothing while its bytes do not form a character yet."""
        if not (delta.text or self._tells(delta)):
            return b""
        return self._chunk(self._piece(index, delta))

    def finish(self, index: int, choice: Choice, decoding: object | None) -> bytes:
        """The last chunk of one choice; `decoding` rides on the last of all, if no usage chunk follows."""
        ending = {"finish_reason": self._reason(index, choice), "stop_reason": choice.stop_reason}
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

    def _tells(self, delta: Delta) -> bool:
        """Whether something is told of the tokens, even of those that are no text yet."""
        return self.extras.logprobs or self.extras.token_ids or (self.extras.trace and bool(delta.trace))

    def _beside(self, delta: Delta) -> bytes:
        """What stands beside the text: ids, and the trace where there is one."""
        ids = b',"token_ids":' + to_json(delta.token_ids) if self.extras.token_ids else b""
        if not (self.extras.trace and delta.trace):
            return ids
        return ids + b',"trace":' + json_text(trace.tokens(delta.trace, self._vocabulary))

    def _reason(self, index: int, choice: Choice) -> str:
        return choice.finish_reason

    def _piece(self, index: int, delta: Delta) -> bytes:
        raise NotImplementedError

    def _last(self, index: int) -> bytes:
        raise NotImplementedError


class ChatChunks(Chunks):
    """Chunks of a chat completion; with `calling`, text and function calls are told apart."""

    def __init__(
        self, head: dict[str, Any], extras: Extras, vocabulary: Vocabulary, *, calling: Calling | None
    ) -> None:
        super().__init__(head, extras, vocabulary)
        self._calling = calling
        self._splitters: dict[int, Splitter] = {}

    def opening(self, indices: Sequence[int]) -> bytes:
        """One chunk per choice with the role and empty content."""
        start = b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
        return b"".join(self._chunk(start % index) for index in indices)

    def delta(self, index: int, delta: Delta) -> bytes:
        """New text and calls of one choice; what may yet become a call is held back."""
        if self._calling is None:
            return super().delta(index, delta)
        if index not in self._splitters:
            self._splitters[index] = self._calling.splitter()
        splitter = self._splitters[index]
        said = _said(splitter.push(delta.text), splitter)
        if not said and self._tells(delta):
            said = [b"{}"]
        beside = [delta, *[None] * len(said)]  # what is known of the tokens stands beside the first
        return b"".join(self._chunk(self._choice(index, *each)) for each in zip(said, beside, strict=False))

    def finish(self, index: int, choice: Choice, decoding: object | None) -> bytes:
        """The last chunk of one choice, behind what was held back."""
        splitter = self._splitters.get(index)
        said = [] if splitter is None else _said(splitter.flush(), splitter)
        return b"".join(self._chunk(self._choice(index, each, None)) for each in said) + super().finish(
            index, choice, decoding
        )

    def _reason(self, index: int, choice: Choice) -> str:
        splitter = self._splitters.get(index)
        return finish_reason(choice, called=splitter is not None and splitter.calls > 0)

    def _piece(self, index: int, delta: Delta) -> bytes:
        return self._choice(index, b'{"content":%b}' % json_text(delta.text), delta)

    def _choice(self, index: int, said: bytes, delta: Delta | None) -> bytes:
        """A choice that says something new, with what is known of the tokens behind it."""
        logprobs = beside = b""
        if delta is not None and delta.logprobs is not None:
            logprobs = to_json(chat_logprobs(delta.logprobs, self._vocabulary))
        if delta is not None:
            beside = self._beside(delta)
        return b'{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":null%b}' % (
            index, said, logprobs or b"null", beside,
        )  # fmt: skip

    def _last(self, index: int) -> bytes:
        return b'{"index":%d,"delta":{},"logprobs":null,' % index


def _said(pieces: Sequence[Piece], splitter: Splitter) -> list[bytes]:
    """The `delta` of a chunk for each piece, two for a call: its name first, then its arguments."""
    said = []
    number = splitter.calls - sum(isinstance(piece, Call) for piece in pieces)
    for piece in pieces:
        if isinstance(piece, str):
            said.append(b'{"content":%b}' % json_text(piece))
            continue
        told = piece.told()
        told["function"] = {"name": piece.name, "arguments": ""}
        for part in ({"index": number, **told}, {"index": number, "function": {"arguments": piece.arguments}}):
            said.append(b'{"tool_calls":[%b]}' % json_text(part))
        number += 1
    return said


class TextChunks(Chunks):
    """Chunks of a text completion; `echoes` are the prompts that precede the choices, by the choices' index.

    An echo opens the stream or, where its log-probabilities are wanted, comes as soon as they are known.
    """

    def __init__(
        self,
        head: dict[str, Any],
        extras: Extras,
        vocabulary: Vocabulary,
        *,
        echoes: Sequence[Echo | None],
        skip_special: bool,
        as_ids: bool,
    ) -> None:
        super().__init__(head, extras, vocabulary)
        self._echoes = echoes
        lengths = (0 if echo is None else len(echo.text) for echo in echoes)
        self._aligned = [
            TextLogprobs(vocabulary, length, skip_special=skip_special, as_ids=as_ids) for length in lengths
        ]

    def opening(self, indices: Sequence[int]) -> bytes:
        """The echoed prompt of each choice, where one was asked for."""
        if self.extras.logprobs:
            return b""
        return b"".join(
            self._chunk(self._piece(index, Delta(index, echo.text, (), None)))
            for index, echo in ((index, self._echoes[index]) for index in indices)
            if echo is not None
        )

    def delta(self, index: int, delta: Delta) -> bytes:
        """New text of one choice, behind what is echoed."""
        echo = self._echoes[index]
        if echo is None or delta.prompt_logprobs is None:
            return super().delta(index, delta)
        told = to_json(echo.logprobs(delta.prompt_logprobs, self._vocabulary))
        opening = b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":null%b}' % (
            index, json_text(echo.text), told, b',"token_ids":[]' if self.extras.token_ids else b"",
        )  # fmt: skip
        return self._chunk(opening) + (super().delta(index, delta) if delta.token_ids or delta.text else b"")

    def _piece(self, index: int, delta: Delta) -> bytes:
        logprobs = b"null"
        if delta.logprobs is not None:
            logprobs = to_json(self._aligned[index].add(delta.logprobs))
        return b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":null%b}' % (
            index, json_text(delta.text), logprobs, self._beside(delta),
        )  # fmt: skip

    def _last(self, index: int) -> bytes:
        return b'{"index":%d,"text":"","logprobs":null,' % index
