"""Reading what a server answered: every field is checked, and what is wrong is told by where it stands."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trimtab.engine.errors import RemoteError

LOWEST = -9999.0
"""what servers write for minus infinity, which JSON cannot"""
_ROUNDED = 1e-2
"""nats by which rounding may lift a log-probability above zero"""


class At:
    """A value of an answer and the path to it; every method that reads raises RemoteError where it does not fit."""

    __slots__ = ("path", "value")

    def __init__(self, value: Any, path: str = "") -> None:
        self.value = value
        self.path = path

    def wrong(self, wanted: str) -> RemoteError:
        """The error for a value that is not what is wanted; the value itself may be a secret and is not told."""
        where = self.path or "the answer"
        return RemoteError(f"the remote server answered something else than {wanted} at {where}")

    @property
    def missing(self) -> bool:
        """Whether the value is absent or null."""
        return self.value is None

    def __getitem__(self, key: str) -> "At":
        """A field, null where the object has none."""
        return At(self.object().get(key), f"{self.path}.{key}" if self.path else key)

    def object(self) -> Mapping[str, Any]:
        """An object."""
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        return self.value

    def list(self, length: int | None = None) -> Sequence[Any]:
        """A list, of `length` items if that is given."""
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        if length is not None and len(self.value) != length:
            raise self.wrong(f"a list of {length} items")
        return self.value

    def each(self, length: int | None = None) -> Iterator["At"]:
        """The items of a list."""
        for index, item in enumerate(self.list(length)):
            yield At(item, f"{self.path}[{index}]")

    def text(self) -> str:
        """A string."""
        if not isinstance(self.value, str):
            raise self.wrong("a string")
        return self.value

    def integer(self, low: int, high: int) -> int:
        """A whole number from `low` to below `high`."""
        if type(self.value) is not int or not low <= self.value < high:
            raise self.wrong(f"a whole number from {low} to {high - 1}")
        return self.value

    def ids(self, size: int, most: int | None = None) -> Sequence[int]:
        """Token ids below `size`, at most so many."""
        found = self.list()
        for item in found:
            if type(item) is not int or not 0 <= item < size:
                raise self.wrong(f"token ids below {size}, the size of the local vocabulary")
        if most is not None and len(found) > most:
            raise self.wrong(f"at most {most} token ids")
        return found

    def logprob(self) -> float:
        """A log-probability; minus infinity where the server writes -9999 for it."""
        value = self.value
        if type(value) not in (int, float) or not math.isfinite(value) or value > _ROUNDED:
            raise self.wrong("a log-probability")
        return -math.inf if value <= LOWEST else min(float(value), 0.0)
