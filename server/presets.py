"""Presets: decoding and sampling under a name of the operator's, which clients choose as a model id."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from trimtab.engine.sampling import SamplingParams

if TYPE_CHECKING:
    from trimtab.requests import GenerationRequest


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

    def apply(self, request: "GenerationRequest", given: frozenset[str], most: int | None) -> "GenerationRequest":
        """The request with what it leaves out filled in: sampling field by field, decoding key by key.

        `given` are the fields that the client set: `max_tokens` may also be OpenAI's default, or `most`, the caller's
        limit. A request that names another strategy has said all about decoding.
        """
        own = {name: getattr(request.sampling, name) for name in request.sampling.model_fields_set}
        longest = self.sampling.get("max_tokens")
        if longest is not None and not given & {"max_tokens", "max_completion_tokens"}:
            own["max_tokens"] = longest if most is None else min(longest, most)
        asked = dict(request.decoding or {})
        strategy = self.decoding.get("strategy", "sample")
        same = asked.get("strategy", strategy) == strategy
        return replace(
            request,
            sampling=SamplingParams.model_validate(self.sampling | own),
            decoding={**self.decoding, **asked} if same else asked,
        )
