"""Weak-to-strong decoding: a small aligned model opens the answer (Song et al. 2025, arXiv 2506.07434).

The base takes over once, for good, at the first window of tokens that it finds likely enough.
"""

from pydantic import Field

from trimtab.decoders.params import LanguageName, Share
from trimtab.decoders.registry import strategy
from trimtab.decoders.steer.base import Steer
from trimtab.decoders.steer.draft import Draft
from trimtab.engine.plan import GatePlan


@strategy("wsd", paper="Song et al. 2025, arXiv 2506.07434", cost="1 answer, its start of both models", needs=("lm",))
class Wsd(Steer):
    """The aligned model speaks until `(p_1 ... p_window) ** (1 / window) >= threshold` under the base."""

    aligned: LanguageName = Field(description="name of the small aligned language model")
    window: int = Field(6, ge=1, le=256, description="tokens of the base whose mean decides")
    threshold: Share = Field(0.8, description="geometric mean probability from which the base takes over")
    draft: int = Field(16, ge=1, le=256, description="tokens that the aligned model drafts at most at a time")

    def steer(self, draft: Draft) -> None:
        plan = GatePlan("wsd", lane=0, draft=self.draft, window=self.window, threshold=self.threshold)
        draft.gate(self.aligned, plan, field="aligned")
