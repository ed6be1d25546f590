"""How long prompts and answers are: log-normal, by their mean and how far they spread."""

from collections.abc import Sequence
from functools import cached_property
from math import exp, log, sqrt
from statistics import NormalDist
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from trimtab.bench.records import Record

_NORMAL = NormalDist()
_Z95 = _NORMAL.inv_cdf(0.95)
WIDEST = exp(_Z95**2 / 2)
"""no log-normal has a 95th percentile further above its mean"""
GRID = 400
"""points that an expectation is taken over"""


class Lengths(Record):
    """Tokens; give `p95` or `cv`, or neither where all are equally long."""

    mean: float = Field(ge=1.0, allow_inf_nan=False)
    p95: float | None = Field(None, ge=1.0, allow_inf_nan=False)
    cv: float | None = Field(None, ge=0.0, le=10.0)
    """standard deviation over mean"""

    @model_validator(mode="after")
    def _one_spread(self) -> Self:
        if self.p95 is not None and self.cv is not None:
            raise ValueError("p95 and cv say the same: give one of them")
        if self.p95 is not None and not self.mean <= self.p95 <= self.mean * WIDEST:
            raise ValueError(f"p95={self.p95:g} has to lie between the mean, {self.mean:g}, and {WIDEST:.2f} times it")
        return self

    @cached_property
    def sigma(self) -> float:
        """Standard deviation of the logarithm."""
        if self.p95 is not None:
            return _Z95 - sqrt(max(0.0, _Z95**2 - 2 * log(self.p95 / self.mean)))
        return sqrt(log(1 + (self.cv or 0.0) ** 2))

    @cached_property
    def halfway(self) -> float:
        """How far one that is seen at a random time has come, mean: longer ones are seen more, E[A^2] / (2 E[A])."""
        return self.mean * exp(self.sigma**2) / 2

    def quantile(self, share: float) -> float:
        """The length that this share of all does not exceed."""
        return exp(log(self.mean) - self.sigma**2 / 2 + self.sigma * _NORMAL.inv_cdf(share))

    def longest(self, count: float) -> float:
        """Mean of the longest of so many."""
        if count <= 1 or not self.sigma:
            return self.mean
        return sum(self.quantile(((i + 0.5) / GRID) ** (1 / count)) for i in range(GRID)) / GRID

    def grid(self, points: int) -> Sequence[float]:
        """Equally likely lengths whose mean is the mean."""
        raw = [self.quantile((i + 0.5) / points) for i in range(points)]
        scale = self.mean * points / sum(raw)
        return [each * scale for each in raw]

    def draw(self, random: np.random.Generator, count: int) -> NDArray[np.float64]:
        """That many lengths, (count,)."""
        return np.exp(random.normal(log(self.mean) - self.sigma**2 / 2, self.sigma, count))
