"""DeRa: realignment at decoding time (Liu et al. 2024, arXiv 2402.02992).

The KL strength beta of the aligned model's training becomes beta / lam; lam above 1 extrapolates.
"""

from pydantic import Field

from trimtab.decoders.params import ReaderName, Weight
from trimtab.decoders.registry import strategy
from trimtab.decoders.steer.base import Steer
from trimtab.decoders.steer.draft import Draft
from trimtab.engine.plan import BASE


@strategy("dera", paper="Liu et al. 2024, arXiv 2402.02992", cost="1 answer of each model", needs=("lm",))
class Dera(Steer):
    """`lp_ref + lam * (lp_aligned - lp_ref)`: 0 is the reference, 1 the aligned model, more is beyond it."""

    aligned: ReaderName = Field(description="name of the aligned language model")
    reference: ReaderName = Field(BASE, description="what it was aligned from")
    lam: Weight = Field(0.5, description="strength of the alignment")

    def steer(self, draft: Draft) -> None:
        draft.rebase(0.0, field="lam")
        draft.add(self.reference, 1.0 - self.lam, field="reference")
        draft.add(self.aligned, self.lam, field="aligned")
