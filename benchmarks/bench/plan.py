"""What a run measures: the options of the command line, and what became of them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import field_validator

from trimtab.bench.records import Conditions, Level, Record, Setting


class Options(Record):
    """The options of `trimtab bench` that say what is measured, with their defaults."""

    url: str | None = None
    """None: a server of the run's own"""
    settings: str = "demo"
    only: tuple[str, ...] = ()
    prompts: str = "trimtab"
    limit: int | None = None
    concurrency: tuple[int, ...] = (8, 1)
    repeats: int = 1
    max_tokens: int = 48
    temperature: float = 1.0
    reward: str = "positivity"
    gold: str = "vader"
    seed: int = 0
    timed: int = 16
    """prompts where only times count; two for each request at a time, if that is more"""

    @field_validator("concurrency")
    @classmethod
    def _once(cls, concurrency: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(concurrency)) < len(concurrency):
            raise ValueError(f"--concurrency {', '.join(map(str, concurrency))}: give each number once")
        return concurrency


class Plan(Record):
    """`run.json`."""

    options: Options
    settings: tuple[Setting, ...]
    levels: dict[str, Level]
    """by setting"""
    conditions: Conditions

    def differences(self, other: "Plan") -> list[str]:
        """What another plan would measure otherwise, or under other conditions, a line each."""
        return [
            *different(_by_name(self.settings), _by_name(other.settings)),
            *different(self.conditions.model_dump(), other.conditions.model_dump()),
        ]


def different(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """A line for each value of `now` that is another one in `before`."""
    for key in dict.fromkeys((*before, *now)):
        then, since, where = before.get(key), now.get(key), f"{path}.{key}" if path else key
        if isinstance(then, Mapping) and isinstance(since, Mapping):
            yield from different(then, since, where)
        elif then != since:
            yield f"  {where}: {_told(then)} there, {_told(since)} now"


def _by_name(settings: Sequence[Setting]) -> dict[str, Any]:
    return {f"setting {each.name}": each.model_dump(exclude={"name"}) for each in settings}


def _told(value: Any) -> str:
    return "nothing" if value is None else repr(value)
