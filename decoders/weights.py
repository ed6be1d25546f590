"""Draws from weights that are known as logarithms; NaN counts as -inf."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def softmax(logits: Sequence[float]) -> Floats:
    """Probabilities (N,); uniform if every logit is -inf, and shared by those that are +inf."""
    z = _cleaned(logits)
    top = z.max()
    p: Floats = (z == top).astype(np.float64) if np.isinf(top) else np.exp(z - top)
    p /= p.sum()
    return p


def log_mean_exp(logits: Sequence[float], counts: Sequence[int] | None = None) -> float:
    """log of the mean of exp(logits), each of which counts once or as often as `counts` says; -inf if all are."""
    z = _cleaned(logits)
    top = float(z.max())
    if np.isinf(top):
        return top
    return top + float(np.log(np.average(np.exp(z - top), weights=counts)))


def draw(logits: Sequence[float], random: np.random.Generator, count: int = 1) -> list[int]:
    """`count` different indices, drawn one after the other from the softmax of what is left (Gumbel top-k)."""
    z = _cleaned(logits)
    keys = z + random.gumbel(size=len(z))
    order = np.lexsort((random.random(len(z)), -keys))  # +inf and -inf tie: any of them
    return [int(index) for index in order[:count]]


def effective_sample_size(log_weights: Sequence[float]) -> float:
    """1 / sum of the squared normalised weights: N for equal ones, 1 where one has it all."""
    return float(1.0 / np.square(softmax(log_weights)).sum())


def systematic(log_weights: Sequence[float], random: np.random.Generator) -> list[int]:
    """N ancestors for N particles by systematic resampling, in rising order (Kitagawa 1996).

    One uniform number, N evenly spaced pointers: a particle of weight w gets floor(N w) or ceil(N w) copies, N w on
    average, and one without weight gets none.
    """
    bounds = np.cumsum(softmax(log_weights))
    count = len(bounds)
    pointers = np.minimum((np.arange(count) + random.random()) / count, np.nextafter(1.0, 0.0))
    return [int(index) for index in np.searchsorted(bounds / bounds[-1], pointers, side="right")]


def _cleaned(logits: Sequence[float]) -> Floats:
    return np.nan_to_num(np.asarray(logits, dtype=np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
