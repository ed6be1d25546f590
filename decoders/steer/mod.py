"""MOD: multi-objective decoding by several aligned models (Shi et al. 2024, arXiv 2406.18853)."""

from math import fsum
from typing import Self

from pydantic import Field, model_validator

from trimtab.decoders.params import ReaderName, Share
from trimtab.decoders.registry import strategy
from trimtab.decoders.steer.base import Steer
from trimtab.decoders.steer.draft import Draft


@strategy("mod", paper="Shi et al. 2024, arXiv 2406.18853", cost="1 answer of each model", needs=("lm",))
class Mod(Steer):
    """`sum of w_i * lp_i`, the w_i adding up to 1; with alpha, their power mean of probabilities."""

    weights: dict[ReaderName, Share] = Field(min_length=1, description="guides, and `base`, with their weights")
    alpha: float = Field(
        0.0,
        ge=-100.0,
        le=100.0,
        allow_inf_nan=False,
        description="divergence of the models' training: 0 reverse KL, 1 forward KL, between them alpha-divergences",
    )

    @model_validator(mode="after")
    def _simplex(self) -> Self:
        if abs(fsum(self.weights.values()) - 1.0) > 1e-6:
            raise ValueError(f"the weights add up to {fsum(self.weights.values()):g}: make it 1")
        return self

    def steer(self, draft: Draft) -> None:
        draft.rebase(0.0, field="weights")
        for name, weight in self.weights.items():
            draft.add(name, weight, field="weights")
        if self.alpha:
            draft.power_mean(self.alpha, field="alpha")
