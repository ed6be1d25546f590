"""Moments as whole microseconds since 1970, which is how the file holds them."""

from datetime import UTC, datetime, timedelta

_BEGAN = datetime(1970, 1, 1, tzinfo=UTC)
_TICK = timedelta(microseconds=1)


def ticks(moment: datetime) -> int:
    """Microseconds since 1970; the moment must carry a timezone."""
    return (moment - _BEGAN) // _TICK


def when(ticks: int) -> datetime:
    """The moment in UTC."""
    return _BEGAN + ticks * _TICK
