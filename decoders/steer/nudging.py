"""Nudging: an aligned model sets in where the base is unsure (Fei et al. 2024, arXiv 2410.09300).

The two models need not share a vocabulary: they take turns on the text, word by word.
"""

from typing import ClassVar

from pydantic import Field

from trimtab.decoders.params import LanguageName, Share
from trimtab.decoders.registry import strategy
from trimtab.decoders.steer.base import Steer
from trimtab.decoders.steer.draft import Draft
from trimtab.engine.plan import GatePlan


@strategy("nudging", paper="Fei et al. 2024, arXiv 2410.09300", cost="1 answer, in part of both models", needs=("lm",))
class Nudging(Steer):
    """The aligned model speaks while the base's `max p < gamma`, else the base; greedy in the paper (temperature 0)."""

    temperature: ClassVar[float | None] = 0.0
    aligned: LanguageName = Field(description="name of the aligned language model")
    gamma: Share = Field(0.4, description="probability of its likeliest token from which the base speaks")
    draft: int = Field(16, ge=1, le=256, description="tokens that the aligned model drafts at most at a time")

    def steer(self, draft: Draft) -> None:
        plan = GatePlan("nudging", lane=0, draft=self.draft, gamma=self.gamma)
        draft.gate(self.aligned, plan, field="aligned")
