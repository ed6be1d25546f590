"""Contrastive decoding (Li et al. 2022, arXiv 2210.15097) in the form of O'Brien and Lewis (2023, arXiv 2309.09117).

The amateur may be `base` itself: without the prompt it shows what the prompt adds.
"""

from pydantic import Field

from trimtab.decoders.params import ReaderName, Share, Weight
from trimtab.decoders.registry import strategy
from trimtab.decoders.steer.base import Steer
from trimtab.decoders.steer.draft import AS_IT_IS, Draft, PromptView


@strategy(
    "contrastive",
    paper="O'Brien and Lewis 2023, arXiv 2309.09117",
    cost="1 answer of the base and the amateur",
    needs=("lm",),
)
class Contrastive(Steer):
    """`(1 + beta) * lp_base - beta * lp_amateur` on tokens with p >= alpha * max p."""

    amateur: ReaderName = Field(description="name of the weaker language model, or `base`")
    alpha: Share = Field(0.1, description="least probability under the base, relative to its likeliest token")
    beta: Weight = Field(0.5, description="strength of the contrast")
    amateur_sees_prompt: bool = Field(True, description="false: the amateur reads the answer alone")

    def steer(self, draft: Draft) -> None:
        view = AS_IT_IS if self.amateur_sees_prompt else PromptView(empty=True)
        draft.candidates(alpha=self.alpha, field="alpha")
        draft.rebase(1.0 + self.beta, field="beta")
        draft.add(self.amateur, -self.beta, view=view, field="amateur")
