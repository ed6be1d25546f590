"""Controlled Decoding, token by token (Mudgal et al. 2023, arXiv 2310.17022).

With the exact value of the soft-optimal policy this draws from it. A head of the whole vocabulary values every token
in one product; a scorer reads the likeliest ones.
"""

from pydantic import Field

from trimtab.decoders.params import Count, ScorerName, Weight
from trimtab.decoders.registry import strategy
from trimtab.decoders.steer.base import Steer
from trimtab.decoders.steer.draft import Draft

SCORED = 20
"""candidates of a scorer"""


@strategy(
    "cd",
    paper="Mudgal et al. 2023, arXiv 2310.17022",
    cost="1 answer, with one head call or k scores a token",
    needs=("value",),
)
class Cd(Steer):
    """`z_base + lam * V(h, v)` on all tokens with a head of the whole vocabulary, else on the k likeliest."""

    value: ScorerName = Field(description="name of the guide that gives the values")
    lam: Weight = Field(1.0, description="weight of the value")
    k: Count | None = Field(None, description=f"candidates; null: all for a head, {SCORED} for a scorer")

    def steer(self, draft: Draft) -> None:
        if self.k is not None or not draft.scores_vocabulary(self.value, field="value"):
            draft.candidates(top_k=self.k or SCORED, field="k")
        draft.value(self.value, self.lam, field="value")
