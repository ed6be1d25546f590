"""Requests and responses of /v1/profiles."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trimtab.decoders.attributes import MAX_ATTRIBUTES, Level
from trimtab.decoders.preference import Text
from trimtab.server.schema.base import Wire, exactly_one


class NewProfile(Wire):
    """A preference to store: exactly one of its fields."""

    model_config = ConfigDict(
        json_schema_extra=exactly_one(
            {"weights": {"type": "object"}}, {"text": {"type": "string"}}, {"infer": {"type": "string"}}
        )
    )

    weights: dict[str, Level] | None = Field(
        default=None, min_length=1, max_length=MAX_ATTRIBUTES, description="weight of each attribute"
    )
    text: Text | None = Field(default=None, description="in words")
    infer: str | None = Field(default=None, description="preference guide that weighs its rewards by the prompt")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.given) != 1:
            raise ValueError("give exactly one of weights, text and infer")
        return self


class Profile(BaseModel):
    """A stored preference: one of weights, text and infer; the others are null."""

    id: str
    weights: dict[str, float] | None = None
    text: str | None = None
    infer: str | None = None


class ProfileList(BaseModel):
    """The caller's profiles, in the order of their ids."""

    object: Literal["list"] = "list"
    data: list[Profile]
