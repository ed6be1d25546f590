"""The rows as the report looks at them: those at the main concurrency, the base, the curve of best-of-n."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.bench.errors import BenchError
from trimtab.bench.pareto import front
from trimtab.bench.records import BASE, Conditions, Row
from trimtab.bench.report.numbers import decimals


@dataclass(frozen=True)
class Point:
    """A setting with a reward and a latency."""

    row: Row
    latency: float
    """p50 from sending to the end, milliseconds"""
    reward: float
    low: float
    """ends of the paired interval: of the gain over the base, around the mean reward; the reward itself without a
    gain"""
    high: float


@dataclass(frozen=True)
class View:
    """What the report is written from."""

    rows: tuple[Row, ...]
    """all, in their order"""
    concurrency: int
    """the main one: that with the most prompts, the first of several"""
    main: tuple[Row, ...]
    """without errors at the main concurrency, the fastest first"""
    failed: tuple[Row, ...]
    base: Row | None
    points: tuple[Point, ...]
    """those of `main` with a reward and a latency"""
    curve: tuple[Point, ...]
    """best-of-n by n, from plain sampling up where n = 1 was not measured apart; empty without best-of-n"""
    front: frozenset[str]
    """names of the settings that none beats in both reward and latency"""
    decimals: int
    """of rewards"""
    gold_decimals: int

    @property
    def conditions(self) -> Conditions:
        return self.rows[0].conditions

    def on_curve(self, row: Row) -> bool:
        return any(point.row.setting == row.setting for point in self.curve)


def look(rows: Sequence[Row]) -> View:
    """Raises BenchError without rows."""
    if not rows:
        raise BenchError("there are no rows to report: has the run finished a setting?")
    most = max(row.prompts for row in rows)
    concurrency = next(row.concurrency for row in rows if row.prompts == most)
    sound = [row for row in rows if row.concurrency == concurrency and row.error is None]
    main = sorted(sound, key=lambda row: row.e2e_ms.p50 if row.e2e_ms else float("inf"))
    points = tuple(point for row in main if (point := _point(row)) is not None)
    return View(
        rows=tuple(rows),
        concurrency=concurrency,
        main=tuple(main),
        failed=tuple(row for row in rows if row.error is not None),
        base=next((row for row in main if row.setting == BASE), None),
        points=points,
        curve=_curve(points),
        front=frozenset(points[i].row.setting for i in front([(each.latency, each.reward) for each in points])),
        decimals=decimals((row.reward.high - row.reward.low) / 2 for row in main if row.reward),
        gold_decimals=decimals((row.gold.high - row.gold.low) / 2 for row in main if row.gold),
    )


def drawn(row: Row) -> int | None:
    """The n of best-of-n without steering; None for any other setting."""
    n = row.decoding.get("n")
    plain = row.strategy == "best_of_n" and row.level == "answer" and "steer" not in row.decoding
    return n if plain and isinstance(n, int) else None


def strength(row: Row) -> float | None:
    """How strongly a setting steers, within its family: of best-of-n its n."""
    return float(n) if row.strength is None and (n := drawn(row)) is not None else row.strength


def families(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each family with at least two strengths, from the weakest up; families in order of their names."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if strength(row) is not None:
            found.setdefault(row.family or row.setting, []).append(row)
    return {
        name: sorted(found[name], key=lambda row: strength(row) or 0.0)
        for name in sorted(found)
        if len(found[name]) > 1
    }


def _point(row: Row) -> Point | None:
    if row.reward is None or row.e2e_ms is None:
        return None
    mean, gain = row.reward.mean, row.reward_gain
    low, high = (gain.low - gain.mean, gain.high - gain.mean) if gain else (0.0, 0.0)
    return Point(row, row.e2e_ms.p50, mean, mean + low, mean + high)


def _curve(points: Sequence[Point]) -> tuple[Point, ...]:
    """The largest set of best-of-n that differ by n alone, after plain sampling."""
    curves: dict[str, dict[int, Point]] = {}
    for point in points:
        n = drawn(point.row)
        if n is not None:
            rest = {key: value for key, value in point.row.decoding.items() if key != "n"}
            curves.setdefault(json.dumps(rest, sort_keys=True), {}).setdefault(n, point)
    if not curves:
        return ()
    curve = max(curves.values(), key=len)
    base = next((point for point in points if point.row.setting == BASE), None)
    if base is not None:
        curve.setdefault(1, base)
    return tuple(curve[n] for n in sorted(curve))
