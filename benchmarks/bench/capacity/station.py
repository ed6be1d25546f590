"""A process that answers requests in shared steps: how fast it is with so many under way, and what queues before it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import expm1, inf
from typing import NamedTuple

from trimtab.bench.capacity.machines.clock import Clock, Reading
from trimtab.bench.capacity.work import BASE, Tokens, Work

DEEPEST = 4000
"""requests in a queue that are reckoned with"""
SMALLEST = 1e-12


class Spending(NamedTuple):
    """Where the time of a busy process goes: seconds per request."""

    what: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Member:
    """One model of a process."""

    name: str
    clock: Clock
    adapter: bool = False
    """runs in the base's own forward"""


@dataclass(frozen=True)
class Process:
    """Models that take turns in one process, and the requests that share their steps."""

    members: Mapping[str, Member]
    work: Work
    """of a request, mean"""
    context: float
    """tokens that a row has behind it, mean"""
    request: float
    """seconds for each request beside the models"""
    slots: float
    """requests that can be under way at once"""
    prefill: int
    """tokens of prompts that one forward reads"""

    def tick(self, under_way: float) -> list[tuple[str, float, str]]:
        """One decode step with so many requests under way: the model, its seconds, and what sets them."""
        each = {name: count / self.work.steps for name, count in self.work.rows.items()}
        adapted = sum(count for name, count in each.items() if name in self.members and self.members[name].adapter)
        spent = []
        for name, count in each.items():
            if name not in self.members or self.members[name].adapter:
                continue
            rows = under_way * (count + (adapted if name == BASE else 0.0))
            # Fewer than one row on the average: there is one, from time to time.
            seconds, limit = self.members[name].clock.step(
                max(1.0, rows), self.context, under_way * adapted if name == BASE else 0.0
            )
            spent.append((name, seconds * min(1.0, rows), limit))
        for name, tokens in self.work.wide.items():
            if name in self.members:
                count = under_way * tokens / self.work.steps
                spent.append((name, self.members[name].clock.read(count, min(1.0, count), "candidates"), "candidates"))
        return spent

    def aside(self, under_way: float) -> Mapping[str, float]:
        """Seconds of a request that are no decode step, by what they are, with so many under way.

        What falls due in one tick is read in one forward: of m that fall due on the average, 1 - exp(-m) forwards come.
        No forward reads more of prompts than `prefill` tokens.
        """
        spent = {"requests": self.request}
        kinds: tuple[tuple[str, Reading, Tokens, Tokens, float], ...] = (
            ("prompts", "prompt", self.work.prefill, {}, self.prefill),
            ("scores", "text", self.work.scored, self.work.passes, inf),
        )
        for what, kind, tokens, passes, most in kinds:
            spent[what] = 0.0
            for name, count in tokens.items():
                if name in self.members and count:
                    alone = passes.get(name, 1.0)
                    due = under_way * alone / self.work.steps
                    forwards = max(alone * -expm1(-due) / due, count / most)
                    spent[what] += self.members[name].clock.read(count, forwards, kind)
        return spent

    def rate(self, under_way: float) -> float:
        """Requests per second that leave with so many under way: Little's law over steps that all of them share.

        n requests of S steps each, in steps of t(n) seconds, with w seconds of each that hold all the others up:
        X = n / (S t(n) + n w).
        """
        n = min(under_way, self.slots)
        steps = self.work.steps * sum(seconds for _, seconds, _ in self.tick(n))
        return n / (steps + n * sum(self.aside(n).values()))

    @cached_property
    def best(self) -> float:
        """Requests per second with every slot taken."""
        return self.rate(self.slots)

    def spending(self) -> list[Spending]:
        """Seconds per request by what they go into, with every slot taken, the most first."""
        steps = {
            f"{name}: {limit}": self.work.steps * seconds / self.slots for name, seconds, limit in self.tick(self.slots)
        }
        spent = [
            Spending(what, seconds)
            for what, seconds in {**steps, **self.aside(self.slots)}.items()
            if seconds > SMALLEST
        ]
        return sorted(spent, key=lambda each: -each.seconds)

    def states(self, load: float) -> Sequence[float]:
        """P(n under way or waiting), n = 0, 1, ..., under Poisson arrivals of `load` requests per second.

        A queue whose servers share by n alone; for processor sharing this holds whatever the sizes of requests are.
        """
        return states(self.rate, self.slots, load)


def states(rate: Callable[[float], float], slots: float, load: float) -> Sequence[float]:
    """The distribution of a birth-death chain with deaths at rate(n), which is flat from `slots` on.

    Raises ValueError where more arrives than can leave.
    """
    top = rate(slots)
    if load >= top:
        raise ValueError(f"{load:g} a second arrive and at most {top:g} leave")
    weights, weight = [1.0], 1.0
    for n in range(1, DEEPEST):
        weight *= load / (rate(float(n)) if n < slots else top)
        weights.append(weight)
        if n >= slots and weight / (1 - load / top) < 1e-9 * sum(weights):
            break
    total = sum(weights)
    return [each / total for each in weights]
