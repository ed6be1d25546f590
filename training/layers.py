"""The decoder layers that an option names."""

from trimtab.training.errors import TrainingError


def span(layers: str, count: int, *, first: int = 0) -> list[int]:
    """Return the layers of `8-22`, `22` or `all`, of a model with `count` of them; TrainingError for others.

    No layer before `first` may be meant.
    """
    start, _, last = (f"{first}-{count - 1}" if layers == "all" else layers).partition("-")
    end = last or start
    if not start.isdecimal() or not end.isdecimal() or not first <= int(start) <= int(end) < count:
        raise TrainingError(f"layers {layers!r}: write them as {first}-{count - 1}")
    return list(range(int(start), int(end) + 1))
