"""What a plot of the report is, and what several of them draw alike."""

from collections.abc import Iterable
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from trimtab.bench.records import Level, Row
from trimtab.bench.report import canvas
from trimtab.bench.report.canvas import COLOURS, Drawing
from trimtab.bench.report.labels import Line
from trimtab.bench.report.view import View, drawn

LEVELS: dict[Level, str] = {
    "base": "base",
    "token": "token level",
    "answer": "answer level",
    "prompt": "prompt level",
}


@dataclass(frozen=True)
class Plot:
    """A plot, or why there is none."""

    name: str
    """of its files"""
    title: str
    reading: str
    """what the marks mean and how to read them"""
    drawing: Drawing | None
    missing: str = ""
    """why nothing is drawn"""


def short(view: View, row: Row) -> str:
    """A setting's label: on the curve of best-of-n its n says enough."""
    n = drawn(row)
    return f"n = {n}" if n is not None and view.on_curve(row) else row.setting


def keys(levels: Iterable[Level]) -> list[Line2D]:
    """The legend's marks of these levels."""
    met = set(levels)
    return [canvas.key(name, level) for level, name in LEVELS.items() if level in met]


def bar(axes: Axes, x: float, low: float, high: float, colour: str) -> list[Line]:
    """Draw an interval, and tell what it covers."""
    if high <= low:
        return []
    axes.plot([x, x], [low, high], color=colour, linewidth=0.8, alpha=0.55, zorder=1.8)
    return canvas.pieces(axes, [(x, low), (x, high)])


def colour_of(row: Row) -> str:
    return COLOURS[row.level]
