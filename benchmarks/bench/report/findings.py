"""What the rows say in words, and no more than they say."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from trimtab.bench.records import BASE, Interval, Row
from trimtab.bench.report.numbers import between, counted, digits, fixed, signed
from trimtab.bench.report.view import Point, View, families, strength

SHORTER = 0.8
"""of plain sampling's tokens: answers below this are called shorter"""


class Span(NamedTuple):
    """Latencies, milliseconds."""

    start: float
    end: float


class Lead(NamedTuple):
    """A setting with more reward than best-of-n has at its latency."""

    point: Point
    curve: float
    """reward of best-of-n there, on the straight line between two of its n; before its fastest n, that n's"""
    span: Span
    """from the setting's latency to where best-of-n has as much reward, or to its slowest n"""
    certain: Span | None
    """the same for the low end of the setting's interval; None if that is not above best-of-n"""


class Turn(NamedTuple):
    """A step up in strength within a family that gains reward and loses gold."""

    family: str
    weak: Row
    strong: Row
    apart: bool
    """whether the intervals of the two gold gains are apart"""


def findings(view: View) -> list[str]:
    """Sentences for the head of the report."""
    told = (_front, _beaten, _shorter, _uncertain, _overoptimised, _estimates, _failed)
    return [sentence for tell in told for sentence in tell(view)]


def leads(view: View) -> list[Lead]:
    """The settings above the curve of best-of-n at their own latency, the fastest first."""
    curve = climb(view.curve)
    if len(curve) < 2:
        return []
    found = []
    for point in _compared(view):
        at = reward_at(curve, point.latency)
        if at is not None and point.reward > at:
            span, certain = (Span(point.latency, latency_of(curve, worth)) for worth in (point.reward, point.low))
            found.append(Lead(point, at, span, certain if point.low > at else None))
    return found


def turns(view: View) -> list[Turn]:
    """Signs of over-optimisation, family by family."""
    found = []
    for family, line in families([row for row in view.main if row.reward and row.gold]).items():
        for weak, strong in pairwise(line):
            if _mean(strong.reward) > _mean(weak.reward) and _mean(strong.gold) < _mean(weak.gold):
                before, after = weak.gold_gain, strong.gold_gain
                apart = before is not None and after is not None and after.high < before.low
                found.append(Turn(family, weak, strong, apart))
    return found


def climb(curve: Sequence[Point]) -> list[Point]:
    """The points of the curve by latency, but for those that a faster n equals or beats."""
    kept: list[Point] = []
    for point in sorted(curve, key=lambda each: (each.latency, -each.reward)):
        if not kept or point.reward > kept[-1].reward:
            kept.append(point)
    return kept


def reward_at(curve: Sequence[Point], latency: float) -> float | None:
    """Best-of-n's reward at a latency, on straight lines; None beyond its slowest n, as more were not measured."""
    if latency <= curve[0].latency:
        return curve[0].reward
    for a, b in pairwise(curve):
        if latency <= b.latency:
            return a.reward + (b.reward - a.reward) * (latency - a.latency) / (b.latency - a.latency)
    return None


def latency_of(curve: Sequence[Point], reward: float) -> float:
    """The latency at which best-of-n has so much reward; that of its slowest n where none has."""
    if reward <= curve[0].reward:
        return curve[0].latency
    for a, b in pairwise(curve):
        if reward <= b.reward:
            return a.latency + (b.latency - a.latency) * (reward - a.reward) / (b.reward - a.reward)
    return curve[-1].latency


def union(spans: Iterable[Span]) -> list[Span]:
    """What these cover together, in pieces that are apart."""
    joined: list[Span] = []
    for span in sorted(spans):
        if joined and span.start <= joined[-1].end:
            joined[-1] = Span(joined[-1].start, max(joined[-1].end, span.end))
        else:
            joined.append(span)
    return joined


def _compared(view: View) -> list[Point]:
    return [point for point in view.points if not view.on_curve(point.row) and point.row.setting != BASE]


def _front(view: View) -> Iterator[str]:
    best = [point for point in view.points if point.row.setting in view.front]
    if best:
        named = [
            f"{each.row.setting} ({digits(each.latency)} ms, {fixed(each.reward, view.decimals)})" for each in best
        ]
        yield (
            f"The Pareto front of mean reward over median latency, from fast to slow: {listed(named)}. It goes by the "
            "means: neighbours on it may lie within each other's intervals."
        )


