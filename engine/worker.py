"""The engine's thread: takes submissions and cancellations from other threads and ticks while there is work.

Everything that computes runs in this one thread, loading included. GNU OpenMP keeps a pool of spinning workers for
every thread that ever ran a parallel region, and once these are more than the cores, all of them fall asleep between
any two operations: a second computing thread makes a decode step on two cores almost twice as slow.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Condition, Thread
from traceback import clear_frames
from typing import TypeVar

from trimtab.engine.backlog import Load
from trimtab.engine.engine import Engine
from trimtab.engine.errors import Cancelled, Draining, Overloaded
from trimtab.engine.rating import Rating
from trimtab.engine.request import Request

logger = logging.getLogger(__name__)

NAP = 0.05
"""seconds between two looks at deadlines while other servers are waited for"""
MAX_FAILURES = 3  # ticks that may raise, with no decode step in between, before the engine gives up

T = TypeVar("T")


class Worker:
    """Runs one `Engine` in one thread. All methods may be called from any thread and never block for long."""

    engine: Engine

    def __init__(self, build: Callable[[], Engine]) -> None:
        """Start the thread and wait until `build` has made the engine there; what `build` raises is raised here."""
        self.failed: Exception | None = None
        self._inbox: deque[Request | Rating] = deque()
        self._cancelled: deque[object] = deque()
        self._errands: deque[Callable[[], None]] = deque()
        self._signal = Condition()
        self._draining = False
        self._closing = False
        self._woken = False
        built: Future[Engine] = Future()
        self._thread = Thread(target=self._run, args=(build, built), name="trimtab-engine", daemon=True)
        self._thread.start()
        self.engine = built.result()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let what this thread submits inside reach the engine in one tick."""
        with self._signal:  # a lock that its thread may take again
            yield

    def submit(self, request: Request | Rating) -> None:
        """Queue a request; raises Overloaded when the queue is full, a guide rests, or the engine is stopping."""
        guides = (request.reward,) if isinstance(request, Rating) else tuple(request.guides)
        load = request.load
        with self._signal:
            self._check()
            if self._draining:
                raise Draining("the server is shutting down and takes no new requests")
            self.engine.backlog.check(load)
            self.engine.circuits.enter(guides)
            self.engine.backlog.enter(load)
            self._inbox.append(request)
            self._signal.notify()

    def fits(self, load: Load) -> bool:
        """Whether the queue has room for so much more."""
        return self.engine.backlog.fits(load)

    def wake(self) -> None:
        """Let the engine go on: what it waits for has come."""
        with self._signal:
            self._woken = True
            self._signal.notify()

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits."""
        with self._signal:
            return not self._inbox and self.engine.idle

    def cancel(self, handle: object) -> None:
        with self._signal:
            self._cancelled.append(handle)
            self._signal.notify()

    def ask(self, errand: Callable[[], T]) -> "Future[T]":
        """Run `errand` in the engine's thread, between two ticks and after what was submitted before it.

        What it raises ends its future and nothing else. Raises Overloaded when the engine is stopping.
        """
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(errand())
            except Exception as error:
                clear_frames(error.__traceback__)  # they hold what was loaded until it failed
                future.set_exception(error)

        with self._signal:
            self._check()
            self._errands.append(run)
            self._signal.notify()
        return future

    def drain(self) -> None:
        """Refuse new requests; those submitted go on."""
        self._draining = True

    def close(self) -> None:
        """End what is running with `Cancelled` and stop the thread."""
        with self._signal:
            self._closing = True
            self._signal.notify()
        self._thread.join()

    def _check(self) -> None:
        """Raise Overloaded unless the thread goes on."""
        if self.failed is not None:
            raise Overloaded("the engine has stopped after repeated errors: restart the server", retry_after=30.0)
        if self._closing:
            raise Draining("the server is shutting down and takes no new requests")

    def _run(self, build: Callable[[], Engine], built: "Future[Engine]") -> None:
        try:
            self.engine = build()
        except BaseException as error:
            built.set_exception(error)
            return
        built.set_result(self.engine)
        self._loop()

    def _loop(self) -> None:
        failures = 0
        while self._wait():
            steps = self.engine.stats.steps
            try:
                self._take_in()
                self.engine.tick()
                if self.engine.stats.steps > steps:  # a tick without work proves nothing
                    failures = 0
            except Exception as error:  # one bad tick must not take the server down
                logger.exception("a tick failed; all running requests end with an error")
                self.engine.fail_all(error)
                failures += 1
                if failures == MAX_FAILURES:
                    with self._signal:
                        self.failed = error
                    self.engine.stats.stopped = True
                    break
        self._take_in()
        self.engine.fail_all(self.failed or Cancelled("the engine was closed"))

    def _wait(self) -> bool:
        """Sleep until there is something to do; False when the thread should end."""
        with self._signal:
            while not (self._inbox or self._cancelled or self._errands or self._closing or self._woken):
                if self.engine.idle:
                    self._signal.wait()
                elif not self.engine.rests or not self._signal.wait(NAP):
                    break
            self._woken = False
            return not self._closing

    def _take_in(self) -> None:
        """Hand the engine what arrived, what was given up and what was asked for since the last tick."""
        with self._signal:
            arrived, self._inbox = self._inbox, deque()
            cancelled, self._cancelled = self._cancelled, deque()
            errands, self._errands = self._errands, deque()
            for request in arrived:  # within the lock: whoever asks whether all is idle sees them here or there
                if isinstance(request, Rating):
                    self.engine.rate(request)
                else:
                    self.engine.submit(request)
        for handle in cancelled:
            self.engine.cancel(handle)
        for errand in errands:
            errand()
