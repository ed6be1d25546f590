"""How a request's `decoding` is told what is wrong with it: by path, and with the name that may have been meant."""

from collections.abc import Iterable
from difflib import get_close_matches

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


def invalid(error: ValidationError, path: str) -> InvalidRequest:
    """The first thing that is wrong with the object at `path`."""
    first = error.errors()[0]
    where = ".".join(map(str, (path, *first["loc"])))
    return InvalidRequest(f"{where}: {first['msg'].removeprefix('Value error, ')}", param=where)
