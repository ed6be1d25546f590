"""Large answers are built on a thread, so that the event loop goes on meanwhile."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

from trimtab.engine.results import Delta, Result

T = TypeVar("T")

HEAVY = 200
"""tokens and candidates to be told from which on it is worth a thread: about five milliseconds of work"""

SPELLED = 8
"""tokens of a tree that take as long as one that is told with all its numbers"""


def weight(results: Iterable[Result | None], deltas: Iterable[Delta] = ()) -> int:
    """How much there is to tell: candidates, nodes of trees, and tokens with a trace or with log-probabilities."""
    told = sum(len(delta.logprobs or ()) + len(delta.trace or ()) for delta in deltas)
    for result in results:
        if result is not None:
            told += len(result.candidates) + len(result.prompt_logprobs or ())
            told += sum(1 + len(node.token_ids) // SPELLED for node in (result.tree.nodes if result.tree else ()))
            told += sum(len(choice.trace or ()) + len(choice.logprobs or ()) for choice in result.choices)
    return told


async def build(weight: int, make: Callable[[], T]) -> T:
    """What `make` returns; it runs on a thread if the weight of what it tells is large."""
    return make() if weight < HEAVY else await run_in_threadpool(make)
