"""Where the time of an engine's ticks goes: forwards of models, draws of tokens, and the rest."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from trimtab import LLM

FORWARDS = ("prefill", "decode", "hidden", "score")
DRAWS = ("draw", "propose", "weigh", "speak")


@contextmanager
def seconds(llm: LLM) -> Iterator[dict[str, float]]:
    """Seconds spent in the forwards and in the draws of the block; a scorer's forwards inside a draw count as such."""
    spent = {"forwards": 0.0, "draws": 0.0}

    def timed(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            began, before = perf_counter(), spent["forwards"]
            out = function(*arguments, **options)
            spent[part] += perf_counter() - began - (spent["forwards"] - before)
            return out

        return run

    places = [(model.runner, name, "forwards") for model in llm.models.values() for name in FORWARDS]
    places += [(llm._worker.engine._sampler, name, "draws") for name in DRAWS]  # type: ignore[list-item]
    for owner, name, part in places:
        setattr(owner, name, timed(getattr(owner, name), part))
    try:
        yield spent
    finally:
        for owner, name, _ in places:
            delattr(owner, name)
