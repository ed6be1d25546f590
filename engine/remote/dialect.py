"""What the dialects share: seeds, salts, and putting tokens together."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, ClassVar

from trimtab.engine.errors import RemoteError, RemoteUnavailable
from trimtab.engine.remote.fields import At
from trimtab.engine.remote.wire import Ask, Capabilities, Continuation, Reply, Token
from trimtab.engine.vocabulary import Vocabulary


def seed(ask: Ask, capabilities: Capabilities, bits: int) -> int:
    """The seed of the first continuation for a server without streams; those of the others follow by one.

    Not negative, and so far below 2**bits that those which follow stay below it, too.
    """
    told = json.dumps([ask.seed, len(ask.prompt)]).encode()
    digest = int.from_bytes(hashlib.sha256(told).digest()[:8], "big")
    return (digest + ask.stream) % (1 << (bits - 1))


def salt(ask: Ask) -> str:
    """A salt as every server takes it: hexadecimal, 64 characters."""
    return hashlib.sha256(ask.salt.encode("utf-8", "surrogatepass")).hexdigest()


def best(pairs: Sequence[tuple[int, float]], count: int) -> tuple[tuple[int, float], ...]:
    """The `count` likeliest of them, best first."""
    return tuple(sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:count])


def stop_reason(at: At, ask: Ask, vocabulary: Vocabulary) -> str | int | None:
    """What ended a continuation: one of the strings asked for, a token, or null."""
    if at.missing:
        return None
    if isinstance(at.value, str):
        if at.value not in ask.stop:
            raise at.wrong("one of the stop strings asked for")
        return at.value
    return at.integer(0, vocabulary.rows)


def finish(at: At) -> Any:
    """`stop` or `length`; a continuation that the server gave up is worth another try."""
    match at.value:
        case "stop" | "length":
            return at.value
        case "abort" | "cancelled":
            raise RemoteUnavailable("the remote server gave the continuation up before it was whole")
    raise at.wrong("'stop' or 'length'")


def spelled(text: str, vocabulary: Vocabulary) -> tuple[Token, ...]:
    """The tokens of a text of which no ids came."""
    try:
        return tuple(Token(id_) for id_ in vocabulary.continuation(text))
    except ValueError:
        raise RemoteError("the remote server answered a text that the local vocabulary cannot spell") from None


def unfinished() -> RemoteUnavailable:
    """A stream that ended too early."""
    return RemoteUnavailable("the remote server ended its stream before every continuation was whole")


def check_end(ask: Ask, continuation: Continuation, at: At) -> Continuation:
    """A continuation that is no longer than asked for, and not empty without a reason."""
    if not continuation.tokens and continuation.finish == "length" and ask.max_tokens:
        raise at.wrong("a continuation with tokens")
    return continuation


class Gathered:
    """A streamed answer of several continuations, as far as it has come; dialects add to it."""

    ids: ClassVar[str]
    """where the token ids of continuation `number` stand, for errors"""

    def __init__(self, ask: Ask, vocabulary: Vocabulary) -> None:
        self._ask = ask
        self._vocabulary = vocabulary
        self._tokens: list[list[Token]] = [[] for _ in range(ask.n)]
        self._ends: list[tuple[Any, str | int | None] | None] = [None] * ask.n
        self._cached = 0

    def reply(self) -> Reply:
        """The whole answer, once the stream has ended; RemoteUnavailable for one that broke off."""
        told = []
        for number, (tokens, end) in enumerate(zip(self._tokens, self._ends, strict=True)):
            if end is None:
                raise unfinished()
            told.append(
                check_end(self._ask, Continuation(tuple(tokens), *end), At(None, self.ids.format(number=number)))
            )
        return Reply(tuple(told), cached=self._cached)
