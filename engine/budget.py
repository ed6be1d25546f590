"""What a request may spend at most. When something runs out, the program is ended with the best answer so far."""

from math import inf
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from trimtab.engine.sampling import MAX_COUNT


class Budget(BaseModel):
    """Limits of one request; all of them are optional. Time and tokens may be passed by two ticks."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    deadline_ms: int | None = Field(None, ge=1, le=MAX_COUNT, description="milliseconds from arrival to the answer")
    max_model_tokens: int | None = Field(
        None, ge=1, le=MAX_COUNT, description="tokens that all models together process"
    )
    max_rows: int | None = Field(None, ge=1, description="sequences that decode at the same time; more take turns")
    max_kl: float | None = Field(
        None, gt=0.0, allow_inf_nan=False, description="nats: KL from the base at which an answer ends"
    )
    reward_at_least: float | None = Field(
        None, allow_inf_nan=False, description="reward of a finished answer at which the search is over"
    )

    def within(self, most: "Budget") -> Self:
        """The same with no limit above that of `most`; `reward_at_least` is no limit and stays."""
        own = self.model_dump(exclude_none=True)
        bounds = most.model_dump(exclude_none=True, exclude={"reward_at_least"})
        return self.model_copy(update={name: each for name, each in bounds.items() if each < own.get(name, inf)})


class Interrupted(Exception):
    """A program is to end now with the best answer so far; `reason` becomes `stopped_by`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
