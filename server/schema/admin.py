"""Requests and responses of /admin."""

from typing import Any

from pydantic import BaseModel, Field

from trimtab.engine.guides.config import GuideConfig
from trimtab.server.schema.base import Wire
from trimtab.server.schema.responses import GuideCard, ModelCard


def _untagged(schema: dict[str, Any]) -> None:
    """Drop the discriminator: OpenAPI has none for a union within a union."""
    schema.pop("discriminator", None)


class LoadModel(Wire):
    """Another base model: what would stand under `engine` in the configuration."""

    engine: dict[str, Any] = Field(description="as `engine` in the configuration; `model` names what is loaded")


class LoadGuide(Wire):
    """Another guide: a name, and what would stand under it in `engine.guides`."""

    name: str = Field(min_length=1)
    config: GuideConfig = Field(json_schema_extra=_untagged)
    model: str | None = Field(default=None, description="base model that it serves; absent: the first")


class CallerUse(BaseModel):
    """What one caller uses now."""

    requests: int
    rows: int
    model_tokens: int
    """spent since the server started"""


class State(BaseModel):
    """Response of /admin/state."""

    models: list[ModelCard]
    guides: dict[str, list[GuideCard]]
    """by base model"""
    callers: dict[str, CallerUse]


class Reloaded(BaseModel):
    """Response of /admin/reload."""

    needs_restart: list[str]
    """settings that have changed in the configuration and are not in force"""


class Unloaded(BaseModel):
    """What is served no longer."""

    name: str
