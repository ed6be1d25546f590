"""The profile of a benchmark: what each setting is worth and how long it takes, and which of them fits a budget."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from trimtab.engine.budget import Budget
from trimtab.engine.errors import InvalidRequest, TrimtabError
from trimtab.engine.sampling import MAX_COUNT

FORMAT = 1
"""of the file; another one is refused"""

Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]


class InvalidProfile(TrimtabError):
    """A profile cannot be read, or was not measured on what is served; the message is one line."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Mean(_Part):
    """A mean with its 95 % interval."""

    mean: Finite
    low: Finite
    high: Finite


class Latency(_Part):
    """Milliseconds from sending to the end, with so many requests at a time."""

    concurrency: Count
    answers: Count
    """that were timed"""
    p50_ms: Positive
    p95_ms: Positive


class Prompts(_Part):
    """What was asked."""

    name: str
    count: Count


def _in_order(latency: tuple[Latency, ...]) -> tuple[Latency, ...]:
    levels = [each.concurrency for each in latency]
    if len(set(levels)) < len(levels):
        raise ValueError("a concurrency stands twice")
    return tuple(sorted(latency, key=lambda each: each.concurrency))


class Measured(_Part):
    """One setting of the run."""

    name: str = Field(min_length=1)
    decoding: dict[str, Any]
    """as in a request; empty: plain sampling"""
    reward: Mean
    gold: Finite | None = None
    spent: float = Field(ge=0.0, allow_inf_nan=False)
    """tokens that all models together process for one answer"""
    latency: Annotated[tuple[Latency, ...], Field(min_length=1), AfterValidator(_in_order)]

    def level(self, load: int) -> Latency:
        """The smallest measured concurrency that is as much as `load`; the largest where none is."""
        return next((each for each in self.latency if each.concurrency >= load), self.latency[-1])

    def latency_ms(self, load: int) -> float:
        """What 95 % of its answers take at most with `load` requests at a time, at the measured length.

        It is that of `level`, and beyond the largest grows in proportion.
        """
        level = self.level(load)
        return level.p95_ms * max(1.0, load / level.concurrency)


