"""How a request's `decoding` is told what is wrong with it: by path, and with the name that may have been meant."""

from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from trimtab.engine.errors import InvalidRequest

LONGEST_NAME = 200
"""characters of what may be a mistyped name: comparing takes the square of that"""
VIOLATION = "policy_violation"
"""the code of what an operator's rules forbid; the server answers it with 403"""


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name closest to `name`; None when nothing is close, or the name is no name."""
    if len(name) > LONGEST_NAME:
        return None
    found = get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return found[0] if found else None


def meant(name: str, valid: Iterable[str]) -> str:
    """The middle of a message about an unknown name: the nearest valid one, or nothing."""
    close = nearest(name, valid)
    return f": did you mean {close!r}?" if close is not None else ""


def check_keys(given: Mapping[str, Any], valid: Collection[str], path: str, what: str, told: str) -> None:
    """Raise InvalidRequest that names the first key of the object at `path` that is not among the valid ones.

    `what` is what the key would be, and `told` stands before the list of those that there are.
    """
    for key in given:
        if key not in valid:
            raise InvalidRequest(
                f"unknown {what} {key!r}{meant(str(key), valid)}; {told}: {', '.join(valid)}", param=f"{path}.{key}"
            )


def invalid(error: ValidationError, path: str) -> InvalidRequest:
    """The first thing that is wrong with the object at `path`."""
    first = error.errors()[0]
    where = ".".join(map(str, (path, *first["loc"])))
    return InvalidRequest(f"{where}: {first['msg'].removeprefix('Value error, ')}", param=where)
