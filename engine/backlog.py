"""How much waits, and how fast it goes: limits of the queue, and when to try again."""

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

from trimtab.engine.errors import Overloaded
from trimtab.engine.settings import EngineSettings

WINDOW = 30.0
"""seconds over which the pace is measured"""
SAMPLE = 1.0
"""seconds between two notes of it"""
SETTINGS = ("max_waiting", "max_waiting_rows", "max_waiting_tokens")
SOONEST, LATEST = 1.0, 60.0
"""seconds of a Retry-After"""


class Load(NamedTuple):
    """What waiting requests ask for."""

    requests: int = 0
    rows: int = 0
    """sequences that they decode at the same time"""
    tokens: int = 0
    """of their prompts, and room for one answer each"""

    def plus(self, other: "Load") -> "Load":
        return Load(*(mine + its for mine, its in zip(self, other, strict=True)))

    def minus(self, other: "Load") -> "Load":
        return Load(*(mine - its for mine, its in zip(self, other, strict=True)))


class Backlog:
    """What has come and what has left the queue: two sums, each written by one side, so that nothing is counted anew.

    `enter` is called under the lock of the queue, `leave` and `note` by the engine's thread.
    """

    def __init__(self, settings: EngineSettings, clock: Callable[[], float] = monotonic) -> None:
        self.entered = Load()
        self.left = Load()
        self._limits = Load(*(getattr(settings, name) for name in SETTINGS))
        self._clock = clock
        self._notes = deque([(clock(), self.left)])

    @property
    def waiting(self) -> Load:
        return self.entered.minus(self.left)

    def fits(self, load: Load) -> bool:
        """Whether there is room for one more; a request that is larger than the limits fits an empty queue."""
        waiting = self.waiting
        return waiting.requests <= 0 or max(waiting.plus(load).minus(self._limits)) <= 0

    def enter(self, load: Load) -> None:
        """Count a request in."""
        self.entered = self.entered.plus(load)

    def check(self, load: Load) -> None:
        """Raise Overloaded, which names the limit, where a request does not fit."""
        waiting = self.waiting
        over = waiting.plus(load).minus(self._limits)
        if waiting.requests > 0 and max(over) > 0:
            place = next(place for place, excess in enumerate(over) if excess > 0)
            raise Overloaded(
                f"{waiting[place]} {Load._fields[place]} are waiting already and {self._limits[place]} may (setting "
                f"engine.{SETTINGS[place]}): try again later",
                retry_after=self.seconds(over),
            )

    def leave(self, load: Load) -> None:
        """A request waits no longer: it was admitted, or it ended."""
        self.left = self.left.plus(load)

    def restart(self) -> None:
        """The engine was idle until now, which says nothing of its pace."""
        self._notes = deque([(self._clock(), self.left)])

    def note(self) -> None:
        """Remember now and then how much has left the queue."""
        now, notes = self._clock(), self._notes
        if now - notes[-1][0] >= SAMPLE:
            notes.append((now, self.left))
            while len(notes) > 1 and now - notes[1][0] >= WINDOW:
                notes.popleft()

    def seconds(self, over: Load) -> float:
        """When to try again: once as much has left the queue as stands in the way, at the pace of the last half minute.

        Where nothing has left meanwhile, as long again as that has lasted. Between 1 and 60 seconds.
        """
        began, before = self._notes[0]
        span, gone = self._clock() - began, self.left.minus(before)
        each = (span * excess / left if left else span for excess, left in zip(over, gone, strict=True) if excess > 0)
        return min(max(SOONEST, *each), LATEST)
