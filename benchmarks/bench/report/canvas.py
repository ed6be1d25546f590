"""A figure, its colours and marks, and how it becomes bytes: matplotlib's objects without pyplot's global state."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from math import hypot
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from trimtab.bench.records import Level
from trimtab.bench.report.labels import Box, Line, place
from trimtab.bench.report.numbers import fixed

# The web page gives these another value in a dark theme, by their hexadecimal text: keep them distinct.
INK: Final = "#1c1c1e"
SOFT: Final = "#6e6e73"
GRID: Final = "#e4e4e8"
PAPER: Final = "#ffffff"
# Okabe and Ito's palette, which people with any kind of colour vision tell apart.
COLOURS: Final[dict[Level, str]] = {"base": INK, "token": "#0072b2", "answer": "#d55e00", "prompt": "#009e73"}
MARKS: Final[dict[Level, str]] = {"base": "D", "token": "o", "answer": "s", "prompt": "^"}
PALETTE: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

SIZE: Final = (7.2, 4.7)  # inches: a page's text width
SMALL, NORMAL = 7.0, 8.5  # points
DASHED: Final = (0.0, (4.0, 2.5))
RADIUS: Final = 2.9  # points, of a mark

STYLE: Final[Any] = {  # matplotlib types each key apart
    "svg.hashsalt": "trimtab",
    "svg.fonttype": "path",  # looks alike everywhere, and labels keep the size that they were placed by
    "text.parse_math": False,  # names come from people and may hold a dollar sign
    "font.family": ["DejaVu Sans"],  # comes with matplotlib
    "font.size": NORMAL,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "xtick.minor.visible": False,
    "ytick.minor.visible": False,
    "legend.frameon": False,
    "legend.fontsize": 7.8,
    "legend.handlelength": 1.7,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.2,
    "text.color": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "path.simplify": False,
}


@dataclass(frozen=True)
class Drawing:
    """A figure as bytes."""

    svg: bytes
    png: bytes


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's own defaults with STYLE on top, whatever the user's configuration says; undone at the end."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def axes(xlabel: str, ylabel: str, size: tuple[float, float] = SIZE) -> Axes:
    """The axes of a new figure whose unit is the printer's point."""
    figure = Figure(figsize=size, dpi=72)
    FigureCanvasAgg(figure)
    found = figure.add_axes((0.09, 0.11, 0.895, 0.815))
    found.set_xlabel(xlabel)
    found.set_ylabel(ylabel)
    found.yaxis.set_label_coords(-0.075, 0.5)  # alike in all plots, so that their axes line up on a page
    return found


def save(drawn: Axes, title: str) -> Drawing:
    figure = drawn.get_figure(root=True)
    assert figure is not None
    svg, png = BytesIO(), BytesIO()
    # Neither a date nor a version, so that the bytes depend on the rows alone.
    about = {"Title": title, "Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(svg, format="svg", metadata=about)
    figure.savefig(png, format="png", dpi=2 * 96, metadata={"Software": None})
    return Drawing(svg.getvalue(), png.getvalue())


def logarithmic(drawn: Axes, values: Sequence[float], axis: str) -> None:
    """A logarithmic axis with plain numbers, if the values span more than a factor of 4."""
    low, high = min(values), max(values)
    if low <= 0 or high <= 4 * low:
        return
    (drawn.set_xscale if axis == "x" else drawn.set_yscale)("log")
    steps = (1, 1.5, 2, 3, 5, 7) if high < 15 * low else (1, 2, 5) if high < 300 * low else (1,)
    ticks = [k * 10.0**e for e in range(-4, 9) for k in steps]
    edges = low / 1.3, high * 1.3
    each = drawn.xaxis if axis == "x" else drawn.yaxis
    each.set_major_locator(FixedLocator([tick for tick in ticks if edges[0] <= tick <= edges[1]]))
    each.set_minor_locator(NullLocator())
    each.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))


def plain(value: float) -> str:
    """A tick: `0.5`, `20`, `2,000`."""
    return fixed(value, 0) if value >= 1 else f"{value:g}"


