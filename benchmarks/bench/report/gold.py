"""Gold reward over the reward that steers, as strength grows: over-optimisation turns a line down."""

from itertools import pairwise
from typing import Any

from matplotlib.lines import Line2D

from trimtab.bench.records import BASE, Row
from trimtab.bench.report import canvas
from trimtab.bench.report.canvas import PALETTE
from trimtab.bench.report.labels import Line
from trimtab.bench.report.picture import Plot, bar
from trimtab.bench.report.view import View, families, strength

SHAPES = ("o", "s", "^", "v", "P", "X", "D")
DASHES: tuple[tuple[float, tuple[float, ...] | None], ...] = (
    (0.0, None),
    (0.0, (5, 1.5)),
    (0.0, (1.2, 1.2)),
    (0.0, (5, 1.5, 1.2, 1.5)),
)
ARROW: dict[str, Any] = {
    "arrowstyle": "-|>,head_length=0.5,head_width=0.28",
    "linewidth": 0,
    "shrinkA": 0,
    "shrinkB": 0,
}


def gold(view: View) -> Plot:
    name, title = "gold-proxy", "Gold versus proxy reward"
    reading = (
        "Each line is a family of settings from its weakest strength to its strongest, along the arrows. Up and to the "
        "right is better by both measures; a line that turns down while it goes right is over-optimised: steering "
        "gains the reward and loses what the reward stands for. Bars are 95 % paired intervals of the gold gain."
    )
    lines = families([row for row in view.main if row.reward and row.gold])
    if not lines:
        return Plot(name, title, reading, None, "it needs a family with two strengths that have a gold reward")
    told = view.conditions
    axes = canvas.axes(f"mean reward that steers ({told.reward})", f"mean gold reward ({told.gold})")
    rows = [row for line in lines.values() for row in line]
    base = [view.base] if view.base and view.base.reward and view.base.gold else []
    spots = [_spot(row) for row in (*rows, *base)]
    canvas.limits(axes, [x for x, _ in spots], [end for row in (*rows, *base) for end in _ends(row)])
    taken: list[Line] = []
    handles: list[Line2D] = []
    for k, (family, line) in enumerate(lines.items()):
        colour, shape, dash = PALETTE[k % len(PALETTE)], SHAPES[k % len(SHAPES)], DASHES[k % len(DASHES)]
        path = [_spot(row) for row in line]
        axes.plot(*zip(*path, strict=True), color=colour, linewidth=1.2, linestyle=dash, zorder=2)
        for (x0, y0), (x1, y1) in pairwise(path):
            tail, head = ((x0 + (x1 - x0) * share, y0 + (y1 - y0) * share) for share in (0.51, 0.55))
            axes.annotate("", head, tail, arrowprops={**ARROW, "color": colour}, zorder=3)
        for row, (x, y) in zip(line, path, strict=True):
            taken += bar(axes, x, *_ends(row), colour)
            axes.plot([x], [y], marker=shape, markersize=5.2, color=colour, linestyle="none", zorder=4)
        taken += canvas.pieces(axes, path)
        look: dict[str, Any] = {"color": colour, "marker": shape, "markersize": 5, "linewidth": 1.2, "linestyle": dash}
        handles.append(Line2D([], [], label=family, **look))
    for row in base:
        canvas.mark(axes, *_spot(row), "base")
    names = [f"{family} {strength(row):g}" for family, line in lines.items() for row in line]
    canvas.label(axes, spots, [*names, *(BASE for _ in base)], taken)
    canvas.legend(axes, handles)
    return Plot(name, title, reading, canvas.save(axes, title))


def _spot(row: Row) -> tuple[float, float]:
    assert row.reward is not None
    assert row.gold is not None
    return row.reward.mean, row.gold.mean


def _ends(row: Row) -> tuple[float, float]:
    """The ends of the paired interval of the gold gain around the mean gold reward."""
    mean, gain = _spot(row)[1], row.gold_gain
    return (mean + gain.low - gain.mean, mean + gain.high - gain.mean) if gain else (mean, mean)
