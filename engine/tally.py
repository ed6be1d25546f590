"""Observations counted by size, as a histogram wants them."""

from bisect import bisect_left
from dataclasses import dataclass, field

ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
"""of one decode step, or answers of one batch"""
STRATEGIES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(slots=True)
class Tally:
    """How many observations fell under each bound, and their sum; written by one thread, read by any."""

    bounds: tuple[float, ...]
    """rising; an observation counts under the first bound that it does not exceed"""
    counts: list[int] = field(init=False)
    """one for each bound and one for what exceeds all of them; not cumulative"""
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value
