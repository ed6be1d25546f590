"""Say nothing rather than something bad."""

from collections.abc import Sequence
from fractions import Fraction
from math import ceil, inf, isfinite, isnan
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from trimtab.decoders.select.by_agreement import Majority, MinimumBayesRisk, WeightedVote
from trimtab.decoders.select.by_reward import Argmax, Chi2, Ensemble, Poisson, RegularisedBestOfN, Soft
from trimtab.decoders.select.rule import Entry, Rule, rewards_of

AnswerRule = Annotated[
    Argmax | Soft | Poisson | Chi2 | RegularisedBestOfN | MinimumBayesRisk | Majority | WeightedVote | Ensemble,
    Field(discriminator="rule"),
]
"""a rule that always answers"""
Score = Annotated[float, Field(allow_inf_nan=False)]


class Abstain(Rule):
    """Refuse if no reward reaches a threshold, else let another rule choose.

    The threshold is `tau`, or conformal (Vovk et al. 2005): with the best rewards of n pools that deserved no answer as
    `calibration`, at most a share `alpha` of such pools is answered, as long as pools are exchangeable and no two
    rewards are equal.
    """

    may_refuse: ClassVar[bool] = True
    rule: Literal["abstain"] = "abstain"
    tau: float | None = Field(None, allow_inf_nan=False, description="least reward that is worth an answer")
    calibration: list[Score] | None = Field(
        None, max_length=100_000, description="scores of which the threshold is a conformal quantile, in place of tau"
    )
    alpha: float | None = Field(
        None, gt=0.0, lt=1.0, description="with calibration: share of bad pools that may pass; 0.1 if not given"
    )
    then: AnswerRule = Field(Argmax(), description="rule that chooses where the threshold is reached")
    message: str = Field(
        "I do not have an answer that I am confident in.",
        min_length=1,
        max_length=2000,
        description="what a refusal says",
    )

    @model_validator(mode="after")
    def _one_threshold(self) -> Self:
        if (self.tau is None) == (self.calibration is None):
            raise ValueError("give either tau or calibration, the scores that tau is computed from")
        if self.alpha is not None and self.calibration is None:
            raise ValueError("alpha belongs to calibration: leave it out with tau")
        return self

    @property
    def needs_logprob(self) -> bool:
        return self.then.needs_logprob

    @property
    def refusal(self) -> str:
        return self.message

    @property
    def threshold(self) -> float:
        """tau, or the ceil((n + 1)(1 - alpha))-th smallest of n scores; +inf where that is beyond the last."""
        if self.calibration is None:
            assert self.tau is not None
            return self.tau
        # In binary, (n + 1)(1 - alpha) may come out just above a whole number; alpha counts as it was written.
        alpha = Fraction(str(self.alpha or 0.1))
        rank = ceil((len(self.calibration) + 1) * (1 - alpha))
        return sorted(self.calibration)[rank - 1] if rank <= len(self.calibration) else inf

    def order(self, pool: Sequence[Entry], count: int, random: np.random.Generator) -> list[int]:
        if _best(pool) < self.threshold:
            return []
        return self.then.order(pool, count, random)

    def report(self, pool: Sequence[Entry]) -> dict[str, Any]:
        threshold, best = self.threshold, _best(pool)
        told = {
            "abstain_tau": threshold if isfinite(threshold) else None,
            "abstain_best": best if isfinite(best) else None,
        }
        return told if best < threshold else {**told, **self.then.report(pool)}


def _best(pool: Sequence[Entry]) -> float:
    return max((reward for reward in rewards_of(pool) if not isnan(reward)), default=-inf)
