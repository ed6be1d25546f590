"""Requests and responses of /admin/norms."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from trimtab.decoders.library import Asked, Norm, NormPatch, StoredNorm
from trimtab.decoders.params import Share
from trimtab.server.schema.base import Wire


class _Dated(Wire):
    model_config = ConfigDict(strict=False)

    @field_validator("valid_from", "valid_until", mode="before", check_fields=False)
    @classmethod
    def _written(cls, given: Any) -> Any:
        if given is not None and not isinstance(given, str):
            raise ValueError('a date is a text with a time zone, as "2026-01-31T00:00:00Z"')
        return given


class NewNorm(_Dated, Norm):
    """A norm with its id, as it is to be."""


class NormChange(_Dated, NormPatch):
    """The fields of a norm that are to change; null takes a scope or a date away."""


class NormQuery(BaseModel):
    """Query parameters of GET /admin/norms; of scopes that are given, only norms that have them are listed."""

    model_config = ConfigDict(extra="forbid")

    tags: list[str] = Field(default_factory=list, description="any of which a norm has")
    tenant: str | None = None
    locale: str | None = None
    topic: str | None = None
    q: str | None = Field(None, description="words to find in texts")
    after: str | None = Field(None, description="`last_id` of the page before")
    limit: int = Field(100, ge=1, le=1000, description="norms of one page")


class NormList(BaseModel):
    """One page of norms, in the order of their ids."""

    object: Literal["list"] = "list"
    data: list[StoredNorm]
    has_more: bool
    last_id: str | None
    """what the next page comes after; null on an empty page"""


class NormSearch(Wire):
    """A query as a request with the part `norms` would make it."""

    query: str
    k: int = Field(default=5, ge=0, le=100)
    tags: list[str] = Field(default_factory=list, description="any of which a norm must have; none: no matter")
    ids: list[str] = Field(default_factory=list, description="norms that come first, whatever the query")
    tenant: str | None = Field(default=None, description="name of the key that asks")
    locale: str | None = None
    topic: str | None = None
    embedding: str | None = Field(default=None, description="guide that embeds the query; null: words alone")
    share: Share = Field(default=0.5, description="what embeddings count in the order, beside words")
    model: str | None = Field(default=None, description="model whose guide it is; null: the first")

    def asked(self) -> Asked:
        """As the store takes it."""
        return Asked(
            query=self.query,
            k=self.k,
            tags=tuple(self.tags),
            locale=self.locale,
            tenant=self.tenant,
            topic=self.topic,
            ids=tuple(self.ids),
            share=self.share,
        )


class FoundNorm(BaseModel):
    """A norm that a query gets."""

    norm: StoredNorm
    score: float | None
    """the greater the nearer; null for norms that `ids` names"""


class FoundNorms(BaseModel):
    """Norms that a query gets: those of `ids`, then the best first."""

    object: Literal["list"] = "list"
    data: list[FoundNorm]
    missing: list[str]
    """those of `ids` that are not there, not in scope, or not valid now"""


class NormEmbedding(Wire):
    """Which guide is to make the vectors of norms."""

    embedding: str = Field(description="guide of the role `embedding`")
    model: str | None = Field(default=None, description="model whose guide it is; null: the first")


class EmbeddedNorms(BaseModel):
    """What an embedding of norms has done."""

    embedded: int
    """norms that had no vector by the guide, and have one now"""


class Imported(BaseModel):
    """What an import has done."""

    created: int
    replaced: int
    unchanged: int
    """norms that say what was there already"""