def mark(drawn: Axes, x: float, y: float, level: Level, *, hollow: bool = False) -> None:
    """The mark of a setting."""
    drawn.plot(
        [x],
        [y],
        marker=MARKS[level],
        markersize=2 * RADIUS * (0.92 if level in ("answer", "base") else 1.05),
        markerfacecolor=PAPER if hollow else COLOURS[level],
        markeredgecolor=COLOURS[level],
        markeredgewidth=1.0,
        linestyle="none",
        zorder=4,
        clip_on=False,
    )


def key(label: str, level: Level, *, hollow: bool = False) -> Line2D:
    """A mark for the legend."""
    face = PAPER if hollow else COLOURS[level]
    edge = COLOURS[level]
    look: dict[str, Any] = {"marker": MARKS[level], "markersize": 5, "markerfacecolor": face, "markeredgecolor": edge}
    return Line2D([], [], linestyle="none", label=label, **look)


def legend(drawn: Axes, handles: Sequence[Line2D]) -> None:
    """One row above the plot; none where it would not fit, as points have names of their own."""
    found = drawn.legend(
        handles=list(handles), loc="lower left", bbox_to_anchor=(-0.01, 1.005), ncols=len(handles), borderaxespad=0.0
    )
    if found.get_window_extent().x1 > drawn.get_window_extent().x1 + 4:
        found.remove()


def label(drawn: Axes, points: Sequence[tuple[float, float]], names: Sequence[str], lines: Sequence[Line]) -> None:
    """Write the names beside their points (in data units), with a thin line to those that stand far off. `lines` (in
    printer's points, see `pieces`) are kept free."""
    spots = [to_points(drawn, *point) for point in points]
    frame = drawn.get_window_extent()
    boxes = place(
        spots,
        [extent(drawn, name) for name in names],
        radius=RADIUS + 0.8,
        lines=lines,
        frame=Box(frame.x0 + 2, frame.y0 + 2, frame.x1 + 2, frame.y1 + 1),
    )
    back = drawn.transData.inverted()
    for (x, y), box, name in zip(spots, boxes, names, strict=True):
        to = box.nearest(x, y)
        distance = hypot(to[0] - x, to[1] - y)
        if distance > RADIUS + 7:
            ends = back.transform(
                [
                    (x + (to[0] - x) * share, y + (to[1] - y) * share)
                    for share in ((RADIUS + 1) / distance, 1 - 1 / distance)
                ]
            )
            drawn.plot(ends[:, 0], ends[:, 1], color=SOFT, linewidth=0.5, zorder=2.5, scalex=False, scaley=False)
        left, middle = back.transform((box.left, (box.bottom + box.top) / 2))
        back_of_text = {"boxstyle": "square,pad=0.06", "facecolor": PAPER, "edgecolor": "none", "alpha": 0.7}
        drawn.text(left, middle, name, fontsize=SMALL, ha="left", va="center_baseline", zorder=3, bbox=back_of_text)


def extent(drawn: Axes, name: str) -> tuple[float, float]:
    """Width and height of a label, printer's points."""
    text = drawn.text(0, 0, name, fontsize=SMALL)
    box = text.get_window_extent()
    text.remove()
    return box.width + 1.0, max(SMALL, box.height)


def to_points(drawn: Axes, x: float, y: float) -> tuple[float, float]:
    spot = drawn.transData.transform((x, y))
    return float(spot[0]), float(spot[1])


def pieces(drawn: Axes, path: Sequence[tuple[float, float]]) -> list[Line]:
    """A drawn line through these points (in data units) as straight pieces in printer's points."""
    spots = [to_points(drawn, *point) for point in path]
    return [Line(*a, *b) for a, b in pairwise(spots)]


def limits(drawn: Axes, xs: Sequence[float], ys: Sequence[float]) -> None:
    """Room of 6 % around the values, in the axes' own scales."""
    both: tuple[tuple[Sequence[float], str, Callable[..., Any]], ...] = (
        (xs, drawn.get_xscale(), drawn.set_xlim),
        (ys, drawn.get_yscale(), drawn.set_ylim),
    )
    for values, scale, fix in both:
        low, high = min(values), max(values)
        if scale == "log":
            room = (high / low) ** 0.06
            fix(low / room, high * room)
        else:
            room = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
            fix(low - room, high + room)
