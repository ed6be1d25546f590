"""FUDGE: a classifier of what the finished text will be (Yang and Klein 2021, arXiv 2104.05218)."""

from pydantic import Field

from trimtab.decoders.params import Count, ScorerName, Weight
from trimtab.decoders.registry import strategy
from trimtab.decoders.steer.base import Steer
from trimtab.decoders.steer.draft import Draft


@strategy("fudge", paper="Yang and Klein 2021, arXiv 2104.05218", cost="1 answer, k scores a token", needs=("value",))
class Fudge(Steer):
    """`z_base + lam * log sigmoid(c(h, v))` on the k likeliest tokens, drawn from the `limit` best of them."""

    classifier: ScorerName = Field(description="name of the guide whose logit says that the attribute will hold")
    lam: Weight = Field(1.0, description="weight of the log-probability of the attribute")
    k: Count = Field(200, description="candidates")
    limit: Count = Field(10, description="best steered tokens to draw from")

    def steer(self, draft: Draft) -> None:
        draft.candidates(top_k=self.k, field="k")
        draft.value(self.classifier, self.lam, "log_sigmoid", field="classifier")
        draft.limit(self.limit, field="limit")
