"""A norm: one rule that may be put before a query, and where and when it holds."""

import unicodedata
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

MAX_TEXT = 20_000
MAX_TAGS = 32
MAX_NAME = 64
LAYOUT = "\n\t"
"""control characters that a text may hold"""


def _plain(text: str) -> str:
    """Refuse control characters, which no rule needs and which could hide what it says."""
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in text if char not in LAYOUT):
        raise ValueError("control characters are not allowed, but for line breaks (\\n) and tabs")
    if not text.strip():
        raise ValueError("it holds nothing but white space")
    return text


def _one_line(name: str) -> str:
    if any(char in LAYOUT for char in name) or name != name.strip():
        raise ValueError("line breaks, tabs and outer spaces are not allowed")
    return name


def _once(tags: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(tags))


def _utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("the date is out of range in UTC") from None


def _written_out(moment: object) -> object:
    """Refuse numbers, and texts of digits alone, which would count as seconds since 1970."""
    if isinstance(moment, datetime) or (isinstance(moment, str) and "T" in moment.upper()):
        return moment
    raise ValueError("a date is written as 2026-12-31T00:00:00Z")


Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")]
"""letters, digits and . _ : -, at most 128"""
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT), AfterValidator(_plain)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME), AfterValidator(_plain), AfterValidator(_one_line)]
Tags = Annotated[tuple[Name, ...], Field(max_length=MAX_TAGS), AfterValidator(_once)]
Tenant = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_plain), AfterValidator(_one_line)]
Locale = Annotated[str, Field(max_length=MAX_NAME, pattern=r"^[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*$")]
Moment = Annotated[AwareDatetime, BeforeValidator(_written_out), AfterValidator(_utc)]


class Norm(BaseModel):
    """One rule; scopes and dates that are null hold for everybody and at any time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Id
    text: Text = Field(description="what is put before a query, as data")
    tags: Tags = Field(default=(), description="what requests may ask for")
    locale: Locale | None = Field(default=None, description="language tag, such as de, which serves de-AT too")
    tenant: Tenant | None = Field(default=None, description="for requests of this key alone")
    topic: Name | None = Field(default=None, description="for requests of this topic alone")
    valid_from: Moment | None = Field(default=None, description="first moment at which it holds")
    valid_until: Moment | None = Field(default=None, description="first moment at which it no longer holds")

    @field_validator("valid_until")
    @classmethod
    def _in_order(cls, until: datetime | None, info: ValidationInfo) -> datetime | None:
        first = info.data.get("valid_from")
        if first is not None and until is not None and first >= until:
            raise ValueError("valid_from must come before valid_until")
        return until


class StoredNorm(Norm):
    """A norm as the store has it."""

    version: int
    """rises by one with every change, and never comes again under the same id"""
    updated: datetime


class NormPatch(BaseModel):
    """Fields of a norm to change; null takes a scope or a date away, and what is left out stays."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: Text = Field(default_factory=str, description="what is put before a query, as data")
    tags: Tags = ()
    locale: Locale | None = None
    tenant: Tenant | None = None
    topic: Name | None = None
    valid_from: Moment | None = None
    valid_until: Moment | None = None

    def changes(self) -> dict[str, Any]:
        """The fields that were given."""
        return {name: getattr(self, name) for name in self.model_fields_set}


class Asked(NamedTuple):
    """What a retrieval asks for."""

    query: str
    k: int = 5
    """norms found by the query at most; those of `ids` come on top"""
    tags: Collection[str] = ()
    """any of which a norm must have; none: no matter"""
    locale: str | None = None
    tenant: str | None = None
    topic: str | None = None
    ids: Collection[str] = ()
    """norms that come first, whatever the query and the tags, where they are in scope and valid"""
    embedding: NDArray[np.float32] | None = None
    """unit vector of the query, which is compared with the vectors that `model` has made of norms"""
    model: str | None = None
    """digest of the model that made `embedding`, as `embed_missing` has it; needed with it"""
    share: float = 0.5
    """of the embedding in the order, from 0 (words alone) to 1 (embedding alone)"""
    now: datetime | None = None
    """when the norms must hold; None: now"""


class Found(NamedTuple):
    """A norm that a retrieval gives; the greater the score, the nearer."""

    norm: StoredNorm
    score: float | None
    """BM25, or the fused score where an embedding was asked; None for norms that `ids` names"""


class Retrieved(NamedTuple):
    """What a retrieval gives."""

    found: tuple[Found, ...]
    """those that `ids` names in that order, then the others, best first"""
    missing: tuple[str, ...]
    """those of `ids` that are not there, not in scope, or not valid now"""
