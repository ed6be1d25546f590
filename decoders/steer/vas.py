"""Value augmented sampling (Han et al. 2024, arXiv 2405.06639).

The mean value of the candidates is taken off, so that they trade mass among themselves; all others keep theirs.
"""

from pydantic import Field

from trimtab.decoders.params import Count, ScorerName, Weight
from trimtab.decoders.registry import strategy
from trimtab.decoders.steer.base import Steer
from trimtab.decoders.steer.draft import Draft


@strategy("vas", paper="Han et al. 2024, arXiv 2405.06639", cost="1 answer, k scores a token", needs=("value",))
class Vas(Steer):
    """`z_base + beta * (V(h, v) - mean V)` on the k likeliest tokens, `z_base` on all others."""

    value: ScorerName = Field(description="name of the guide that gives the values")
    beta: Weight = Field(3.0, description="weight of the value")
    k: Count = Field(20, description="candidates")

    def steer(self, draft: Draft) -> None:
        draft.candidates(top_k=self.k, keep_others=True, field="k")
        draft.value(self.value, self.beta, "centre", field="value")
