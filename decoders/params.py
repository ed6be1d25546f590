"""What every strategy's parameters share."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from trimtab.decoders.invalid import meant
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.sampling import MAX_COUNT

if TYPE_CHECKING:  # it needs reward expressions, whose weights are defined here
    from trimtab.decoders.preference import Resolved

Weight = Annotated[float, Field(ge=-1e4, le=1e4, allow_inf_nan=False)]
"""of a term in a sum of logits; float32 holds the product with any logit"""
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]

Ability = Literal[
    "lm", "reader", "scores_candidates", "scores_answers", "value_head", "vector", "preference", "embedding",
    "attributes",
]  # fmt: skip
"""what admission asks of a guide: `reader` is a language model of the base's vocabulary, `value_head` one of one value,
`attributes` an adapter with a block for each of its attributes; the others are as /v1/guides tells them"""


@dataclass(frozen=True, slots=True)
class GuideName:
    """Marks a text as a guide's name: `x-guide` in JSON Schemas says what the guide has to be able to do."""

    ability: Ability | tuple[Ability, ...]
    """one, or several of which one is enough"""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        several = isinstance(self.ability, tuple)
        return {**handler(core), "x-guide": list(self.ability) if several else self.ability}


LanguageName = Annotated[str, GuideName("lm")]
ReaderName = Annotated[str, GuideName("reader")]
ScorerName = Annotated[str, GuideName("scores_candidates")]
JudgeName = Annotated[str, GuideName(("scores_answers", "value_head"))]
HeadName = Annotated[str, GuideName("value_head")]
VectorName = Annotated[str, GuideName("vector")]
WeigherName = Annotated[str, GuideName("preference")]
EmbedderName = Annotated[str, GuideName("embedding")]
AdapterName = Annotated[str, GuideName("attributes")]
"""of a guide; language models and readers may also be `base`, except where two models take turns"""


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
