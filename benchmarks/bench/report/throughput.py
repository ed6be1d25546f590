"""Throughput as requests come together."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter

from trimtab.bench.records import Level, Row
from trimtab.bench.report import canvas
from trimtab.bench.report.canvas import RADIUS, SMALL, SOFT
from trimtab.bench.report.labels import spread
from trimtab.bench.report.picture import Plot, colour_of, keys
from trimtab.bench.report.view import View

NAMES_FROM = 26.0  # printer's points from the last marks to the column of names
STYLES: dict[Level, Any] = {"base": "-", "token": "-", "answer": (0, (5, 1.5)), "prompt": (0, (1.2, 1.2))}


def throughput(view: View) -> Plot:
    name, title = "throughput", "Throughput versus concurrency"
    reading = (
        "Tokens that reach clients, by all requests together. A line that rises as fast as the number of requests has "
        "room; one that is flat has filled the machine."
    )
    settings: dict[str, dict[int, Row]] = {}
    for row in view.rows:
        if row.error is None and row.tokens_per_second:
            settings.setdefault(row.setting, {})[row.concurrency] = row
    several = {setting: rows for setting, rows in settings.items() if len(rows) > 1}
    if not several:
        return Plot(name, title, reading, None, "no setting was measured at more than one concurrency")
    axes = canvas.axes("requests at once", "delivered tokens per second")
    _scale(axes, several)
    ends: list[tuple[float, float]] = []
    for rows in several.values():
        path = [(float(count), rows[count].tokens_per_second or 0.0) for count in sorted(rows)]
        last = rows[max(rows)]
        look: dict[str, Any] = {"color": colour_of(last), "linestyle": STYLES[last.level]}
        axes.plot(*zip(*path, strict=True), linewidth=1.0, zorder=2, **look)
        for x, y in path:
            canvas.mark(axes, x, y, last.level)
        ends.append(path[-1])
    _name_ends(axes, ends, list(several))
    canvas.legend(axes, keys(row.level for rows in several.values() for row in rows.values()))
    return Plot(name, title, reading, canvas.save(axes, title))


def _scale(axes: Axes, several: dict[str, dict[int, Row]]) -> None:
    """Both axes, with room on the right for the names."""
    counts = sorted({count for rows in several.values() for count in rows})
    rates = [row.tokens_per_second or 0.0 for rows in several.values() for row in rows.values()]
    canvas.logarithmic(axes, rates, "y")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(counts))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: canvas.plain(value)))
    canvas.limits(axes, counts, rates)
    names = max(canvas.extent(axes, name)[0] for name in several) + NAMES_FROM + 4
    share = max(0.3, 0.95 - names / axes.get_window_extent().width)  # of the width, for the lines
    whole = (counts[-1] / counts[0]) ** (1 / share)
    axes.set_xlim(counts[0] / whole**0.05, counts[0] * whole**0.95)
    axes.spines["bottom"].set_bounds(counts[0], counts[-1])


def _name_ends(axes: Axes, ends: Sequence[tuple[float, float]], names: Sequence[str]) -> None:
    """Names in a column right of the lines' ends, each joined to its own."""
    spots = [canvas.to_points(axes, *end) for end in ends]
    frame = axes.get_window_extent()
    heights = spread([y for _, y in spots], SMALL + 2.2, frame.y0 + 3, frame.y1 - 3)
    column = max(x for x, _ in spots) + NAMES_FROM
    back = axes.transData.inverted()
    for (x, y), height, name in zip(spots, heights, names, strict=True):
        path = back.transform([(x + RADIUS + 2, y), (column - 10, height), (column - 3, height)])
        axes.plot(path[:, 0], path[:, 1], color=SOFT, linewidth=0.5, zorder=1.5, scalex=False, scaley=False)
        to = back.transform((column, height))
        axes.text(to[0], to[1], name, fontsize=SMALL, ha="left", va="center_baseline")
