"""How many GPUs a load needs, where the bottleneck is, and how long requests take."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil, inf

from trimtab.bench.capacity.mix import Answers
from trimtab.bench.capacity.site import Judge, Site
from trimtab.bench.capacity.work import BASE
from trimtab.bench.errors import BenchError

POINTS = 20
"""lengths that stand for all of a kind of request"""
MOST = 1_000_000
"""GPUs"""


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds, queueing included, of all kinds of requests together."""

    mean: float
    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class Load:
    """One station at one number of GPUs."""

    name: str
    gpus: int
    rate: float
    """requests per second of the mix that so many GPUs can take at most"""
    utilisation: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What a number of GPUs makes of a load."""

    loads: tuple[Load, ...]
    latency: Latency | None
    """None: more arrives than can leave"""
    under_way: float
    """requests at one replica of the base, mean, with those that wait"""

    @property
    def gpus(self) -> int:
        return sum(each.gpus for each in self.loads)

    @property
    def bottleneck(self) -> Load:
        return max(self.loads, key=lambda each: each.utilisation)


def needed(site: Site, rps: float, headroom: float, slo: Mapping[str, float]) -> Plan:
    """The fewest GPUs that keep every station below 1 - headroom, and every percentile of `slo` (seconds).

    Raises BenchError for an objective that an idle GPU already misses.
    """
    counts = {BASE: _enough(rps / site.process.best, headroom)}
    counts |= {judge.name: _enough(rps * judge.seconds, headroom) for judge in site.judges}
    first = plan(site, rps, counts)
    if _meets(first, slo):
        return first
    alone = plan(site, rps, dict.fromkeys(counts, MOST))
    for name, seconds in slo.items():
        if (best := getattr(alone.latency, name)) > seconds:
            raise BenchError(
                f"--slo {name}={seconds:g}s: an idle GPU already takes {best:.2f} s, so more do not help: allow "
                "more time, shorten answers, or choose a cheaper strategy or a faster GPU"
            )
    for judge in site.judges:  # queues before judges count three times as much as those of the base: empty them first
        counts[judge.name] = max(counts[judge.name], _enough(rps * judge.seconds, max(headroom, 0.5)))
    low, high = counts[BASE], counts[BASE]
    while not _meets(plan(site, rps, {**counts, BASE: high}), slo):
        low, high = high, high * 2
        if high > MOST:
            raise BenchError(f"--slo {', '.join(slo)}: no number of GPUs up to {MOST:,} meets it")
    wanted = range(low, high + 1)
    at = bisect_left(wanted, True, key=lambda count: _meets(plan(site, rps, {**counts, BASE: count}), slo))
    return plan(site, rps, {**counts, BASE: wanted[at]})


def plan(site: Site, rps: float, counts: Mapping[str, int]) -> Plan:
    """The load on so many GPUs of each station."""
    process, base = site.process, counts[BASE]
    loads = [Load(BASE, base, base * process.best, rps / (base * process.best))]
    loads += [_judging(judge, rps, counts[judge.name]) for judge in site.judges]
    if any(each.utilisation >= 1 for each in loads):
        return Plan(tuple(loads), None, inf)
    chances = process.states(rps / base)
    under_way = sum(n * chance for n, chance in enumerate(chances))
    waits = [judge.seconds / (1 - load.utilisation) for judge, load in zip(site.judges, loads[1:], strict=True)]
    added = sum(waits)
    times, weights = zip(*sorted(_times(site, chances)), strict=True)
    sums = list(accumulate(weights))

    def quantile(share: float) -> float:
        found: float = times[min(bisect_left(sums, share * sums[-1]), len(times) - 1)]
        return found

    # A judge's queue is about exponential: its 95th percentile is three times its mean.
    mean = under_way * base / rps + added
    return Plan(tuple(loads), Latency(mean, quantile(0.5) + added, quantile(0.95) + 3 * added), under_way)


def neighbours(site: Site, rps: float, chosen: Plan) -> Iterator[tuple[str, Plan]]:
    """The same with one GPU less and one more where the bottleneck is."""
    at = chosen.bottleneck.name
    counts = {each.name: each.gpus for each in chosen.loads}
    for told, change in (("one less", -1), ("one more", 1)):
        if counts[at] + change >= 1:
            yield f"{told} for {at}", plan(site, rps, {**counts, at: counts[at] + change})


def sizes(site: Site) -> Iterator[tuple[float, float]]:
    """Steps of requests over the mean's, each with its share."""
    for each in site.demands:
        answer: Answers = each.entry.answer
        for length in answer.grid(POINTS):
            yield each.work.steps / site.process.work.steps * length / answer.mean, each.share / POINTS


def _times(site: Site, chances: Sequence[float]) -> Iterator[tuple[float, float]]:
    """Seconds in the base's process with their chances: what a request finds there stays as it is while it is there."""
    process, kinds = site.process, list(sizes(site))
    for found, chance in enumerate(chances):
        if chance < 1e-7:
            continue
        n = found + 1
        waiting = max(0.0, n - process.slots) / process.best
        served = min(float(n), process.slots) / process.rate(n)
        for size, share in kinds:
            yield waiting + size * served, chance * share


def _judging(judge: Judge, rps: float, gpus: int) -> Load:
    rate = gpus / judge.seconds if judge.seconds else inf
    return Load(judge.name, gpus, rate, rps / rate)


def _enough(busy: float, headroom: float) -> int:
    """GPUs for so many GPUs' worth of work."""
    return max(1, ceil(busy / (1 - headroom) - 1e-9))


def _meets(made: Plan, slo: Mapping[str, float]) -> bool:
    return made.latency is not None and all(getattr(made.latency, name) <= seconds for name, seconds in slo.items())
