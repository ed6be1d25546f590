"""From the engine's thread to asyncio: one wake-up of the loop per tick, for all streams."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from opentelemetry.trace import Span
from starlette.types import Receive

from trimtab.engine.results import Delta, Event, Failure, Progress, Result
from trimtab.server import telemetry
from trimtab.server.errors import ClientGone
from trimtab.server.logs import RequestRecord, current
from trimtab.server.metrics import Metrics, RequestTimer
from trimtab.server.quotas import Lease

if TYPE_CHECKING:
    from trimtab.llm import LLM
    from trimtab.requests import PreparedRequest


T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Ticket:
    """What the engine knows an HTTP request's prompt by; compared by identity."""

    exchange: "Exchange"
    part: int
    timer: RequestTimer
    lease: Lease
    span: Span | None
    """of OpenTelemetry"""


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

    Unread deltas are kept until they are read as one per choice, and of unread progress the newest is kept: a slow
    reader costs no more than its answers are long, and never blocks the engine. All methods belong to the event loop's
    thread.
    """

    def __init__(
        self, llm: "LLM", prepared: Sequence["PreparedRequest"], choices: int, acting: Mapping[str, Any]
    ) -> None:
        self.llm = llm
        self.prepared = prepared
        self.choices = choices
        self.acting = acting
        """what the response tells of the preset, of the policy and of the choice of `auto`"""
        self.record = current.get()
        self.tickets: list[Ticket] = []
        self.results: list[Result | None] = [None] * len(prepared)
        self._news = News({}, {}, [])
        self._deltas: dict[int, list[Delta]] = {}
        """by choice index, of the news; joined when they are read"""
        self._failure: Exception | None = None
        self.running = set(range(len(prepared)))
        """prompts that have not ended"""
        self._wake = asyncio.Event()

    def push(self, ticket: Ticket, event: Event, now: float) -> None:
        """Take one event; what comes after the end of its prompt is dropped."""
        part = ticket.part
        if part not in self.running:
            return
        ticket.timer.observe(event, now)
        if isinstance(event, Delta):
            index = part * self.choices + event.choice
            self._deltas.setdefault(index, []).append(event)
        elif isinstance(event, Progress):
            self._news.progress[part] = event
        else:
            self.running.discard(part)
            if isinstance(event, Failure):
                self._failure = event.error
                if ticket.span is not None:
                    telemetry.fail(ticket.span, type(event.error).__name__)
            else:
                self.results[part] = event
                self._news.ended.append(part)
                if ticket.span is not None:
                    telemetry.finish(ticket.span, self.llm.model_name, event)
                if self.record is not None:
                    _tell(self.record, event)
        self._wake.set()

    def abandon(self) -> None:
        """The client is gone: the next read raises ClientGone."""
        if self.record is not None:
            self.record.gone = True
        self.fail(ClientGone())

    def fail(self, error: Exception) -> None:
        """Let the next read raise `error`."""
        self._failure = error
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
        self._news.deltas.update((index, _joined(deltas)) for index, deltas in self._deltas.items())
        news, self._news, self._deltas = self._news, News({}, {}, []), {}
        return news

    async def complete(self) -> list[Result]:
        """Wait for every result; deltas are dropped, since the results repeat them."""
        while None in self.results:
            await self.read()
        return [result for result in self.results if result is not None]

    def close(self) -> None:
        """Cancel what still runs; called exactly once, however the exchange ended."""
        for ticket in self.tickets:
            if ticket.part in self.running:
                self.llm.cancel(ticket)
                ticket.timer.cancelled()
                if ticket.span is not None:
                    telemetry.fail(ticket.span, "cancelled")
        self.running.clear()


class Bridge:
    """Submits to the engine and hands its events to the exchanges they belong to."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._loop: asyncio.AbstractEventLoop | None = None
        self._exchanges: set[Exchange] = set()
        self._beginning: Counter[str] = Counter()
        """prompts by model that are not submitted yet"""
        self._ratings: set[asyncio.Future[Any]] = set()

    @property
    def open(self) -> int:
        """Exchanges that are not closed and ratings that are waited for; draining waits for zero."""
        return len(self._exchanges) + len(self._ratings)

    def running(self, llm: "LLM") -> int:
        """Prompts of generating requests to a model that have not ended, waiting and beginning ones included."""
        submitted = sum(len(each.running) for each in self._exchanges if each.llm is llm)
        return submitted + self._beginning[llm.model_name]

    @contextmanager
    def beginning(self, llm: "LLM", prompts: int) -> Iterator[None]:
        """Count prompts as running while the block prepares and submits them."""
        self._beginning[llm.model_name] += prompts
        try:
            yield
        finally:
            self._beginning[llm.model_name] -= prompts

    def attach(self) -> None:
        """Deliver to the running event loop from now on."""
        self._loop = asyncio.get_running_loop()

    def halt(self, error: Exception) -> None:
        """End everything that is open with `error`."""
        for exchange in self._exchanges:
            exchange.fail(error)
        for rating in self._ratings:
            if not rating.done():
                rating.set_exception(error)

    def submit(
        self, llm: "LLM", prepared: Sequence["PreparedRequest"], choices: int, lease: Lease, acting: Mapping[str, Any]
    ) -> Exchange:
        """Start every prompt of one HTTP request, or none: raises Overloaded when the queue has no room.

        Each prompt ends its part of `lease` when the engine has ended it, whether anybody still listens or not.
        """
        exchange = Exchange(llm, prepared, choices, acting)
        if (record := exchange.record) is not None:
            record.strategy = prepared[0].strategy
        try:
            for part, request in enumerate(prepared):
                span = None if record is None else telemetry.begin(record.span, llm.model_name, request, acting)
                timer = self._metrics.start(llm.model_name, request.strategy)
                ticket = Ticket(exchange, part, timer, lease, span)
                llm.submit(request, ticket, self._deliver)
                exchange.tickets.append(ticket)
        except Exception:
            for _ in range(len(exchange.tickets), len(prepared)):
                lease.end(0)
            exchange.close()
            raise
        self._exchanges.add(exchange)
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
            self._exchanges.discard(exchange)

    async def result(self, future: "Future[T]", receive: Receive) -> T:
        """Wait for what the engine's thread will set; once the client is gone, cancel it and raise ClientGone."""
        answer, gone = asyncio.wrap_future(future), asyncio.create_task(_gone(receive))
        self._ratings.add(answer)
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                if (record := current.get()) is not None:
                    record.gone = True
                raise ClientGone
            return answer.result()
        finally:
            gone.cancel()
            answer.cancel()
            self._ratings.discard(answer)

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
            if isinstance(event, Result | Failure):
                ticket.lease.end(0 if event.usage is None else sum(event.usage.model_tokens.values()))


async def _watch(exchange: Exchange, receive: Receive) -> None:
    await _gone(receive)
    exchange.abandon()


async def _gone(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _tell(record: RequestRecord, result: Result) -> None:
    """Add what one prompt cost to the line of its request."""
    usage = result.usage
    record.prompt_tokens += usage.prompt_tokens
    record.completion_tokens += usage.completion_tokens
    record.model_tokens += sum(usage.model_tokens.values())
    record.finish += [choice.finish_reason for choice in result.choices]


def _joined(deltas: Sequence[Delta]) -> Delta:
    first = deltas[0]
    if len(deltas) == 1:
        return first
    ids = tuple(chain.from_iterable(each.token_ids for each in deltas))
    logprobs = None
    if any(each.logprobs is not None for each in deltas):
        logprobs = tuple(chain.from_iterable(each.logprobs or () for each in deltas))
    trace = None
    if any(each.trace is not None for each in deltas):
        trace = tuple(chain.from_iterable(each.trace or () for each in deltas))
    return Delta(first.choice, "".join([each.text for each in deltas]), ids, logprobs, first.prompt_logprobs, trace)
