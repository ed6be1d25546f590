"""How the report writes numbers: the one place where they are rounded."""

from collections.abc import Iterable
from math import floor, log10
from statistics import median

MISSING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
MOST_DECIMALS = 5


def decimals(halves: Iterable[float]) -> int:
    """Decimals that show two digits of the middle of these half widths of intervals; 2 without any."""
    wide = [half for half in halves if half > 0]
    if not wide:
        return 2
    return min(MOST_DECIMALS, max(0, 1 - floor(log10(median(wide)))))


def fixed(value: float | None, places: int) -> str:
    """With so many decimals: `1,234.50`."""
    if value is None:
        return MISSING
    shown = f"{round(value, places) + 0.0:,.{places}f}"  # adding 0 turns -0.0 into 0.0
    return shown.replace("-", MINUS)


def signed(value: float | None, places: int) -> str:
    """The same with its sign, but for a zero: `+0.25`."""
    shown = fixed(value, places)
    return f"+{shown}" if value is not None and round(value, places) > 0 else shown


def between(low: float, high: float, places: int) -> str:
    """An interval of differences: `[-0.01, +0.25]`."""
    return f"[{signed(low, places)}, {signed(high, places)}]"


def percent(share: float | None) -> str:
    """A share of 1 as a percentage: `62 %`."""
    return MISSING if share is None else f"{fixed(100 * share, 0)} %"


def digits(value: float | None, significant: int = 3) -> str:
    """With so many significant digits and never an exponent: `0.0123`, `1.20`, `12.3`, `1,240`."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    places = significant - 1 - floor(log10(abs(value)))
    places = significant - 1 - floor(log10(abs(round(value, places))))  # 9.996 becomes 10.0, not 10.00
    return fixed(round(value, places), max(0, places))


def counted(number: int, noun: str) -> str:
    """`1 prompt`, `40 prompts`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def times(value: float | None, over: float | None) -> str:
    """A ratio: `2.04x`; missing where there is nothing to divide by."""
    return MISSING if value is None or not over else f"{digits(value / over)}\N{MULTIPLICATION SIGN}"
