"""Emulated fine-tuning (Mitchell et al. 2023, arXiv 2310.12962).

Several pairs of models are several parts in `steer`: parts add up.
"""

from pydantic import Field

from trimtab.decoders.params import ReaderName, Weight
from trimtab.decoders.registry import strategy
from trimtab.decoders.steer.base import Steer
from trimtab.decoders.steer.draft import Draft
from trimtab.engine.plan import BASE


@strategy("eft", paper="Mitchell et al. 2023, arXiv 2310.12962", cost="1 answer of each model", needs=("lm",))
class Eft(Steer):
    """`z_base + w * (z_tuned - z_reference)`: fine-tuning at another scale, emulated."""

    tuned: ReaderName = Field(description="name of the fine-tuned language model")
    reference: ReaderName = Field(BASE, description="what it was tuned from")
    w: Weight = Field(1.0, description="weight of the difference")

    def steer(self, draft: Draft) -> None:
        draft.add(self.tuned, self.w, field="tuned")
        draft.add(self.reference, -self.w, field="reference")
