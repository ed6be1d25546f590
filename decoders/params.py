"""What every strategy's parameters share."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from trimtab.decoders.invalid import meant
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.sampling import MAX_COUNT

if TYPE_CHECKING:  # it needs reward expressions, whose weights are defined here
    from trimtab.decoders.preference import Resolved

Weight = Annotated[float, Field(ge=-1e4, le=1e4, allow_inf_nan=False)]
"""of a term in a sum of logits; float32 holds the product with any logit"""
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]


class Params(BaseModel):
    """Parameters of one strategy, flat, under the names of its paper; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    temperature: ClassVar[float | None] = None
    """of the paper's decoding, for requests that set none; None: the server's default"""

    rows_field: ClassVar[str] = "n"
    """the parameter to lower where a request decodes too many answers at once"""

    preferable: ClassVar[frozenset[str]] = frozenset()
    """required parameters that a request may leave to its `preference`"""

    @classmethod
    def preferred(cls, given: dict[str, Any], preference: "Resolved") -> dict[str, Any]:
        """Return `given`, with what it leaves out and the request's preference can say; as it is if that is nothing.

        Raises InvalidRequest for a preference that says it in a way that the strategy cannot follow.
        """
        return given

    def check(self, *, choices: int, rewards: Collection[str]) -> None:
        """Raise InvalidRequest if this server or this request cannot run the strategy."""


def require_reward(name: str, rewards: Collection[str], *, path: str) -> None:
    """Raise InvalidRequest unless a reward guide of this name is configured; `path` holds it in the request."""
    if name not in rewards:
        known = ", ".join(sorted(rewards)) or "none (add one under `guides` in the configuration)"
        hint = meant(name, rewards) or ";"
        raise InvalidRequest(f"no reward guide is named {name!r}{hint} configured: {known}", param=path)