def _beaten(view: View) -> Iterator[str]:
    curve = climb(view.curve)
    if len(curve) < 2:
        yield "Best-of-n was not measured at two n, so nothing is compared with its curve."
        return
    high = digits(curve[-1].latency)
    above = leads(view)
    if above:
        ahead = [
            f"{each.point.row.setting} ({signed(each.point.reward - each.curve, view.decimals)})" for each in above
        ]
        yield (
            f"By the means, over {_spans(each.span for each in above)} some setting gives more reward than best-of-n, "
            f"n interpolated, in the same median time: {listed(ahead)}. In brackets the lead at the setting's own "
            "latency."
        )
        sure = [(each.point.row.setting, each.certain) for each in above if each.certain]
        if sure:
            yield (
                f"The low end of the paired interval is above best-of-n too, taken as exact, over "
                f"{_spans(span for _, span in sure)}: {listed([name for name, _ in sure])}."
            )
        else:
            yield "For none of them is the low end of the paired interval above best-of-n: the lead is not certain."
    else:
        yield (
            f"Nothing dominates best-of-n: up to {high} ms no setting has more mean reward than best-of-n, "
            "n interpolated, at the same median latency."
        )
    slow = [point.row.setting for point in _compared(view) if point.latency > curve[-1].latency]
    if slow:
        yield f"Slower than the largest n measured ({high} ms), and so not compared with best-of-n: {listed(slow)}."


def _shorter(view: View) -> Iterator[str]:
    """Settings that are fast in part since they say less."""
    plain = None if view.base is None else view.base.delivered
    if plain is None:
        return
    brief = [
        f"{row.setting} ({digits(row.delivered)})"
        for row in view.main
        if row.delivered is not None and row.delivered < SHORTER * plain
    ]
    if brief:
        yield (
            f"Latency is that of the answers as they come, and shorter answers take less: plain sampling delivers "
            f"{digits(plain)} tokens, and much fewer {listed(brief)}."
        )


def _uncertain(view: View) -> Iterator[str]:
    gains = [(row, row.reward_gain) for row in view.main if row.reward_gain and row.setting != BASE]
    if not gains:
        yield "No setting has a gain over plain sampling."
        return
    shown = {row.setting: f"{row.setting} {between(gain.low, gain.high, view.decimals)}" for row, gain in gains}
    unsure = [shown[row.setting] for row, gain in gains if gain.low <= 0 <= gain.high]
    worse = [shown[row.setting] for row, gain in gains if gain.high < 0]
    if unsure:
        yield f"The gain in reward over plain sampling is not certain, its interval includes 0: {listed(unsure)}."
    if worse:
        yield f"The reward is lower than that of plain sampling, the whole interval below 0: {listed(worse)}."
    if not unsure and not worse:
        yield "Every gain in reward over plain sampling is certain: no interval includes 0."


def _overoptimised(view: View) -> Iterator[str]:
    judged = [row for row in view.main if row.reward and row.gold]
    if not judged:
        yield "There is no gold reward, so over-optimisation cannot be seen."
        return
    found = turns(view)
    for turn in found:
        gold = [fixed(_mean(row.gold), view.gold_decimals) for row in (turn.weak, turn.strong)]
        reward = [fixed(_mean(row.reward), view.decimals) for row in (turn.weak, turn.strong)]
        yield (
            f"A sign of over-optimisation: from {turn.family} {strength(turn.weak):g} to {strength(turn.strong):g} the "
            f"mean reward rises from {reward[0]} to {reward[1]} and gold falls from {gold[0]} to {gold[1]}; the "
            f"intervals of the gold gains {'are apart' if turn.apart else 'overlap'}."
        )
    if not found and families(judged):
        yield "In no family does gold fall from one strength to the next while the reward rises."
    lost = [
        f"{row.setting} {between(row.gold_gain.low, row.gold_gain.high, view.gold_decimals)}"
        for row in judged
        if row.reward_gain and row.gold_gain and row.reward_gain.low > 0 and row.gold_gain.high < 0
    ]
    if lost:
        yield f"The reward is certainly above that of plain sampling and gold certainly below: {listed(lost)}."


def _estimates(view: View) -> Iterator[str]:
    told: dict[str, list[str]] = {}
    for row in view.main:
        if row.estimated:
            told.setdefault(row.estimated, []).append(f"{row.setting} ({counted(row.prompts, 'prompt')})")
    for how, names in told.items():
        yield f"Reward, gold and win rate by {how}; times, costs and texts from answers of their own: {listed(names)}."


def _failed(view: View) -> Iterator[str]:
    names = list(dict.fromkeys(row.setting for row in view.failed))
    if names:
        yield f"Failed, and not measured: {listed(names)}."


def _spans(spans: Iterable[Span]) -> str:
    return listed([f"{digits(span.start)} to {digits(span.end)} ms" for span in union(spans)])


def listed(items: Sequence[str]) -> str:
    """`a, b and c`; with semicolons where items hold commas."""
    if len(items) < 2:
        return "".join(items)
    comma = "; " if any(", " in item for item in items) else ", "
    return f"{comma.join(items[:-1])} and {items[-1]}"


def _mean(value: Interval | None) -> float:
    assert value is not None
    return value.mean
