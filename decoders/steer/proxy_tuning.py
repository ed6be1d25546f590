"""Proxy-tuning: the difference of a small tuned and untuned model (Liu et al. 2024, arXiv 2401.08565)."""

from pydantic import Field

from trimtab.decoders.params import ReaderName, Weight
from trimtab.decoders.registry import strategy
from trimtab.decoders.steer.base import Steer
from trimtab.decoders.steer.draft import Draft


@strategy("proxy_tuning", paper="Liu et al. 2024, arXiv 2401.08565", cost="1 answer of each model", needs=("lm",))
class ProxyTuning(Steer):
    """`z_base + alpha * (z_expert - z_antiexpert)`: what tuning taught a small model, given to the base."""

    expert: ReaderName = Field(description="name of the tuned language model")
    antiexpert: ReaderName = Field(description="name of the same model before tuning")
    alpha: Weight = Field(1.0, description="weight of the difference")

    def steer(self, draft: Draft) -> None:
        draft.add(self.expert, self.alpha, field="expert")
        draft.add(self.antiexpert, -self.alpha, field="antiexpert")
