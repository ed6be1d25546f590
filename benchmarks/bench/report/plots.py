"""The five plots. Reading one needs no colour: shapes, line styles and labels say the same."""

from collections.abc import Callable

from trimtab.bench.report import canvas
from trimtab.bench.report.gold import gold
from trimtab.bench.report.picture import Plot
from trimtab.bench.report.throughput import throughput
from trimtab.bench.report.trade import latency, tokens
from trimtab.bench.report.view import View
from trimtab.bench.report.winrate import win_rate


def plots(view: View) -> list[Plot]:
    """All five, in the order of the report."""
    kinds: tuple[Callable[[View], Plot], ...] = (latency, tokens, win_rate, gold, throughput)
    with canvas.style():
        return [kind(view) for kind in kinds]
