"""The base model behind another server: what asks it, and watches that it stays the same."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from trimtab.engine.errors import ModelLoadError, RemoteError, RemoteUnavailable
from trimtab.engine.remote import completions
from trimtab.engine.remote.client import Connection
from trimtab.engine.remote.identity import Identity, identify
from trimtab.engine.remote.loop import together
from trimtab.engine.remote.probe import Probe
from trimtab.engine.remote.settings import RemoteSettings
from trimtab.engine.remote.spelling import Spelling
from trimtab.engine.remote.stats import RemoteStats
from trimtab.engine.remote.wire import Ask, Capabilities, Reply, Token
from trimtab.engine.vocabulary import Vocabulary

Told = Callable[[int, Token], None]
"""gets the number of a continuation and its next token, in the thread of the event loop"""
_GONE = frozenset({"connect", "lost", "timeout"})
"""failures after which another server may answer at the same address"""


_LOOKS = 3
"""times that a look begins anew because a connection failed meanwhile"""


class RemoteBase:
    """Continuations and log-probabilities of one remote model. Thread-safe.

    Whenever a connection has failed, the next answer is believed only after a look that found the same model, as much
    room and the same tokenizer; while something else is seen there, every call is refused.
    """

    capabilities: Capabilities

    def __init__(self, settings: RemoteSettings, vocabulary: Vocabulary, stats: RemoteStats) -> None:
        """Look at the server and try what it can do; ModelLoadError says what to change where it will not do."""
        self.stats = stats
        self.settings = settings
        self._vocabulary = vocabulary
        self._spelling = Spelling.of(vocabulary)
        self._failures = 0
        """failed attempts so far after which somebody else may answer"""
        self._changed: str | None = None
        """what is different from the start, while it is"""
        self._looking: asyncio.Task[None] | None = None
        self._connection = Connection(settings, stats, self._failed)
        try:
            self._identity, self.capabilities = self._connection.start(self._meet()).result()
        except (RemoteUnavailable, RemoteError) as error:
            self._connection.close()
            raise ModelLoadError(f"remote: {error}") from error
        except BaseException:
            self._connection.close()
            raise
        self.stats.lost = False
        self._connection.start(self._watch())

    @property
    def lost(self) -> bool:
        """Whether the server has gone away, or changed, and was not seen again as it was."""
        return self.stats.lost

    def ask(self, ask: Ask, told: Told | None = None) -> "Future[Reply]":
        """Start a call; with `told` its tokens are told as they come, before the future is done.

        The future fails with RemoteUnavailable or RemoteError; cancelling it closes the connections of the call.
        """
        snapshot = replace(ask, prompt=tuple(ask.prompt))  # the loop reads it later, when the caller's may have grown
        return self._connection.start(self._ask(snapshot, told))

    def close(self) -> None:
        """Cancel all calls and close the connections."""
        self._connection.close()

    async def _ask(self, ask: Ask, told: Told | None) -> Reply:
        if self._changed is None and self.lost:
            await self._look()
        self._check()
        begun = self._failures
        held: list[tuple[int, Token]] = []
        tell = None if told is None else partial(self._tell, told, begun, held)
        reply = await self._sent(ask, tell)
        if self._failures != begun:
            await self._look()
            self._check()
            if told is not None:
                for number, token in held:
                    told(number, token)
        return reply

    async def _sent(self, ask: Ask, told: Told | None) -> Reply:
        """The answer of as many calls as the server needs for it."""
        if ask.n == 1 or self.capabilities.many:
            return await self._one(ask, told)
        asks = [replace(ask, n=1, stream=ask.stream + number) for number in range(ask.n)]
        replies = await together(self._one(each, _numbered(told, i)) for i, each in enumerate(asks))
        continuations = tuple(each for reply in replies for each in reply.continuations)
        return replace(replies[0], continuations=continuations)

    async def _one(self, ask: Ask, told: Told | None) -> Reply:
        found, vocabulary = self.capabilities, self._vocabulary
        path, body = completions.path(found), completions.body(ask, found)
        deltas = None if told is None else completions.deltas(ask, found, vocabulary)
        if deltas is not None and told is not None:
            take = partial(self._take, deltas, told)
            await self._connection.listen(path, completions.streamed(body, found), take, session=ask.session)
            with self._reading():
                return deltas.reply()
        answer = await self._connection.fetch("POST", path, body, session=ask.session)
        with self._reading():
            reply = completions.reply(ask, found, answer, vocabulary)
        if told is not None:
            for number, continuation in enumerate(reply.continuations):
                for token in continuation.tokens:
                    told(number, token)
        return reply

    def _take(self, deltas: completions.Deltas, told: Told, chunk: dict[str, Any]) -> None:
        with self._reading():
            new = deltas.take(chunk)
        for number, token in new:
            told(number, token)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Count what cannot be understood."""
        try:
            yield
        except RemoteError:
            self.stats.failed("garbage")
            raise

    async def _meet(self) -> tuple[Identity, Capabilities]:
        """The first look, and what the server can do."""
        identity = await identify(self._connection, self.settings.kind, self.settings.served, self._spelling)
        if identity.differs is not None:
            raise ModelLoadError(
                f"remote: the server at {self._connection.name} has another tokenizer than engine.model: "
                f"{identity.differs}; name the folder or id of the model that it serves as engine.model"
            )
        return identity, await Probe(self._connection, identity, self._vocabulary).run()

    async def _watch(self) -> None:
        """Look again every so often, for as long as the connection is open."""
        while True:
            await asyncio.sleep(self.settings.recheck)
            try:
                await self._look()
            except (RemoteUnavailable, RemoteError):
                continue

    def _tell(self, told: Told, begun: int, held: list[tuple[int, Token]], number: int, token: Token) -> None:
        """Tell of a token, or hold it back where a connection has failed since the call began."""
        if self._failures == begun:
            told(number, token)
        else:
            held.append((number, token))

    def _failed(self, kind: str) -> None:
        if kind in _GONE:
            self._failures += 1
            self.stats.lost = True

    def _check(self) -> None:
        if self._changed is not None:
            raise RemoteUnavailable(self._changed, retry_after=self.settings.recheck)

    async def _look(self) -> None:
        """See who answers now; all that wait for it share one look."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._connection.held(self._see()))
            self._looking.add_done_callback(self._seen)
        await asyncio.shield(self._looking)

    async def _see(self) -> None:
        known = self._identity
        for _ in range(_LOOKS):
            begun = self._failures
            try:
                seen = await identify(self._connection, known.kind, known.model, self._spelling)
            except RemoteError as error:
                self._changed = f"{error}: restore what was served there, or restart trimtab"
                return
            if self._failures == begun:
                break
        self._changed = _difference(known, seen, self._connection.name)
        self.stats.lost = self._changed is not None

    def _seen(self, look: "asyncio.Task[None]") -> None:
        self._looking = None
        if not look.cancelled():
            look.exception()


def _numbered(told: Told | None, number: int) -> Told | None:
    """`told` for the one continuation of a call that stands for that number."""
    return None if told is None else partial(lambda _, token: told(number, token))


def _difference(first: Identity, now: Identity, name: str) -> str | None:
    """What is not as it was."""
    what = None
    if now.model != first.model:
        what = f"serves {now.model!r} instead of {first.model!r}"
    elif now.tokenizer != first.tokenizer:
        what = f"has another tokenizer than before: {now.differs or 'it cannot be compared any more'}"
    elif first.context_length is not None and (now.context_length or 0) < first.context_length:
        what = f"has room for {now.context_length} tokens instead of {first.context_length}"
    if what is None:
        return None
    return f"the server at {name} {what}: restore what it served, or restart trimtab"
