"""What all objects of `decoding` share: how they become what goes over the wire."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An object of a request; a field that is None is left to the server."""

    def to_dict(self) -> dict[str, Any]:
        """As it goes over the wire, without the fields that were not set."""
        values = ((each.name, getattr(self, each.name)) for each in fields(self))
        return {name: _wire(value) for name, value in values if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule(Part):
    """How a search finds the choices among its answers: the `select` of a strategy."""

    name: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """As it goes over the wire."""
        return {"rule": self.name, **Part.to_dict(self)}


def _wire(value: Any) -> Any:
    if isinstance(value, Part):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _wire(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_wire(each) for each in value]
    return value
