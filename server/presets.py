"""Presets: decoding and sampling under a name of the operator's, which clients choose as a model id."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from trimtab.engine.sampling import SamplingParams

if TYPE_CHECKING:
    from trimtab.llm import GenerationRequest


class Preset(BaseModel):
    """What requests to `MODEL:PRESET` get where they do not say otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str = ""
    decoding: dict[str, Any] = Field(default_factory=dict, description="a `decoding` object")
    sampling: dict[str, Any] = Field(default_factory=dict, description="sampling fields")

    @field_validator("sampling")
    @classmethod
    def _known(cls, sampling: dict[str, Any]) -> dict[str, Any]:
        SamplingParams.model_validate(sampling)
        return sampling

    def apply(self, request: "GenerationRequest") -> "GenerationRequest":
        """The request with what it leaves out filled in: sampling field by field, decoding key by key.

        A request that names another strategy has said all about decoding.
        """
        own = {name: getattr(request.sampling, name) for name in request.sampling.model_fields_set}
        asked = dict(request.decoding or {})
        strategy = self.decoding.get("strategy", "sample")
        same = asked.get("strategy", strategy) == strategy
        return replace(
            request,
            sampling=SamplingParams.model_validate(self.sampling | own),
            decoding={**self.decoding, **asked} if same else asked,
        )
