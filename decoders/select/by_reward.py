"""Rules that look at the rewards of each answer, and at its probability under the base."""

from collections.abc import Sequence
from math import inf, isnan, log, nan
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, PrivateAttr, model_validator

from trimtab.decoders.select.rule import Entry, Rule, drawn, ranked, rewards_of, tilted
from trimtab.decoders.weights import Floats


class Argmax(Rule):
    """The highest reward."""

    rule: Literal["argmax"] = "argmax"

    def order(self, pool: Sequence[Entry], count: int, random: np.random.Generator) -> list[int]:
        return ranked(rewards_of(pool))[:count]


class Soft(Rule):
    """Soft best-of-n: drawn with P(i) ~ exp(r_i / temperature) (Verdun et al. 2025, arXiv 2505.03156)."""

    rule: Literal["soft"] = "soft"
    temperature: float = Field(1.0, ge=0.0, le=1e6, description="lambda; 0 is argmax, large is uniform")

    def order(self, pool: Sequence[Entry], count: int, random: np.random.Generator) -> list[int]:
        rewards = rewards_of(pool)
        if self.temperature == 0.0:
            return ranked(rewards)[:count]
        return drawn(tilted(rewards, self.temperature), rewards, count, random)


class Poisson(Rule):
    """The best of the first n = 1 + Poisson(mu) answers (Khalaf et al. 2025, arXiv 2506.19248)."""

    rule: Literal["poisson"] = "poisson"
    mu: float = Field(3.0, ge=0.0, le=1e4, description="mean of n - 1; where n exceeds the pool, all of it competes")
    _n: int = PrivateAttr(0)

    def order(self, pool: Sequence[Entry], count: int, random: np.random.Generator) -> list[int]:
        self._n = 1 + int(random.poisson(self.mu))
        best = ranked(rewards_of(pool[: self._n]))
        return [*best, *range(len(best), len(pool))][:count]

    def report(self, pool: Sequence[Entry]) -> dict[str, Any]:
        return {"poisson_n": self._n}


class Chi2(Rule):
    """Pessimism by chi-squared regularisation: drawn by `chi2_weights` (Huang et al. 2025, arXiv 2503.21878)."""

    rule: Literal["chi2"] = "chi2"
    beta: float = Field(1.0, ge=0.0, le=1e6, description="pull towards the base; 0 is argmax, large is uniform")

    def order(self, pool: Sequence[Entry], count: int, random: np.random.Generator) -> list[int]:
        rewards = rewards_of(pool)
        scored = [index for index, reward in enumerate(rewards) if not isnan(reward)]
        log_weights = [-inf] * len(pool)
        for index, weight in zip(scored, chi2_weights([rewards[index] for index in scored], self.beta), strict=True):
            if weight > 0.0:
                log_weights[index] = log(weight)
        return drawn(log_weights, rewards, count, random)


def chi2_weights(rewards: Sequence[float], beta: float) -> Floats:
    """The w (N,) on the simplex that maximises sum_i w_i r_i - (N beta / 2) sum_i (w_i - 1/N)^2.

    That is E_w[r] - beta D(w || uniform) with the chi-squared divergence D = (1/2) E_uniform[(w / uniform - 1)^2].
    Closed form: w_i ~ relu(r_i - lambda_J), the rewards sorted downward, lambda_J = (sum_{i<=J} r_i - N beta) / J and
    J the largest index with r_J > lambda_J. beta 0, or a reward of +inf: the first of the highest has it all.
    """
    r: Floats = np.asarray(rewards, dtype=np.float64)
    if not len(r):
        return r
    best = int(r.argmax())
    if beta == 0.0 or np.isinf(r[best]):
        only: Floats = np.eye(1, len(r), best)[0]
        return only
    r = r - r[best]  # the weights do not change, and the sums below lose no digits to a common offset
    falling = -np.sort(-r)
    thresholds = (np.cumsum(falling) - len(r) * beta) / np.arange(1, len(r) + 1)
    weights: Floats = np.maximum(r - thresholds[np.flatnonzero(falling > thresholds)[-1]], 0.0)
    weights /= weights.sum()
    return weights


class RegularisedBestOfN(Rule):
    """Regularised best-of-n: the highest r + alpha * log p_base(answer) (Jinnai et al. 2024, arXiv 2404.01054)."""

    rule: Literal["rbon"] = "rbon"
    alpha: float = Field(0.01, ge=0.0, le=1e4, description="weight of the base's log-probability; 0 is argmax")

    @property
    def needs_logprob(self) -> bool:
        return True

    def order(self, pool: Sequence[Entry], count: int, random: np.random.Generator) -> list[int]:
        rewards = rewards_of(pool)
        if self.alpha == 0.0:
            return ranked(rewards)[:count]
        scores = [reward + self.alpha * entry.logprob for reward, entry in zip(rewards, pool, strict=True)]
        return ranked(scores)[:count]


class Ensemble(Rule):
    """The highest mean, least, or mean without variance of several judges (Coste et al. 2023, arXiv 2310.02743).

    Their raw rewards count; an answer on which one of them failed loses.
    """

    rule: Literal["ensemble"] = "ensemble"
    aggregate: Literal["mean", "min", "pessimistic"] = Field(
        "mean", description="of the guides' rewards; pessimistic is mean - c * variance"
    )
    c: float | None = Field(
        None, ge=0.0, le=1e4, description="pessimistic: what disagreement costs; 0.5 if not given, 0 is mean"
    )

    @model_validator(mode="after")
    def _c_weighs_a_variance(self) -> Self:
        if self.c is not None and self.aggregate != "pessimistic":
            raise ValueError(f"c belongs to aggregate 'pessimistic': leave it out with {self.aggregate!r}")
        return self

    def order(self, pool: Sequence[Entry], count: int, random: np.random.Generator) -> list[int]:
        return ranked([self._score(list(entry.rewards.values())) for entry in pool])[:count]

    def _score(self, rewards: Sequence[float]) -> float:
        if not rewards or any(isnan(reward) for reward in rewards):
            return nan
        if self.aggregate == "min":
            return min(rewards)
        mean = sum(rewards) / len(rewards)
        if self.aggregate == "mean":
            return mean
        variance = sum((reward - mean) ** 2 for reward in rewards) / len(rewards)
        return mean - (0.5 if self.c is None else self.c) * variance
