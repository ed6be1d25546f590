"""DExperts: experts for and against an attribute (Liu et al. 2021, arXiv 2105.03023).

The base's nucleus is taken first: the experts cannot raise what the base thinks impossible.
"""

from pydantic import Field

from trimtab.decoders.params import ReaderName, Weight
from trimtab.decoders.registry import strategy
from trimtab.decoders.steer.base import Steer
from trimtab.decoders.steer.draft import Draft


@strategy("dexperts", paper="Liu et al. 2021, arXiv 2105.03023", cost="1 answer of each model", needs=("lm",))
class DExperts(Steer):
    """`z_base + alpha * (z_expert - z_antiexpert)` on the base's nucleus of mass p."""

    expert: ReaderName = Field(description="name of the language model with the attribute, or `base`")
    antiexpert: ReaderName = Field(description="name of the language model against it")
    alpha: Weight = Field(2.0, description="weight of the difference")
    p: float = Field(0.9, gt=0.0, le=1.0, description="mass of the base's nucleus")

    def steer(self, draft: Draft) -> None:
        draft.candidates(top_p=self.p, field="p")
        draft.add(self.expert, self.alpha, field="expert")
        draft.add(self.antiexpert, -self.alpha, field="antiexpert")
