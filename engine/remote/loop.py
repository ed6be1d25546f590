"""The one thread that waits for all remote servers: an event loop that lives as long as a connection is open."""

import asyncio
from collections.abc import Coroutine, Iterable
from concurrent.futures import Future
from threading import Lock, Thread
from typing import Any, TypeVar

T = TypeVar("T")


class _Loop:
    """Started by the first that enters, stopped and closed by the last that leaves; thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._users = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: Thread | None = None

    def enter(self) -> None:
        """Need the loop until `leave`."""
        with self._lock:
            self._users += 1
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = Thread(target=self._loop.run_forever, name="trimtab-remote", daemon=True)
                self._thread.start()

    def start(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run `work` in the loop; cancelling the future cancels it there."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def leave(self) -> None:
        """Need the loop no more; not to be called from the loop's own thread."""
        with self._lock:
            self._users -= 1
            if self._users or self._loop is None or self._thread is None:
                return
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = self._thread = None


LOOP = _Loop()
"""of the process: hundreds of calls to any number of servers need no more than one thread"""


async def together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all, in order; the first failure cancels the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
