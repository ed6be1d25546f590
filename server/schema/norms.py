"""Requests and responses of /admin/norms."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from trimtab.decoders.library import Asked, Norm, NormPatch, StoredNorm
from trimtab.decoders.library.norm import MAX_TEXT
from trimtab.decoders.params import Share
from trimtab.server.schema.base import Wire


class _Dated(Wire):
    model_config = ConfigDict(strict=False)


Short = Annotated[str, Field(max_length=128)]


class NewNorm(_Dated, Norm):
    """A norm with its id, as it is to be."""


class NormChange(_Dated, NormPatch):
    """The fields of a norm that are to change; null takes a scope or a date away."""


class NormQuery(BaseModel):
    """Query parameters of GET /admin/norms; of scopes that are given, only norms that have them are listed."""

    model_config = ConfigDict(extra="forbid")

    tags: list[Short] = Field(default_factory=list, max_length=64, description="any of which a norm has")
    tenant: Annotated[str, Field(max_length=256)] | None = None
    locale: Short | None = None
    topic: Short | None = None
    q: str | None = Field(None, max_length=MAX_TEXT, description="words to find in texts")
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

    query: str = Field(max_length=1_000_000)
    k: int = Field(default=5, ge=0, le=100)
    tags: list[Short] = Field(
        default_factory=list, max_length=64, description="any of which a norm must have; none: no matter"
    )
    ids: list[Short] = Field(
        default_factory=list, max_length=64, description="norms that come first, whatever the query"
    )
    tenant: str | None = Field(default=None, max_length=256, description="name of the key that asks")
    locale: Short | None = None
    topic: Short | None = None
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
