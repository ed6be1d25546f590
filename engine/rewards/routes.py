"""The routes by which other servers judge answers: what is sent on each, and what its answer must hold.

`/score` and `/classify` are trimtab's own (conversations, many in one call) and vLLM's (pairs of texts; a conversation,
under the chat template there, or a text, one in a call); `/pooling` is vLLM's. SGLang's `/v1/classify` takes a text.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from trimtab.engine.rewards.base import Pair
from trimtab.engine.vocabulary import Message

Kind = Literal["score", "classify", "pooling"]
Form = Literal["conversations", "messages", "pairs", "texts"]
_LISTS: Final = {"score": "score", "classify": "probs", "pooling": "data"}
"""by the kind of route: the field of an entry that holds its numbers"""
_VLLM: Final = {"use_activation": False, "truncate_prompt_tokens": -1, "truncation_side": "left"}
"""raw logits, and of what is too long the end; servers that know none of it go by their own ways"""


class Unreadable(Exception):
    """A field of an answer is not what it must be; the message names it and holds nothing of its content."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a server says of one answer."""

    values: tuple[float, ...]
    """finite; one, or one per class"""
    label: str | None
    """name of the likeliest class, where it is told"""
    tokens: int
    """that were read, an equal part of those of its call"""
    cached: int
    """of these, tokens that were stored there"""


@dataclass(frozen=True, slots=True)
class Route:
    """One way to ask."""

    kind: Kind
    form: Form
    path: str

    @property
    def one_each(self) -> bool:
        """Whether a call holds a single answer."""
        return self.form in ("messages", "texts")

    @property
    def told(self) -> str:
        """As people are told."""
        return f"{self.path} in {self.form}"

    def calls(self, pairs: Sequence[Pair], model: str | None) -> Iterator[tuple[dict[str, Any], int]]:
        """The bodies to post, each with how many of the pairs it holds; in order."""
        named = {} if model is None else {"model": model}
        match self.form:
            case "conversations":
                yield {**named, "conversations": [_conversation(pair) for pair in pairs]}, len(pairs)
            case "pairs":
                prompts, answers = [_lines(pair.messages) for pair in pairs], [pair.answer for pair in pairs]
                yield {**named, **_VLLM, "text_1": prompts, "text_2": answers}, len(pairs)
            case "messages":
                for pair in pairs:
                    salt = {"cache_salt": pair.salt.hex()} if pair.salt else {}
                    yield {**named, **_VLLM, **salt, "messages": _conversation(pair)}, 1
            case "texts":
                for pair in pairs:
                    yield {**named, **_VLLM, "input": _lines(_conversation(pair))}, 1

    def read(self, answer: Any, count: int) -> list[Told]:
        """What the answer to a call says of its `count` answers, in their order; raises Unreadable."""
        data = _field(answer, "data", list)
        if len(data) != count:
            raise Unreadable(f"data: {len(data)} entries for {count} answers")
        tokens, cached = _usage(answer.get("usage"))
        found: dict[int, Told] = {}
        for place, entry in enumerate(data):
            where = f"data[{place}]"
            index = _field(entry, "index", int, where)
            if index in found or not 0 <= index < count:
                raise Unreadable(f"{where}.index: it must be each of 0 to {count - 1} once")
            label = entry.get("label")
            if not isinstance(label, str | None):
                raise Unreadable(f"{where}.label: it must be a string")
            values = self._values(entry, where)
            found[index] = Told(values, label, *(_part(total, place, count) for total in (tokens, cached)))
        return [found[index] for index in range(count)]

    def _values(self, entry: Any, where: str) -> tuple[float, ...]:
        name = _LISTS[self.kind]
        where = f"{where}.{name}"
        values = entry.get(name)
        if self.kind == "score":
            values = [values]
        elif self.kind == "pooling" and isinstance(values, list) and values and isinstance(values[-1], list):
            values = values[-1]  # a list per token: the last one has seen all
        if not isinstance(values, list) or not values:
            raise Unreadable(f"{where}: it must be a list of numbers")
        if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in values):
            raise Unreadable(f"{where}: it must hold numbers alone")
        if not all(map(math.isfinite, values)):
            raise Unreadable(f"{where}: it must be finite")
        if entry.get("num_classes", len(values)) != len(values):
            raise Unreadable(f"{where}: it holds {len(values)} numbers, and num_classes says otherwise")
        return tuple(map(float, values))


ROUTES: Final = (
    Route("score", "conversations", "/v1/score"),
    Route("classify", "conversations", "/v1/classify"),
    Route("classify", "messages", "/classify"),
    Route("pooling", "messages", "/pooling"),
    Route("score", "pairs", "/score"),
    Route("classify", "texts", "/classify"),
    Route("classify", "texts", "/v1/classify"),
    Route("pooling", "texts", "/pooling"),
)
"""in the order in which they are tried: those that keep the most of a conversation first"""


def _conversation(pair: Pair) -> list[Message]:
    return [*pair.messages, Message(role="assistant", content=pair.answer)]


def _lines(messages: Sequence[Message]) -> str:
    """Messages as plain text, for what has no chat template: one per line, as local guides read them."""
    return "\n".join(message["content"] for message in messages)


def _field(holder: Any, name: str, kind: type, where: str = "") -> Any:
    value = holder.get(name) if isinstance(holder, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise Unreadable(f"{where}{'.' * bool(where)}{name}: it is missing, or no {kind.__name__}")
    return value


def _usage(usage: Any) -> tuple[int, int]:
    """Tokens that were read, and those that were stored already; 0 where it is not told."""
    if usage is None:
        return 0, 0
    tokens = _field(usage, "prompt_tokens", int, "usage")
    details = usage.get("prompt_tokens_details")
    cached = 0 if not isinstance(details, dict) else details.get("cached_tokens") or 0
    if not isinstance(cached, int) or not 0 <= cached <= tokens:
        raise Unreadable("usage: cached_tokens must be between 0 and prompt_tokens")
    return tokens, cached


def _part(total: int, place: int, count: int) -> int:
    """One of `count` parts that are as equal as whole numbers are, and add up."""
    return total // count + (place < total % count)
