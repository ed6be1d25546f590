"""What every request model shares: unknown keys are refused by name, and so is what is not supported yet."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from trimtab.server.nearest import hint


class Wire(BaseModel):
    """A strict JSON object of a request.

    `unsupported` maps a key that OpenAI knows and this server does not to the values that ask for nothing and
    are therefore accepted; null always is. Any other value is refused, never ignored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept = {}
        for key, value in data.items():
            if key in cls.model_fields:
                kept[key] = value
            elif key not in cls.unsupported:
                _refuse("unknown_parameter", key, f"unknown key {key!r}; {hint(key, cls.model_fields)}")
            elif value is not None and not any(_same(value, idle) for idle in cls.unsupported[key]):
                _refuse("unsupported_parameter", key, cls.explain(key))
        return kept

    @classmethod
    def explain(cls, key: str) -> str:
        """Why `key` is refused and what to use instead."""
        return f"{key!r} is not supported; leave it out"


def _refuse(kind: str, key: str, message: str) -> None:
    raise PydanticCustomError(kind, "{message}", {"message": message, "param": key})


def _same(value: Any, idle: Any) -> bool:
    return type(value) is type(idle) and bool(value == idle)
