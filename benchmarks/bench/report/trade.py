"""Mean reward over what it costs: latency, tokens."""

from collections.abc import Sequence
from itertools import pairwise

from matplotlib.lines import Line2D

from trimtab.bench.pareto import front
from trimtab.bench.report import canvas
from trimtab.bench.report.canvas import COLOURS, DASHED, SOFT, Drawing
from trimtab.bench.report.numbers import counted
from trimtab.bench.report.picture import Plot, bar, colour_of, keys, short
from trimtab.bench.report.view import Point, View

STEPS = "The solid step is the Pareto front: no setting lies above and to the left of it."


def latency(view: View) -> Plot:
    name, title = "reward-latency", "Reward versus latency"
    reading = (
        "Up and to the left is better. Bars are 95 % paired bootstrap intervals of the gain over plain sampling, drawn "
        f"around the mean reward. {STEPS} The dashed line joins best-of-n by its n; hollow marks are estimates by "
        "order statistics."
    )
    if len(view.points) < 2:
        return Plot(name, title, reading, None, "it needs two settings with a reward and a latency")
    costs = [point.latency for point in view.points]
    xlabel = f"p50 latency from sending to the end (ms), {counted(view.concurrency, 'request')} at once"
    return Plot(name, title, reading, _trade(view, view.points, costs, xlabel, title))


def tokens(view: View) -> Plot:
    name, title = "reward-tokens", "Reward versus tokens spent"
    reading = (
        "The same rewards and intervals over what they cost in tokens, of all models together: prompts, drafts, "
        f"answers and scores. Up and to the left is better. {STEPS}"
    )
    points = [point for point in view.points if point.row.spent_total > 0]
    if len(points) < 2:
        return Plot(name, title, reading, None, "it needs two settings with a reward and tokens spent")
    costs = [point.row.spent_total for point in points]
    return Plot(name, title, reading, _trade(view, points, costs, "tokens that all models read, per answer", title))


def _trade(view: View, points: Sequence[Point], costs: Sequence[float], xlabel: str, title: str) -> Drawing:
    """Marks with bars, the front, the curve of best-of-n."""
    axes = canvas.axes(xlabel, f"mean reward ({view.conditions.reward})")
    canvas.logarithmic(axes, costs, "x")
    canvas.limits(axes, costs, [end for point in points for end in (point.low, point.high)])
    at = {point.row.setting: (cost, point.reward) for point, cost in zip(points, costs, strict=True)}

    best = [list(at.values())[i] for i in front(list(at.values()))]
    corners = [corner for (_, low), (x, high) in pairwise(best) for corner in ((x, low), (x, high))]
    steps = [best[0], *corners, (axes.get_xlim()[1], best[-1][1])]
    axes.plot(*zip(*steps, strict=True), color=SOFT, linewidth=1.0, zorder=1.5)
    lines = canvas.pieces(axes, steps)

    curve = [at[point.row.setting] for point in view.curve if point.row.setting in at]
    if len(curve) > 1:
        axes.plot(*zip(*curve, strict=True), color=COLOURS["answer"], linewidth=1.1, linestyle=DASHED, zorder=2)
        lines += canvas.pieces(axes, curve)
    for point, cost in zip(points, costs, strict=True):
        lines += bar(axes, cost, point.low, point.high, colour_of(point.row))
        canvas.mark(axes, cost, point.reward, point.row.level, hollow=point.row.estimated is not None)
    canvas.label(axes, list(at.values()), [short(view, point.row) for point in points], lines)

    handles = keys(point.row.level for point in points)
    if any(point.row.estimated for point in points):
        handles.append(canvas.key("estimate", "answer", hollow=True))
    handles.append(Line2D([], [], color=SOFT, linewidth=1.0, label="Pareto front"))
    if len(curve) > 1:
        handles.append(Line2D([], [], color=COLOURS["answer"], linewidth=1.1, linestyle=DASHED, label="best of n"))
    canvas.legend(axes, handles)
    return canvas.save(axes, title)
