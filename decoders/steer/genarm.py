"""GenARM: autoregressive reward models beside the base (Xu et al. 2024, arXiv 2410.08193)."""

from typing import Any, Self

from pydantic import Field, model_validator

from trimtab.decoders.params import ReaderName, Weight
from trimtab.decoders.preference import PATH, Resolved
from trimtab.decoders.registry import strategy
from trimtab.decoders.steer.base import Steer
from trimtab.decoders.steer.draft import Draft
from trimtab.engine.errors import InvalidRequest


@strategy("genarm", paper="Xu et al. 2024, arXiv 2410.08193", cost="1 answer of the base and each arm", needs=("lm",))
class GenArm(Steer):
    """`lp_base + sum of alpha_i * lp_arm_i`; several arms are several objectives."""

    arm: ReaderName | None = Field(None, description="name of the one autoregressive reward model")
    alpha: Weight = Field(1.0, description="weight of the arm; scales all of `arms`")
    arms: dict[ReaderName, Weight] | None = Field(None, min_length=1, description="several, each with its weight")

    @classmethod
    def preferred(cls, given: dict[str, Any], preference: Resolved) -> dict[str, Any]:
        """The arms of the attributes that have one; the others are left to other parts."""
        if given.get("arm") is not None or given.get("arms") is not None:
            return given
        if not preference.arms:
            raise InvalidRequest(
                "genarm follows attributes that have an arm, and the preference weighs none: name `arm` or `arms` in "
                "the strategy, weigh such an attribute, or configure an arm for one",
                param=PATH,
            )
        return {**given, "arms": preference.arms}

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.arm is None) == (self.arms is None):
            raise ValueError("give either arm, one guide, or arms, guides with their weights")
        return self

    def steer(self, draft: Draft) -> None:
        if self.arm is not None:
            draft.add(self.arm, self.alpha, field="arm")
        for arm, weight in (self.arms or {}).items():
            draft.add(arm, self.alpha * weight, field="arms")
