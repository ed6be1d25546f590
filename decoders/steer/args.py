"""ARGS: reward-guided search over the next token (Khanov et al. 2024, arXiv 2402.01694).

The reward reads each of the k likeliest tokens as the last one of the text; no other token can be drawn.
"""

from typing import ClassVar

from pydantic import Field

from trimtab.decoders.params import Count, ScorerName, Weight
from trimtab.decoders.registry import strategy
from trimtab.decoders.steer.base import Steer
from trimtab.decoders.steer.draft import Draft


@strategy("args", paper="Khanov et al. 2024, arXiv 2402.01694", cost="1 answer, k scores a token", needs=("reward",))
class Args(Steer):
    """`z_base + w * r(h, v)` on the k likeliest tokens; greedy in the paper (temperature 0)."""

    temperature: ClassVar[float | None] = 0.0
    reward: ScorerName = Field(description="name of the guide that scores candidates")
    w: Weight = Field(1.5, description="weight of the reward")
    k: Count = Field(10, description="candidates")

    def steer(self, draft: Draft) -> None:
        draft.candidates(top_k=self.k, field="k")
        draft.value(self.reward, self.w, field="reward")
