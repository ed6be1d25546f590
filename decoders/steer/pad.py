"""PAD: personalised alignment at decoding time (Chen et al. 2024, arXiv 2410.04070).

The guide reads a system message that states the preference; the base reads the request as it is.
"""

from pydantic import Field

from trimtab.decoders.params import Count, ReaderName, Share
from trimtab.decoders.registry import strategy
from trimtab.decoders.steer.base import Steer
from trimtab.decoders.steer.draft import Draft, PromptView


@strategy("pad", paper="Chen et al. 2024, arXiv 2410.04070", cost="1 answer of the base and the guide", needs=("lm",))
class Pad(Steer):
    """`(1 - w) * lp_base + w * lp_arm` on the k likeliest tokens, the guide told of the preference."""

    arm: ReaderName = Field(description="name of the personalised language model")
    w: Share = Field(0.5, description="share of the guide; 1: the base gives candidates alone")
    k: Count = Field(10, description="candidates")
    preference: str | None = Field(None, description="system message of the guide; null: that of the request")

    def steer(self, draft: Draft) -> None:
        draft.candidates(top_k=self.k, field="k")
        draft.rebase(1.0 - self.w, field="w")
        draft.add(self.arm, self.w, view=PromptView(system=self.preference), field="arm")
