"""From the engine's thread to asyncio: one wake-up of the loop per tick, for all streams."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from starlette.types import Receive

from trimtab.engine.results import Delta, Event, Failure, Progress, Result
from trimtab.server.metrics import Metrics, RequestTimer

if TYPE_CHECKING:
    from trimtab.llm import LLM, PreparedRequest


T = TypeVar("T")


class ClientGone(Exception):
    """The client closed the connection before its answer was complete."""


@dataclass(slots=True, eq=False)
class Ticket:
    """What the engine knows an HTTP request's prompt by; compared by identity."""

    exchange: "Exchange"
    part: int
    timer: RequestTimer


class News(NamedTuple):
    """What has happened to an exchange since it was last read."""

    deltas: dict[int, Delta]
    """by choice index"""
    progress: dict[int, Progress]
    """by prompt: the newest"""
    ended: list[int]
    """prompts"""


class Exchange:
    """The running prompts of one HTTP request and what they produced that was not read yet.

    Unread deltas of a choice are merged, and of unread progress the newest is kept, so that a slow reader costs one
    string per choice and never blocks the engine. All methods belong to the event loop's thread.
    """

    def __init__(self, llm: "LLM", prepared: Sequence["PreparedRequest"], choices: int) -> None:
        self.prepared = prepared
        self.choices = choices
        self.tickets: list[Ticket] = []
        self.results: list[Result | None] = [None] * len(prepared)
        self._llm = llm
        self._news = News({}, {}, [])
        self._failure: Exception | None = None
        self._running = set(range(len(prepared)))
        self._wake = asyncio.Event()

    def push(self, ticket: Ticket, event: Event, now: float) -> None:
        """Take one event; what comes after the end of its prompt is dropped."""
        part = ticket.part
        if part not in self._running:
            return
        ticket.timer.observe(event, now)
        if isinstance(event, Delta):
            index = part * self.choices + event.choice
            unread = self._news.deltas.get(index)
            self._news.deltas[index] = event if unread is None else _merge(unread, event)
        elif isinstance(event, Progress):
            self._news.progress[part] = event
        else:
            self._running.discard(part)
            if isinstance(event, Failure):
                self._failure = event.error
            else:
                self.results[part] = event
                self._news.ended.append(part)
        self._wake.set()

    def abandon(self) -> None:
        """The client is gone: the next read raises ClientGone."""
        self._failure = ClientGone()
        self._wake.set()

    def nudge(self) -> None:
        """Let a waiting read return empty-handed."""
        self._wake.set()

    async def read(self) -> News:
        """Wait for something to happen, and return what is unread: nothing after a nudge.

        Raises the error of a failed prompt, or ClientGone; what was unread then is lost.
        """
        await self._wake.wait()
        self._wake.clear()
        if self._failure is not None:
            raise self._failure
        news, self._news = self._news, News({}, {}, [])
        return news

    async def complete(self) -> list[Result]:
        """Wait for every result; deltas are dropped, since the results repeat them."""
        while None in self.results:
            await self.read()
        return [result for result in self.results if result is not None]

    def close(self) -> None:
        """Cancel what still runs; called exactly once, however the exchange ended."""
        for ticket in self.tickets:
            if ticket.part in self._running:
                self._llm.cancel(ticket)
                ticket.timer.cancelled()
        self._running.clear()


class Bridge:
    """Submits to the engine and hands its events to the exchanges they belong to."""

    def __init__(self, llm: "LLM", metrics: Metrics) -> None:
        self._llm = llm
        self._metrics = metrics
        self._loop: asyncio.AbstractEventLoop | None = None
        self.open = 0
        """exchanges that are not closed yet; draining waits for zero"""

    def attach(self) -> None:
        """Deliver to the running event loop from now on."""
        self._loop = asyncio.get_running_loop()

    def submit(self, prepared: Sequence["PreparedRequest"], choices: int) -> Exchange:
        """Start every prompt of one HTTP request, or none: raises Overloaded when the queue has no room."""
        exchange = Exchange(self._llm, prepared, choices)
        try:
            for part, request in enumerate(prepared):
                ticket = Ticket(exchange, part, self._metrics.start(request.strategy))
                self._llm.submit(request, ticket, self._deliver)
                exchange.tickets.append(ticket)
        except Exception:
            exchange.close()
            raise
        self.open += 1
        return exchange

    @contextmanager
    def watched(self, exchange: Exchange, receive: Receive) -> Iterator[Exchange]:
        """Cancel the exchange when the client goes away or the block is left early."""
        watcher = asyncio.create_task(_watch(exchange, receive))
        try:
            yield exchange
        finally:
            watcher.cancel()
            exchange.close()
            self.open -= 1

    async def result(self, future: "Future[T]", receive: Receive) -> T:
        """Wait for what the engine's thread will set; once the client is gone, cancel it and raise ClientGone."""
        answer, gone = asyncio.wrap_future(future), asyncio.create_task(_gone(receive))
        self.open += 1
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ClientGone
            return answer.result()
        finally:
            gone.cancel()
            answer.cancel()
            self.open -= 1

    def _deliver(self, events: list[tuple[object, Event]]) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._dispatch, events)

    @staticmethod
    def _dispatch(events: list[tuple[object, Event]]) -> None:
        now = time.perf_counter()
        for ticket, event in events:
            assert isinstance(ticket, Ticket)
            ticket.exchange.push(ticket, event, now)


async def _watch(exchange: Exchange, receive: Receive) -> None:
    await _gone(receive)
    exchange.abandon()


async def _gone(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _merge(first: Delta, second: Delta) -> Delta:
    logprobs = None
    if first.logprobs is not None or second.logprobs is not None:
        logprobs = (first.logprobs or ()) + (second.logprobs or ())
    return Delta(first.choice, first.text + second.text, first.token_ids + second.token_ids, logprobs)
