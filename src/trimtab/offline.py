"""Many requests at once, waited for: what `LLM.generate` and `LLM.chat` do."""

from collections import deque
from contextlib import AbstractContextManager
from queue import SimpleQueue
from typing import TYPE_CHECKING

from tqdm import tqdm

from trimtab.engine.results import Event, Failure, Result

if TYPE_CHECKING:
    from trimtab.llm import LLM
    from trimtab.requests import PreparedRequest


def run_all(
    llm: "LLM", ready: list["PreparedRequest"], together: AbstractContextManager[None], *, progress: bool
) -> list[Result]:
    """Run all requests, as many at once as the queue holds; the first failure cancels the rest and is raised.

    What is submitted inside `together` reaches the engine in one tick, so that batches do not depend on timing.
    """
    events: SimpleQueue[tuple[object, Event]] = SimpleQueue()
    handles = [object() for _ in ready]
    results: dict[object, Result] = {}
    todo = deque(zip(ready, handles, strict=True))

    def deliver(batch: list[tuple[object, Event]]) -> None:
        for item in batch:
            events.put(item)

    def submit() -> None:
        """Fill the queue; where nothing of ours runs, one request at least, or Overloaded."""
        while todo and (len(results) + len(todo) == len(ready) or llm.fits(todo[0][0])):
            llm.submit(*todo[0], deliver)
            todo.popleft()

    try:
        with tqdm(total=len(ready), unit="request", disable=not progress) as bar:
            with together:
                submit()
            while len(results) < len(ready):
                handle, event = events.get()
                if isinstance(event, Failure):
                    raise event.error
                if isinstance(event, Result):
                    results[handle] = event
                    bar.update()
                    submit()
    except BaseException:
        for handle in handles:
            llm.cancel(handle)
        raise
    return [results[handle] for handle in handles]
