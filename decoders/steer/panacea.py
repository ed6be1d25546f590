"""Panacea: an adapter whose blocks the preference scales (Zhong et al. 2024, arXiv 2402.02030)."""

from math import fsum
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator

from trimtab.decoders.params import AdapterName, Weight
from trimtab.decoders.preference import Resolved
from trimtab.decoders.registry import strategy
from trimtab.decoders.steer.base import Steer
from trimtab.decoders.steer.draft import Draft
from trimtab.engine.errors import InvalidRequest

Part = Annotated[float, Field(ge=0.0, le=1e4, allow_inf_nan=False)]


@strategy("panacea", paper="Zhong et al. 2024, arXiv 2402.02030", cost="1 answer", needs=("lm",))
class Panacea(Steer):
    """`W + strength * B diag(1, lambda) A`: the base with an adapter that has a block for each attribute."""

    preferable: ClassVar[frozenset[str]] = frozenset({"preference"})
    guide: AdapterName = Field(description="name of the adapter")
    preference: dict[str, Part] = Field(
        min_length=1, description="lambda: attributes of the adapter with their weights; those left out count 0"
    )
    normalise: bool = Field(True, description="divide the weights by their sum, as the adapter was trained")
    strength: Weight = Field(1.0, description="how much the whole adapter counts; 0: not at all")
    measure_kl: bool = Field(False, description="run the plain model beside, so that reports compare with it")

    @field_validator("preference")
    @classmethod
    def _some_weight(cls, preference: dict[str, float]) -> dict[str, float]:
        if not fsum(preference.values()):
            raise ValueError("all weights are 0: give at least one attribute a weight")
        return preference

    @classmethod
    def preferred(cls, given: dict[str, Any], preference: Resolved) -> dict[str, Any]:
        """The preference's weights, unless they lead away from an attribute: an adapter has no block for that."""
        if given.get("preference") is not None or not preference.weights:
            return given
        for name, weight in preference.weights.items():
            if weight < 0:
                raise InvalidRequest(
                    f"panacea cannot lead away from an attribute, and {name!r} has weight {weight:g}: make it 0, or "
                    "give the strategy a preference of its own",
                    param="decoding.preference",
                )
        return {**given, "preference": dict(preference.weights)}

    def steer(self, draft: Draft) -> None:
        total = fsum(self.preference.values()) if self.normalise else 1.0
        scales = {name: self.strength * weight / total for name, weight in self.preference.items()}
        draft.adapt(self.guide, scales, general=self.strength, field="guide", scales_field="preference")
        if self.measure_kl:
            draft.reference(field="measure_kl")
