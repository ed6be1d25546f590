"""Win rate against the base over the KL from it, with what best-of-n would reach."""

from math import log

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter

from trimtab.bench.report import canvas
from trimtab.bench.report.canvas import DASHED, INK, SOFT
from trimtab.bench.report.numbers import MINUS
from trimtab.bench.report.picture import Plot, bar, colour_of, keys, short
from trimtab.bench.report.view import View

TICKS = (0.0, 0.1, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


def win_rate(view: View) -> Plot:
    name, title = "winrate-kl", "Win rate versus KL"
    reading = (
        "Chance of a higher reward than an answer of plain sampling to the same prompt, over the KL divergence from "
        "the base. Hollow marks are upper bounds of the KL, as searches report them: the true point lies to the left. "
        "The dashed line is best-of-n for a reward without ties: "
        f"win rate n/(n+1), KL at most log n {MINUS} (n{MINUS}1)/n."
    )
    measured = [(row, row.kl, row.win_rate) for row in view.main if row.win_rate and row.kl]
    if not measured:
        return Plot(name, title, reading, None, "no setting has both a win rate and a KL")
    points = [(max(0.0, kl.mean), won.mean) for _, kl, won in measured]
    most = max(2.0, 1.12 * max(x for x, _ in points))
    axes = canvas.axes("KL from the base per answer (nats, square-root scale)", f"win rate ({view.conditions.reward})")
    axes.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0.0)), np.square))
    axes.set_xlim(0.0, most)
    axes.set_ylim(min(0.5, *(won.low for _, _, won in measured)) - 0.03, 1.02)
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in TICKS if tick == 0 or most / 400 < tick <= most]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: canvas.plain(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))

    n = np.exp(np.linspace(0.0, min(most + 1.0, log(1e4)), 200))  # beyond these n the win rate is 1
    bound = [*zip((np.log(n) - (n - 1) / n).tolist(), (n / (n + 1)).tolist(), strict=True), (most, 1.0)]
    bound = [(x, y) for x, y in bound if x <= most]
    axes.plot(*zip(*bound, strict=True), color=INK, linewidth=1.0, linestyle=DASHED, zorder=1.6)
    axes.axhline(0.5, color=SOFT, linewidth=0.7, zorder=1.2)
    lines = canvas.pieces(axes, bound)
    for (row, kl, won), (x, y) in zip(measured, points, strict=True):
        lines += bar(axes, x, won.low, won.high, colour_of(row))
        canvas.mark(axes, x, y, row.level, hollow=kl.bound)
    canvas.label(axes, points, [short(view, row) for row, _, _ in measured], lines)
    handles = keys(row.level for row, _, _ in measured)
    if any(kl.bound for _, kl, _ in measured):
        handles.append(canvas.key("KL at most", "answer", hollow=True))
    handles.append(Line2D([], [], color=INK, linewidth=1.0, linestyle=DASHED, label="best of n"))
    canvas.legend(axes, handles)
    return Plot(name, title, reading, canvas.save(axes, title))
