"""How good a guide is on held-out data."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def spearman(predicted: ArrayLike, rated: ArrayLike) -> float:
    """Return the rank correlation, ties sharing their mean rank; 0 where one side is constant and orders nothing."""
    x, y = _ranks(predicted), _ranks(rated)
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum() / scale) if scale else 0.0


def calibration_error(predicted: ArrayLike, observed: ArrayLike, bins: int = 10) -> float:
    """Return the mean distance of predicted and observed means over bins of equally many examples.

    For probabilities and outcomes of 0 and 1 this is the expected calibration error with adaptive bins
    (Nguyen and O'Connor 2015); for ratings it is in the unit of the rating.
    """
    p, y = np.asarray(predicted, dtype=np.float64), np.asarray(observed, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    parts = [part for part in np.array_split(order, bins) if part.size]
    return float(sum(abs(p[part].mean() - y[part].mean()) * part.size for part in parts) / p.size)


def accuracy(margins: Sequence[float]) -> float:
    """Return the share of pairs whose better answer scores higher; ties count half."""
    m = np.asarray(margins, dtype=np.float64)
    return float(((m > 0) + 0.5 * (m == 0)).mean())


def preference_metrics(margins: Sequence[float]) -> dict[str, float]:
    """Return what held-out pairs say of a Bradley-Terry model; `margins` are log-odds of the better answer."""
    m = np.asarray(margins, dtype=np.float64)
    # A pair is also its mirror image: without these, every outcome would be a success.
    told = 0.5 + 0.5 * np.tanh(0.5 * np.concatenate((m, -m)))
    seen = np.repeat((1.0, 0.0), m.size)
    return {
        "accuracy": accuracy(margins),
        "margin": float(m.mean()),
        "calibration_error": calibration_error(told, seen),
    }


def _ranks(values: ArrayLike) -> Floats:
    v = np.asarray(values, dtype=np.float64)
    _, inverse, counts = np.unique(v, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    ranks: Floats = (last - (counts - 1) / 2.0)[inverse]
    return ranks
