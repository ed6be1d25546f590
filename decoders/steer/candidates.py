"""Which tokens may be drawn, by the base's own distribution: what values are read of, and a filter before mixing."""

from typing import Self

from pydantic import Field, model_validator

from trimtab.decoders.params import Share
from trimtab.decoders.registry import strategy
from trimtab.decoders.steer.base import Steer
from trimtab.decoders.steer.draft import Draft
from trimtab.engine.sampling import MAX_COUNT


@strategy("candidates", cost="1 answer")
class Candidates(Steer):
    """Tokens in the base's top k, in its nucleus and with `p >= alpha * max p`; others cannot be drawn."""

    top_k: int = Field(0, ge=0, le=MAX_COUNT, description="likeliest tokens; 0: off")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="mass of the nucleus")
    alpha: Share = Field(0.0, description="least probability, relative to the likeliest token")
    keep_others: bool = Field(False, description="others keep the base's score and only get no value")

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.top_k == 0 and self.top_p == 1.0 and self.alpha == 0.0:
            raise ValueError("no condition: set top_k, top_p or alpha")
        return self

    def steer(self, draft: Draft) -> None:
        draft.candidates(
            top_k=self.top_k, top_p=self.top_p, alpha=self.alpha, keep_others=self.keep_others, field="top_k"
        )
