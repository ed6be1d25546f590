"""What every request model shares: unknown keys are refused by name, and so is what is not supported yet."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic.config import JsonDict
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

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
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for key, value in _whole(data).items():
            if key in known:
                kept[key] = value
            elif key not in cls.unsupported:
                _refuse("unknown_parameter", key, f"unknown key {key!r}; {hint(key, known)}")
            elif value is not None and not any(_same(value, idle) for idle in cls.unsupported[key]):
                _refuse("unsupported_parameter", key, cls.explain(key))
        return kept

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The schema with the keys that are known and not supported, and the values of theirs that are accepted."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        for key, idle in cls.unsupported.items():
            schema["properties"][key] = {"enum": [*idle, None], "description": cls.explain(key)}
        return schema

    @property
    def given(self) -> frozenset[str]:
        """The fields that the client set to something."""
        return frozenset(name for name in self.model_fields_set if getattr(self, name) is not None)

    @classmethod
    def explain(cls, key: str) -> str:
        """Why `key` is refused and what to use instead."""
        return f"{key!r} is not supported; leave it out"


def _refuse(kind: str, key: str, message: str) -> None:
    raise PydanticCustomError(kind, "{message}", {"message": message, "param": key})


def _whole(value: Any) -> Any:
    """The value with every number that is whole as an integer: to JSON, 2.0 is one."""
    kind = type(value)
    if kind is float:
        return int(value) if value.is_integer() and abs(value) <= _EXACT else value
    if kind is dict:
        return {key: _whole(each) for key, each in value.items()}
    if kind is list and not _PLAIN.issuperset(map(type, value)):
        return [_whole(each) for each in value]
    return value


_EXACT = 2**53
_PLAIN = frozenset({int, str, bool})


def _same(value: Any, idle: Any) -> bool:
    return type(value) is type(idle) and bool(value == idle)


def exactly_one(*forms: JsonDict) -> JsonDict:
    """What JSON Schema says of a request that comes in exactly one of several forms: fields that are not null."""
    return {"oneOf": [{"required": list(form), "properties": form} for form in forms]}
