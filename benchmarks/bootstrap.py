"""Paired gains with their uncertainty: a percentile bootstrap over prompts (Efron 1979)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Gain:
    """What a method adds to another by one measure, in the measure's unit."""

    mean: float
    low: float
    high: float
    improved: float
    """share of prompts whose mean difference is above 0"""

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval is."""
        return self.low > 0.0


def paired_gain(treated: ArrayLike, plain: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES) -> Gain:
    """Return the mean of `treated - plain`, both (P, S): S seeds of P prompts, with a 95 % interval.

    A prompt is the unit: its differences are averaged first, and what is drawn again are prompts, so that more seeds
    make each prompt's difference more certain and do not pass for more prompts. ValueError if the shapes differ.
    """
    t, p = np.asarray(treated, dtype=np.float64), np.asarray(plain, dtype=np.float64)
    if t.shape != p.shape or t.ndim != 2 or not t.size:
        raise ValueError(f"shapes {t.shape} and {p.shape}: both must be (prompts, seeds), and not empty")
    differences = (t - p).mean(axis=1)  # (P,)
    count = len(differences)
    drawn = np.random.default_rng(seed).integers(count, size=(resamples, count))
    means = differences[drawn].mean(axis=1)  # (resamples,)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Gain(float(differences.mean()), float(low), float(high), float((differences > 0).mean()))
