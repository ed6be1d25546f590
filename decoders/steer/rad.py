"""Reward-augmented decoding with a causal reward model (Deng and Raffel 2023, arXiv 2310.09520)."""

from pydantic import Field

from trimtab.decoders.params import Count, ScorerName, Weight
from trimtab.decoders.registry import strategy
from trimtab.decoders.steer.base import Steer
from trimtab.decoders.steer.draft import Draft


@strategy("rad", paper="Deng and Raffel 2023, arXiv 2310.09520", cost="1 answer, k scores a token", needs=("reward",))
class Rad(Steer):
    """`z_base + beta * clamp(r(h, v), 0, 1)` on the k likeliest tokens."""

    reward: ScorerName = Field(description="name of the guide that scores candidates")
    beta: Weight = Field(30.0, description="weight of the reward")
    k: Count = Field(20, description="candidates")

    def steer(self, draft: Draft) -> None:
        draft.candidates(top_k=self.k, field="k")
        draft.value(self.reward, self.beta, "clamp", field="reward")
