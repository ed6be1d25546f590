"""How many GPUs a load needs, where the bottleneck is, and how long requests take."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil, inf

import numpy as np
from numpy.typing import NDArray

from trimtab.bench.capacity.mix import Answers
from trimtab.bench.capacity.site import Judge, Site
from trimtab.bench.capacity.work import BASE
from trimtab.bench.errors import BenchError

POINTS = 20
"""lengths that stand for all of a kind of request"""
MOST = 1_000_000
"""GPUs"""
PART = 32
"""a station of many GPUs is raised by one of so many parts of them at a time, and lowered again by single ones"""
SLOWER = 3.0
"""95th percentile over mean of the time at a judge, whose queue is about exponential"""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds, queueing included, of all kinds of requests together."""

    mean: float
    p50: float
    p95: float
    base: float
    """mean in the base's process alone, without the judges that stand apart"""


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


def enough(site: Site, rps: float, headroom: float) -> dict[str, int]:
    """The fewest GPUs of each station that keep it below 1 - headroom."""
    counts = {BASE: _enough(rps / site.process.best, headroom)}
    return counts | {judge.name: _enough(rps * judge.seconds, headroom) for judge in site.judges}


def needed(site: Site, rps: float, headroom: float, slo: Mapping[str, float]) -> Plan:
    """The fewest GPUs that keep every station below 1 - headroom, and every percentile of `slo` (seconds).

    Objectives that stations share may take somewhat more than the fewest, most where they are close to what idle GPUs
    take.
    Raises BenchError for an objective that an idle GPU already misses.
    """
    least = enough(site, rps, headroom)
    alone = plan(site, rps, {name: max(MOST, count) for name, count in least.items()})
    for name, seconds in slo.items():
        if (best := getattr(alone.latency, name)) > seconds:
            raise BenchError(
                f"--slo {name}={seconds:g}s: an idle GPU already takes {best:.2f} s, so more do not help: allow "
                "more time, shorten answers, or choose a cheaper strategy or a faster GPU"
            )
    counts = _raised(site, rps, least, slo)
    for name in counts:
        wanted = range(least[name], counts[name] + 1)
        kept = dict(counts)
        at = bisect_left(wanted, True, key=lambda count: not _missed(plan(site, rps, {**kept, name: count}), slo))
        counts[name] = wanted[at]
    return plan(site, rps, counts)


def plan(site: Site, rps: float, counts: Mapping[str, int]) -> Plan:
    """The load on so many GPUs of each station."""
    process, base = site.process, counts[BASE]
    loads = [Load(BASE, base, base * process.best, rps / (base * process.best))]
    loads += [_judging(judge, rps, counts[judge.name]) for judge in site.judges]
    if any(each.utilisation >= 1 for each in loads):
        return Plan(tuple(loads), None, inf)
    chances = process.states(rps / base)
    under_way = sum(n * chance for n, chance in enumerate(chances))
    slower = [1 / (1 - load.utilisation) for load in loads[1:]]
    judging = sum(judge.seconds * times for judge, times in zip(site.judges, slower, strict=True))
    inside, after, weights = _times(site, chances, slower)
    mean = under_way * base / rps
    p50, p95 = _quantile(inside + after, weights, 0.5), _quantile(inside + SLOWER * after, weights, 0.95)
    return Plan(tuple(loads), Latency(mean + judging, p50, p95, mean), under_way)


def met(made: Plan, headroom: float, slo: Mapping[str, float]) -> dict[str, bool]:
    """Whether a plan keeps to the headroom, and to each objective, by name."""
    free = all(each.utilisation <= 1 - headroom + 1e-9 for each in made.loads)
    return {"headroom": free} | {name: not _missed(made, {name: seconds}) for name, seconds in slo.items()}


def neighbours(site: Site, rps: float, chosen: Plan) -> Iterator[tuple[str, Plan]]:
    """The same with one GPU less and one more where the bottleneck is."""
    at = chosen.bottleneck.name
    counts = {each.name: each.gpus for each in chosen.loads}
    for told, change in (("one less", -1), ("one more", 1)):
        if counts[at] + change >= 1:
            yield f"{told} for {at}", plan(site, rps, {**counts, at: counts[at] + change})


def _raised(site: Site, rps: float, least: Mapping[str, int], slo: Mapping[str, float]) -> dict[str, int]:
    """GPUs that meet `slo`: the station is raised, again and again, whose GPUs lower what is missed most."""
    counts = dict(least)
    while left := _missed(plan(site, rps, counts), slo):
        more = {name: max(1, count // PART) for name, count in counts.items()}
        gains = {
            name: (left - _missed(plan(site, rps, {**counts, name: counts[name] + count}), slo)) / count
            for name, count in more.items()
        }
        best = max(gains, key=gains.__getitem__)
        if gains[best] > 0:
            counts[best] += more[best]
        else:  # a step too small to be seen
            counts = {name: max(count, min(2 * count, MOST)) for name, count in counts.items()}
    return counts


def _missed(made: Plan, slo: Mapping[str, float]) -> float:
    """By how much objectives are missed, over what they allow, summed; 0: all are met."""
    if made.latency is None:
        return inf if slo else 0.0
    told: Mapping[str, float] = asdict(made.latency)
    return sum(max(0.0, told[name] / seconds - 1) for name, seconds in slo.items())


def _times(site: Site, chances: Sequence[float], slower: Sequence[float]) -> tuple[Floats, Floats, Floats]:
    """Seconds in the base's process, seconds at judges, and their chances, for all kinds and lengths of requests.

    What a request finds in the base's process stays as it is while it is there; judges are `slower` than idle ones.
    """
    process, sizes, shares, judges = site.process, list[float](), list[float](), list[float]()
    for number, each in enumerate(site.demands):
        answer: Answers = each.entry.answer
        judging = sum(judge.kinds[number] * times for judge, times in zip(site.judges, slower, strict=True))
        for length in answer.grid(POINTS):
            sizes.append(each.work.steps / process.work.steps * length / answer.mean)
            shares.append(each.share / POINTS)
            judges.append(judging)
    found = [(n, chance) for n, chance in enumerate(chances, 1) if chance >= 1e-7]
    waiting = np.array([max(0.0, n - process.slots) / process.best for n, _ in found])
    served = np.array([min(float(n), process.slots) / process.rate(n) for n, _ in found])
    inside = waiting[:, None] + served[:, None] * np.array(sizes)
    weights = np.array([chance for _, chance in found])[:, None] * np.array(shares)
    return inside.ravel(), np.broadcast_to(np.array(judges), inside.shape).ravel(), weights.ravel()


def _quantile(values: Floats, weights: Floats, share: float) -> float:
    """The value that this share of the weights does not exceed."""
    order = np.argsort(values, kind="stable")
    sums = np.cumsum(weights[order])
    return float(values[order[min(int(np.searchsorted(sums, share * sums[-1])), len(order) - 1)]])


def _judging(judge: Judge, rps: float, gpus: int) -> Load:
    rate = gpus / judge.seconds if judge.seconds else inf
    return Load(judge.name, gpus, rate, rps / rate)


def _enough(busy: float, headroom: float) -> int:
    """GPUs for so many GPUs' worth of work."""
    return max(1, ceil(busy / (1 - headroom) - 1e-9))
