"""Means and paired gains with their uncertainty: a percentile bootstrap over prompts (Efron 1979).

A prompt is the unit: its seeds are averaged first, and what is drawn again are prompts, so that more seeds make each
prompt's value more certain and do not pass for more prompts.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trimtab.bench.records import Gain, Interval

Floats = NDArray[np.float64]

RESAMPLES = 10_000
LEVEL = 0.95
SEED = 0
"""of the resampling, so that the same values always have the same interval"""


def interval(values: ArrayLike) -> Interval:
    """The mean of `values` (P, S), S seeds of P prompts, with its interval. ValueError for other shapes and for NaN."""
    means = _by_prompt(values)
    low, high = _bounds(means)
    return Interval(mean=float(means.mean()), low=low, high=high)


def paired_gain(treated: ArrayLike, plain: ArrayLike) -> Gain:
    """The mean of `treated - plain`, both (P, S), with its interval. ValueError if the shapes differ, and for NaN."""
    t, p = np.asarray(treated, dtype=np.float64), np.asarray(plain, dtype=np.float64)
    if t.shape != p.shape:
        raise ValueError(f"shapes {t.shape} and {p.shape}: both must be the same (prompts, seeds)")
    differences = _by_prompt(t - p)
    low, high = _bounds(differences)
    improved = float((differences > 0).mean())
    return Gain(mean=float(differences.mean()), low=low, high=high, improved=improved)


def _by_prompt(values: ArrayLike) -> Floats:
    """The mean of each prompt, (P,), sorted: nothing depends on the order in which prompts come."""
    v = np.asarray(values, dtype=np.float64)
    if v.ndim != 2 or not v.size:
        raise ValueError(f"shape {v.shape}: values must be (prompts, seeds), and not empty")
    if not np.isfinite(v).all():
        raise ValueError("values must be finite: leave out prompts that were not measured")
    means: Floats = np.sort(v.mean(axis=1))
    return means


def _bounds(values: Floats) -> tuple[float, float]:
    """The quantiles of the means of resampled values."""
    means = _resamples(len(values)) @ values / len(values)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@lru_cache(maxsize=4)
def _resamples(count: int) -> Floats:
    """How often each of `count` values is drawn, (RESAMPLES, count): the same for all values of a run."""
    random = np.random.Generator(np.random.PCG64(SEED))
    return random.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(np.float64)
