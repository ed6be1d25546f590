"""Names for people who mistyped one."""

from collections.abc import Iterable

from trimtab.decoders.invalid import nearest


def hint(name: str, valid: Iterable[str]) -> str:
    """The second half of an error message: the nearest valid name, or all of them."""
    names = sorted(valid)
    close = nearest(name, names)
    return f"did you mean {close!r}?" if close is not None else f"valid are {', '.join(names)}"
