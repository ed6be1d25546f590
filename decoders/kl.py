"""How far a choice among several answers moves away from the distribution that they are drawn from; nats.

All of it is about independent draws, and about the distribution they come from: the base's or, where something steers,
the steered one's.
"""

from bisect import bisect_right
from math import ceil, exp, expm1, log

from trimtab.engine.sampling import MAX_COUNT


def best_of_n_bound(n: int) -> float:
    """log n - (n - 1) / n, which no rule exceeds that answers with one of n draws; only a bound.

    Beirami et al. 2024, arXiv 2401.01879, for the best of n. It holds for every rule: a set of probability a holds one
    of the draws, and with it the answer, with probability at most 1 - (1 - a)^n; of all laws that keep to this, the one
    of density n u^(n-1) has the largest KL.
    """
    return log(n) - (n - 1) / n


def best_of_n_estimate(n: int, logprob: float) -> float:
    """An estimate of KL for the best of n, from the log-probability of the answer or of all answers of its reward.

    With e that probability: (1-e)^n [log n + (n-1) log(1-e) - (n-1)/n] + (1 - (1-e)^n) log((1 - (1-e)^n) / e). This is
    the exact KL where the best possible reward has probability e and all others are distinct and rare: 0 for e = 1,
    the bound for e -> 0. Beirami et al. 2024, arXiv 2401.01879.
    """
    logprob = min(logprob, 0.0)
    if logprob == 0.0:
        return 0.0
    others = log(-expm1(logprob))  # log(1 - e), also where e rounds to 1
    missed, met = exp(n * others), -expm1(n * others)  # by all draws; by one or more
    below = missed * (best_of_n_bound(n) + (n - 1) * others)
    if met == 0.0:  # 1 - e rounds to 1
        return below
    return max(0.0, below + met * (log(met) - logprob))


def largest_n(max_kl: float) -> int:
    """The largest n whose bound is at most `max_kl`; at least 1, whose bound is 0."""
    return bisect_right(range(1, MAX_COUNT + 1), max_kl, key=best_of_n_bound)


def win_rate_bound(n: int) -> float:
    """n / (n + 1), of the best of n against one more draw: met where no two rewards are equal, ties aside."""
    return n / (n + 1)


def blockwise_bound(k: int, tokens: int, block: int) -> float:
    """Of an answer of `tokens` tokens whose every block of `block` tokens is the best of k: the bounds' sum."""
    return best_of_n_bound(k) * ceil(tokens / block)
