"""What `trimtab plan` tells: from the options to a report, as text and as JSON."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil, floor, isfinite
from pathlib import Path
from typing import Any

from trimtab.bench.capacity.costs import preferring, read_costs
from trimtab.bench.capacity.machines.gpu import ARITHMETIC, BANDWIDTH, ROW, STEP, Gpu
from trimtab.bench.capacity.machines.measured import machine_of
from trimtab.bench.capacity.mix import read_mix
from trimtab.bench.capacity.planner import Plan, enough, met, needed, neighbours, plan
from trimtab.bench.capacity.simulation.arrivals import Kind
from trimtab.bench.capacity.simulation.run import Outcome, simulate
from trimtab.bench.capacity.site import Site, site_of
from trimtab.bench.capacity.slo import parse_slo
from trimtab.bench.capacity.work import BASE
from trimtab.bench.errors import BenchError

FEW = 10
"""mean latencies that arrivals have to last for a simulation to tell of more than its beginning"""


@dataclass(frozen=True)
class Report:
    """Everything that is told."""

    rps: float
    gpu: str
    derived: bool
    """from a data sheet, not measured"""
    headroom: float
    slo: Mapping[str, float]
    """seconds by name"""
    given: bool
    """the GPUs of the base were given, not reckoned"""
    site: Site
    plan: Plan
    others: tuple[tuple[str, Plan], ...]
    outcome: Outcome | None


def planned(
    mix: Path,
    *,
    rps: float,
    gpu: str,
    slo: Sequence[str] = (),
    gpus: int | None = None,
    headroom: float,
    seed: int | None = None,
    costs: Path | None = None,
) -> Report:
    """The report on a load; with a `seed` it is simulated as well. Raises BenchError with what to change.

    `gpus` are those of the base that are there; None: as many as the headroom and `slo` need. `costs` is a file of
    costs measured elsewhere, which win over those that come with trimtab.
    """
    read, machine, wanted = read_mix(mix), machine_of(gpu), parse_slo(slo)
    site = site_of(read, machine, None if costs is None else preferring(read_costs(costs)))
    if gpus is None:
        chosen = needed(site, rps, headroom, wanted)
    else:
        chosen = plan(site, rps, {**enough(site, rps, headroom), BASE: gpus})
    outcome = None
    if seed is not None:
        if chosen.latency is None:
            raise BenchError(
                "--simulate: more arrives than can leave, so that queues grow without end: give more --gpus"
            )
        process, kinds = site.process, site.demands
        outcome = simulate(
            read.fleet,
            replicas=chosen.loads[0].gpus,
            rate=rps,
            kinds=[Kind(each.share, each.work.steps / process.work.steps, each.entry.answer) for each in kinds],
            speed=process.rate,
            slots=max(1, floor(process.slots)),
            seed=seed,
        )
    others = tuple(neighbours(site, rps, chosen))
    derived, given = isinstance(machine, Gpu), gpus is not None
    return Report(rps, machine.name, derived, headroom, wanted, given, site, chosen, others, outcome)


def as_json_text(told: Report) -> str:
    """One JSON document."""
    process, memory = told.site.process, told.site.memory
    document: dict[str, Any] = {
        "rps": told.rps,
        "gpu": told.gpu,
        "derived": told.derived,
        "headroom": told.headroom,
        "slo": dict(told.slo),
        "gpus": told.plan.gpus,
        "given": told.given,
        "meets": met(told.plan, told.headroom, told.slo),
        "bottleneck": {"station": told.plan.bottleneck.name, "spent_on": process.spending()[0].what},
        **_plan(told.plan),
        "if": {name: _plan(each) for name, each in told.others},
        "replica": {
            "rps": process.best,
            "slots": process.slots,
            "bounded_by": told.site.narrow,
            "spending": {each.what: each.seconds for each in process.spending()},
        },
        "memory": {name: value if value is None or isfinite(value) else None for name, value in asdict(memory).items()},
        "requests": [
            {
                "name": each.entry.name,
                "share": each.share,
                "measured": each.measured,
                **asdict(each.work),
            }
            for each in told.site.demands
        ],
        "simulation": None if told.outcome is None else asdict(told.outcome),
    }
    return json.dumps(document, indent=2) + "\n"


def as_text(told: Report) -> str:
    """For people."""
    return "\n".join(_lines(told)) + "\n"


def _lines(told: Report) -> Iterator[str]:
    chosen, process, memory = told.plan, told.site.process, told.site.memory
    most = process.spending()[0]
    worst = chosen.bottleneck
    yield _given(told) if told.given else _needed(told)
    spent = f", most of it on {most.what}" if worst.name == BASE else ""
    yield f"bottleneck: {worst.name}, {worst.utilisation:.0%} busy{spent}"
    yield ""
    yield from _table(
        [("station", "GPUs", "requests/s at most", "busy")]
        + [(each.name, str(each.gpus), f"{each.rate:.4g}", f"{each.utilisation:.0%}") for each in chosen.loads]
    )
    yield ""
    yield _latency("latency", chosen)
    for name, each in told.others:
        yield _latency(f"with {name}", each)
    yield ""
    yield (
        f"one replica: {process.best:.3g} requests/s with {process.slots:.1f} under way, the most for its "
        f"{told.site.narrow}"
    )
    whole = sum(each.seconds for each in process.spending())
    yield "its time: " + ", ".join(f"{each.what} {each.seconds / whole:.0%}" for each in process.spending())
    if memory.total is not None:
        yield (
            f"memory: {memory.weights / 1e9:.1f} GB of weights, {memory.room:,.0f} tokens of keys and values "
            f"({memory.token / 1024:.0f} KiB each) in {memory.total / 1e9:g} GB"
        )
    yield ""
    yield from _table(
        [("request", "share", "steps", "rows of base", "read by guides", "width", "cost")]
        + [
            (
                each.entry.name,
                f"{each.share:.0%}",
                f"{each.work.steps:.0f}",
                f"{each.work.rows.get(BASE, 0.0):.0f}",
                f"{sum(each.work.tokens(name) for name in each.work.models if name != BASE):.0f}",
                f"{each.work.width:g}",
                "measured" if each.measured else "formula",
            )
            for each in told.site.demands
        ]
    )
    if told.outcome is not None:
        yield ""
        yield from _simulated(told.outcome, chosen, told.rps)
    if told.derived:
        yield ""
        yield (
            f"derived from the data sheet of {told.gpu}, not measured: {BANDWIDTH:.0%} of its bandwidth, "
            f"{ARITHMETIC:.0%} of its arithmetic, {STEP * 1e3:g} ms + {ROW * 1e6:g} us a row for each step; "
            "python benchmarks/capacity.py --calibrate measures yours"
        )


def _needed(told: Report) -> str:
    asked = "".join(f", {name} within {seconds:g} s" for name, seconds in told.slo.items())
    return f"{told.rps:g} requests/s need {told.plan.gpus} x {told.gpu} ({told.headroom:.0%} kept free{asked})"


def _given(told: Report) -> str:
    """The GPUs that are there, and what they keep to."""
    base = told.plan.loads[0].gpus
    others = f" for base, {told.plan.gpus - base} more for judges" if told.plan.loads[1:] else ""
    asked = {"headroom": f"{told.headroom:.0%} kept free"}
    asked |= {name: f"{name} within {seconds:g} s" for name, seconds in told.slo.items()}
    kept = met(told.plan, told.headroom, told.slo)
    verdicts = ", ".join(f"{asked[name]}: {'met' if good else 'missed'}" for name, good in kept.items())
    return f"{base} x {told.gpu} given{others}, {told.rps:g} requests/s; {verdicts}"


def _latency(name: str, made: Plan) -> str:
    if made.latency is None:
        return f"{name}: queues grow without end ({made.bottleneck.name} {made.bottleneck.utilisation:.0%} busy)"
    told, busy = made.latency, made.bottleneck.utilisation
    return f"{name}: p50 {told.p50:.2f} s, p95 {told.p95:.2f} s, mean {told.mean:.2f} s; {busy:.0%} busy"


def _simulated(outcome: Outcome, chosen: Plan, rps: float) -> Iterator[str]:
    assert chosen.latency is not None  # what cannot keep up is not simulated
    said = chosen.latency.base
    yield (
        f"simulated, base only, {outcome.requests:,} requests: p50 {outcome.p50:.2f} s, p95 {outcome.p95:.2f} s, "
        f"p99 {outcome.p99:.2f} s, mean {outcome.mean:.2f} s ({outcome.mean / said - 1:+.0%} of the formula's "
        f"{said:.2f} s), {outcome.utilisation:.0%} busy"
    )
    yield (
        f"  {outcome.lost:,} lost, {outcome.retried:,} retried, {outcome.unserved:,} unserved; "
        f"{outcome.replicas:.1f} replicas; prefixes found {outcome.hits:.0%}"
    )
    if outcome.requests < FEW * said * rps:
        yield (
            f"  too short to trust: all arrive within {outcome.requests / rps:.2g} s, and one takes {said:.2g} s: "
            f"raise fleet.requests to {ceil(FEW * said * rps):,} or more"
        )


def _plan(made: Plan) -> dict[str, Any]:
    return {
        "stations": [asdict(each) for each in made.loads],
        "latency": None if made.latency is None else asdict(made.latency),
        "under_way": made.under_way if isfinite(made.under_way) else None,
    }


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Aligned, the first column to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()
