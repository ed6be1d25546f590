"""A weighted sum of the logits of any models, as a product of experts (Hinton 2002)."""

from pydantic import Field

from trimtab.decoders.params import ReaderName, Weight
from trimtab.decoders.registry import strategy
from trimtab.decoders.steer.base import Steer
from trimtab.decoders.steer.draft import Draft
from trimtab.engine.plan import BASE


@strategy("mixture", cost="1 answer of each model", needs=("lm",))
class Mixture(Steer):
    """`sum of w_i * z_i`; the base counts 1 unless it is listed."""

    weights: dict[ReaderName, Weight] = Field(min_length=1, description="guides, and `base`, with their weights")

    def steer(self, draft: Draft) -> None:
        for name, weight in self.weights.items():
            if name == BASE:
                draft.rebase(weight, field="weights")
            else:
                draft.add(name, weight, field="weights")
