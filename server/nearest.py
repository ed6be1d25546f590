"""Names for people who mistyped one."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name closest to `name`, or None when nothing is close."""
    found = get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return found[0] if found else None


def hint(name: str, valid: Iterable[str]) -> str:
    """The second half of an error message: the nearest valid name, or all of them."""
    names = sorted(valid)
    close = nearest(name, names)
    return f"did you mean {close!r}?" if close is not None else f"valid are {', '.join(names)}"
