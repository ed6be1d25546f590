"""Which replica takes a request."""

from collections.abc import Sequence

import numpy as np

from trimtab.bench.capacity.simulation.replica import Replica
from trimtab.bench.capacity.simulation.settings import Fleet

DRAWN = 65_536
"""random numbers that are drawn at a time"""


class Router:
    """Chooses among the replicas that serve."""

    def __init__(self, settings: Fleet, random: np.random.Generator) -> None:
        self._settings = settings
        self._random = random
        self._drawn: list[float] = []

    def choose(self, serving: Sequence[int], replicas: Sequence[Replica], prefix: int, present: int) -> int:
        """The number of a replica; `present` is how many requests are anywhere."""
        if self._settings.routing == "prefix":
            # The real router hashes by rendezvous, which moves fewer prefixes but ranks all replicas for each request.
            home = serving[_mixed(prefix) % len(serving)]
            bound = max(2.0, self._settings.prefixes.overload * present / len(serving))
            if replicas[home].load <= bound:
                return home
        one = serving[int(self._uniform() * len(serving))]
        if self._settings.routing == "random":
            return one
        other = serving[int(self._uniform() * len(serving))]
        return one if replicas[one].load <= replicas[other].load else other

    def _uniform(self) -> float:
        if not self._drawn:
            self._drawn = self._random.random(DRAWN).tolist()
        return self._drawn.pop()


def _mixed(number: int) -> int:
    """A number that neighbours do not share anything of (the finaliser of splitmix64)."""
    number = (number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return number ^ (number >> 31)
