"""The whole best-of-n curve from one pool of answers, by order statistics.

Of N draws, sorted by reward upward, the i-th is the best of a random n of them with probability C(i-1, n-1) / C(N, n).
Weighted by these, any measure of the chosen answer is an unbiased estimate of what the best of n draws would have.
"""

import numpy as np
from numpy.typing import ArrayLike

from trimtab.bench.bootstrap import Floats
from trimtab.bench.records import Setting


def curve_settings(setting: Setting) -> list[Setting]:
    """What is timed of a curve: each of its numbers of answers but the setting's own, under a name of its own."""
    return [
        Setting(
            name=f"{setting.name} n={n}",
            decoding={**setting.decoding, "n": n},
            family=setting.family or setting.name,
            strength=n,
        )
        for n in setting.curve
        if n != setting.decoding.get("n")
    ]


def order_weights(n: int, pool: int) -> Floats:
    """C(i-1, n-1) / C(N, n) for i = 1 to N, the size of the pool, (N,): found from the top by ratios of neighbours."""
    if not 1 <= n <= pool:
        raise ValueError(f"the best of {n} cannot be found among {pool} answers")
    i = np.arange(pool, n, -1, dtype=np.float64)
    falling = n / pool * np.cumprod(np.concatenate([[1.0], (i - n) / (i - 1)]))  # of i = N down to n
    weights: Floats = np.concatenate([np.zeros(n - 1), falling[::-1]])
    return weights


def chances(rewards: ArrayLike, n: int) -> Floats:
    """For each of N answers, (N,), how likely it is the best of n of them drawn at random, (N,).

    Tied answers share alike: the server takes the first drawn of them, and any may have been drawn first. NaN, a reward
    that is missing, loses against all others.
    """
    r = np.asarray(rewards, dtype=np.float64)
    r = np.where(np.isnan(r), -np.inf, r)
    weights = order_weights(n, len(r))
    _, group, sizes = np.unique(r, return_inverse=True, return_counts=True)  # groups by reward, upward
    shares: Floats = np.add.reduceat(weights, np.cumsum(sizes) - sizes) / sizes
    return shares[group]


def expected(values: ArrayLike, chance: Floats) -> float:
    """The mean of `values` (N,) under `chance` (N,); NaN if one that has a chance is NaN."""
    v = np.asarray(values, dtype=np.float64)
    met = chance > 0.0
    return float(v[met] @ chance[met])


def wins(rewards: ArrayLike, opponent: float) -> Floats:
    """1 for each reward above the opponent's, a half for a tie; NaN where one of the two is."""
    won: Floats = (np.sign(np.asarray(rewards, dtype=np.float64) - opponent) + 1.0) / 2.0
    return won
