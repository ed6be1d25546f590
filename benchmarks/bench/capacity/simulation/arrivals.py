"""When requests come, how large they are, and how they begin: drawn before anything runs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.bench.capacity.lengths import Lengths
from trimtab.bench.capacity.simulation.settings import Bursts, Prefixes

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of request."""

    share: float
    steps: float
    """of a request, over those of the mean request"""
    answer: Lengths


def times(random: np.random.Generator, rate: float, count: int, bursts: Bursts | None) -> Floats:
    """Rising seconds of `count` arrivals at `rate` per second on the average."""
    gaps = random.exponential(1.0, count)
    if bursts is None:
        arrivals: Floats = np.cumsum(gaps / rate)
        return arrivals
    calm = rate / (1 + bursts.share * (bursts.factor - 1))
    work = np.cumsum(gaps)  # the clock of a load of 1; each time of burst or calm maps a piece of it
    pause = bursts.seconds * (1 - bursts.share) / bursts.share
    ends, done = [0.0], [0.0]
    burst = False
    while done[-1] < work[-1]:
        length = float(random.exponential(bursts.seconds if burst else pause))
        ends.append(ends[-1] + length)
        done.append(done[-1] + length * calm * (bursts.factor if burst else 1.0))
        burst = not burst
    stretched: Floats = np.interp(work, done, ends)
    return stretched


def requests(random: np.random.Generator, kinds: Sequence[Kind], count: int) -> Floats:
    """Sizes over that of the mean request."""
    shares = np.array([each.share for each in kinds])
    chosen = random.choice(len(kinds), count, p=shares / shares.sum())
    found = np.empty(count)
    for number, kind in enumerate(kinds):
        mine = chosen == number
        found[mine] = kind.steps * kind.answer.draw(random, int(mine.sum())) / kind.answer.mean
    return found


def prefixes(random: np.random.Generator, settings: Prefixes, count: int) -> NDArray[np.int64]:
    """A prefix for each request, by popularity."""
    weights = 1.0 / np.arange(1, settings.count + 1) ** settings.skew
    return random.choice(settings.count, count, p=weights / weights.sum())
