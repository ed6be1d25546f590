"""Classifier-free guidance on the system message (Sanchez et al. 2023, arXiv 2306.17806)."""

from pydantic import Field

from trimtab.decoders.params import Weight
from trimtab.decoders.registry import strategy
from trimtab.decoders.steer.base import Steer
from trimtab.decoders.steer.draft import Draft, PromptView
from trimtab.engine.plan import BASE


@strategy("cfg", paper="Sanchez et al. 2023, arXiv 2306.17806", cost="2 answers")
class Cfg(Steer):
    """`lp_u + gamma * (lp_c - lp_u)`: c reads the system message, u none or a negative one."""

    gamma: Weight = Field(1.5, description="1: no guidance; 0: without the system message")
    negative_prompt: str | None = Field(None, description="system message of the other side; null: none")

    def steer(self, draft: Draft) -> None:
        dropped = self.negative_prompt is None
        draft.rebase(self.gamma, field="gamma")
        draft.add(
            BASE,
            1.0 - self.gamma,
            view=PromptView(system=self.negative_prompt, drop_system=dropped),
            field="negative_prompt",
        )
