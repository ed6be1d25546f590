"""Closed-loop load: so many workers, each with one streamed request at a time, and what each request took."""

import hashlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

from trimtab.bench.folder import Drawn, Key
from trimtab.bench.link import lost
from trimtab.bench.prompts import Prompt
from trimtab.bench.records import Answer, Setting
from trimtab.clients.client import Answer as Reply
from trimtab.clients.client import ClientError, Piece, TrimtabClient
from trimtab.clients.retries import Retries

AGAIN = Retries(times=6)
"""how often a request that finds no room is asked anew, under a new clock"""
LOOK = 1.0
"""seconds"""


class ServerLost(Exception):
    """The connection broke, or the server is shutting down: what was under way has to be asked again."""


@dataclass(frozen=True, slots=True)
class Job:
    """One request of a run."""

    setting: Setting
    concurrency: int
    prompt: Prompt
    seed: int
    """of the repetition"""

    @property
    def key(self) -> Key:
        """What no two answers of a run share."""
        return self.setting.name, self.concurrency, self.prompt.id, self.seed


@dataclass(frozen=True, slots=True)
class Asking:
    """What all requests of a run share."""

    client: TrimtabClient
    """one that does not try again by itself: its waits would count as the server's"""
    model: str
    seed: int
    max_tokens: int
    temperature: float
    part: int
    salt: str
    """of the cache of prompts, so that no setting finds what another one has read"""


def request_seed(seed: int, prompt: str, repetition: int) -> int:
    """The seed of a request, alike for all settings: 32 bits of a hash."""
    told = f"{seed}/{prompt}/{repetition}".encode()
    return int.from_bytes(hashlib.sha256(told).digest()[:4])


def ask(asking: Asking, job: Job) -> tuple[Answer, tuple[Drawn, ...]]:
    """Stream one answer and measure it; with it the answers that a search drew.

    Raises ServerLost, and ClientError for a request that is refused or fails.
    """
    tried = 0
    while True:
        try:
            return _measured(asking, job)
        except ClientError as failure:
            if lost(failure):
                raise ServerLost(str(failure)) from failure
            wait = AGAIN.wait(tried, failure)
            if wait is None:
                raise
            time.sleep(wait)
            tried += 1


Came = tuple[Answer, tuple[Drawn, ...]] | Exception
"""an answer with what it was chosen from, or why there is none"""


class Load:
    """Workers at work. Their threads end with the program, so that Ctrl-C need not wait for an answer."""

    def __init__(self, asking: Asking, jobs: Sequence[Job], concurrency: int) -> None:
        self._asking = asking
        self._left = deque(jobs)
        self._failed = threading.Event()
        self._events: queue.SimpleQueue[tuple[Job, Came] | None] = queue.SimpleQueue()
        self._workers = min(concurrency, len(jobs))
        for _ in range(self._workers):
            threading.Thread(target=self._work, daemon=True).start()

    def events(self, look: Callable[[], None] | None = None) -> Iterator[tuple[Job, Came]]:
        """What came of each job, as it comes; about once a second `look` is called.

        After a failure nothing more is asked, and what is under way comes to its end.
        """
        running, due = self._workers, time.monotonic() + LOOK
        while running:
            if time.monotonic() >= due:
                if look is not None:
                    look()
                due = time.monotonic() + LOOK
            try:
                event = self._events.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                continue
            if event is None:
                running -= 1
            else:
                yield event

    def _work(self) -> None:
        while not self._failed.is_set():
            try:
                job = self._left.popleft()
            except IndexError:
                break
            try:
                came: Came = ask(self._asking, job)
            except Exception as error:  # whatever it is, the thread that reads the events raises it
                self._failed.set()
                came = error
            self._events.put((job, came))
        self._events.put(None)


def failure(job: Job, error: Exception, *, part: int) -> Answer:
    """The answer of a request that came to nothing."""
    return Answer(
        setting=job.setting.name,
        concurrency=job.concurrency,
        prompt=job.prompt.id,
        seed=job.seed,
        part=part,
        sent=time.time(),
        error=str(error),
    )


def _measured(asking: Asking, job: Job) -> tuple[Answer, tuple[Drawn, ...]]:
    stream = asking.client.stream_chat(
        asking.model,
        job.prompt.conversation,
        decoding=job.setting.decoding or None,
        seed=request_seed(asking.seed, job.prompt.id, job.seed),
        max_tokens=asking.max_tokens,
        temperature=asking.temperature,
        cache_salt=f"{asking.salt}/{job.setting.name}/{job.concurrency}/{job.seed}",
    )
    sent, began, first = time.time(), perf_counter(), None
    reply: Reply | None = None
    for event in stream:
        if isinstance(event, Piece) and first is None:
            first = perf_counter() - began
        elif isinstance(event, Reply):
            reply = event
    took = perf_counter() - began
    if reply is not None and reply.decoding.stopped_by == "shutdown":
        raise ServerLost("the server ended the answer early, since it is shutting down")
    assert reply is not None, "a stream ends with its answer, or raises"
    return _answer(asking, job, reply, sent, first, took), _drawn(reply)


def _answer(asking: Asking, job: Job, reply: Reply, sent: float, first: float | None, took: float) -> Answer:
    told = reply.decoding
    steering = told.steering[0] if told.steering else None
    return Answer(
        setting=job.setting.name,
        concurrency=job.concurrency,
        prompt=job.prompt.id,
        seed=job.seed,
        part=asking.part,
        sent=sent,
        ttft=first,
        e2e=took,
        text=reply.text,
        finish_reason=reply.finish_reason,
        stopped_by=told.stopped_by,
        prompt_tokens=reply.usage.prompt_tokens,
        delivered=reply.usage.completion_tokens,
        spent=told["model_tokens"],
        forwards=told["forwards"],
        kl=_distance(job.setting, reply),
        bounded="kl_bound" in told.report and not job.setting.decoding.get("steer"),
        branching=None if steering is None else steering.branching_factor,
    )


def _distance(setting: Setting, reply: Reply) -> float | None:
    """Nats from the base: a search's bound, for its choice's own steering would be 0; nothing for plain sampling.

    Where steered answers are searched, the bound is from what steers, and nothing tells the sum.
    """
    bound: float | None = reply.decoding.report.get("kl_bound")
    if bound is not None:
        return None if setting.decoding.get("steer") else bound
    return reply.decoding.kl() if setting.decoding else 0.0


def _drawn(reply: Reply) -> tuple[Drawn, ...]:
    return tuple(
        Drawn(text=each.text, tokens=each.tokens, rewards=dict(each.rewards))
        for each in reply.decoding.candidates
        if each.text is not None
    )