def _distinct(settings: tuple[Measured, ...]) -> tuple[Measured, ...]:
    names = [each.name for each in settings]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the setting {name!r} stands twice")
    return settings


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a setting is expected to need for a request."""

    setting: Measured
    latency_ms: float
    tokens: float
    """of all models"""

    @property
    def name(self) -> str:
        return self.setting.name

    @property
    def reward(self) -> float:
        return self.setting.reward.mean


@dataclass(frozen=True, slots=True)
class Choice:
    """The setting for a request, and why."""

    estimate: Estimate
    reason: str
    """one sentence"""
    load: int
    """requests at a time that the latency is for"""
    fits: bool
    """whether everything that was asked for is met"""

    @property
    def setting(self) -> Measured:
        return self.estimate.setting


class Frontier(_Part):
    """Settings measured under the same conditions, for the strategy `auto`: the file of `trimtab bench --profile`."""

    format: Literal[1]
    model: str
    dtype: str
    device: str
    hardware: Mapping[str, Any]
    version: str
    commit: str | None
    reward: str
    gold: str | None
    max_tokens: Count
    temperature: float = Field(ge=0.0, le=2.0, allow_inf_nan=False)
    prompts: Prompts
    settings: Annotated[tuple[Measured, ...], Field(min_length=1), AfterValidator(_distinct)]

    @classmethod
    def read(cls, path: Path) -> Self:
        """The profile of a file; raises InvalidProfile that names the file and what is wrong with it."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidProfile(f"cannot read the profile {path}: {error.strerror or error}") from None
        except RecursionError:
            raise InvalidProfile(f"the profile {path} is nested too deeply") from None
        except ValueError as error:
            raise InvalidProfile(f"the profile {path} is not JSON: {error}") from None
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            found = values.get("format") if isinstance(values, dict) else None
            raise InvalidProfile(
                f"the profile {path} is of format {found!r}, not {FORMAT}: make it with `trimtab bench --profile`"
            )
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            told = "unknown key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
            raise InvalidProfile(f"the profile {path}, {where}: {told}") from None

    def choose(self, budget: Budget, *, load: int, max_tokens: int, among: Collection[str] | None = None) -> Choice:
        """The setting that fits `budget`, of those whose names are `among` (None: of all).

        `load` counts the requests that run at the same time, this one with them; `max_tokens` bounds its answer: times
        and tokens are taken to grow with it. With a reward to be reached it is the fastest setting whose mean does,
        else that of the highest mean, in time and within the tokens; no other of these is both faster and better.
        Raises InvalidRequest for a reward that no setting reaches at any speed.
        """
        scale = max_tokens / self.max_tokens
        every = [
            Estimate(each, each.latency_ms(load) * scale, each.spent * scale)
            for each in self.settings
            if among is None or each.name in among
        ]
        most, deadline, least = budget.max_model_tokens, budget.deadline_ms, budget.reward_at_least
        cheap = [each for each in every if most is None or each.tokens <= most]
        affordable = cheap or [min(every, key=lambda each: (each.tokens, *_speed(each)))]
        enough = [each for each in affordable if least is None or each.reward >= least]
        if not enough:
            raise self._unreachable(affordable, budget, cheap=bool(cheap))
        quick, fitting = ([e for e in each if _in_time(e, deadline)] for each in (affordable, enough))
        by_speed = not quick or (fitting and least is not None)
        chosen = min(fitting or quick or affordable, key=_speed if by_speed else _worth)
        if not cheap:
            why = f"no setting spends {most} tokens or fewer: {chosen.name} spends the least of {len(every)}"
        elif not quick:
            why = f"no setting answers within {deadline} ms: {chosen.name} is the fastest of {len(affordable)}"
        elif not fitting:
            why = (
                f"no setting reaches {least:g} {self.reward} within {deadline} ms: {chosen.name} has the highest of "
                f"{len(quick)} that are in time"
            )
        else:
            superlative = f"has the highest {self.reward}" if least is None else "is the fastest"
            bounds = [] if least is None else [f"{least:g} {self.reward}"]
            bounds += [f"{bound} {name}" for name, bound in (("ms", deadline), ("tokens", most)) if bound is not None]
            met = " and ".join(bounds)
            why = f"{chosen.name} {superlative} of {len(fitting)} of {len(every)} settings that meet {met}"
        why += (
            f"; mean {self.reward} {chosen.reward:.3g}, {chosen.tokens:.0f} tokens of all models, and 95 % of answers "
            f"take {chosen.latency_ms:.0f} ms or less, at {load} at a time and up to {max_tokens} tokens, by "
            f"{chosen.setting.level(load).answers} answers that were timed"
        )
        return Choice(chosen, why, load, fits=bool(cheap and fitting))

    def _unreachable(self, settings: Sequence[Estimate], budget: Budget, *, cheap: bool) -> InvalidRequest:
        """What to say of a reward that none of the settings reaches; unless `cheap`, the one left spends too much."""
        best, most = min(settings, key=_worth), budget.max_model_tokens
        within = "" if most is None else f" within {most} tokens"
        found = f"the best is {best.name} with {best.reward:.3g}"
        if not cheap:
            found = f"none spends so little, and {best.name}, with {best.reward:.3g}, the least: {best.tokens:.0f}"
        return InvalidRequest(
            f"no setting of auto reaches a mean {self.reward} of {budget.reward_at_least:g}{within}: {found}; ask for "
            + ("less" if cheap else "less, or allow more tokens"),
            param="decoding.budget.reward_at_least",
        )


def _in_time(each: Estimate, deadline: int | None) -> bool:
    return deadline is None or each.latency_ms <= deadline


def _speed(each: Estimate) -> tuple[float, float, float]:
    """Sorts the fastest first; of those the one with the highest reward, then the cheapest."""
    return each.latency_ms, -each.reward, each.tokens


def _worth(each: Estimate) -> tuple[float, float, float]:
    """Sorts the highest reward first; of those the fastest, then the cheapest."""
    return -each.reward, each.latency_ms, each.tokens
