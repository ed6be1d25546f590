"""The simulator against known queues, and what must hold whatever goes wrong."""

from typing import Any

import pytest

from trimtab.bench.capacity.lengths import Lengths
from trimtab.bench.capacity.simulation.arrivals import Kind
from trimtab.bench.capacity.simulation.run import Outcome, _Run, simulate
from trimtab.bench.capacity.simulation.settings import Fleet

ALONE = [Kind(1.0, 1.0, Lengths(mean=100))]
SPREAD = [Kind(1.0, 1.0, Lengths(mean=100, cv=2.0))]


def run(replicas: int = 1, rate: float = 0.7, **changes: Any) -> Outcome:
    """A fleet of replicas that do `servers` requests of mean size a second, if there are so many."""
    servers = changes.pop("servers", 1.0)
    slots, kinds, seed = changes.pop("slots", 2000), changes.pop("kinds", SPREAD), changes.pop("seed", 1)
    settings = Fleet.model_validate({"requests": 20000, "routing": "random", **changes})

    def speed(count: int) -> float:
        return min(float(count), servers)

    return simulate(settings, replicas=replicas, rate=rate, kinds=kinds, speed=speed, slots=slots, seed=seed)


@pytest.mark.parametrize("kinds", [ALONE, SPREAD])
def test_processor_sharing(kinds: Any) -> None:
    """M/G/1-PS: the mean is 1 / (1 - load), whatever the sizes."""
    found = run(rate=0.5, kinds=kinds, requests=100_000)
    assert found.mean == pytest.approx(2.0, rel=0.06)
    assert found.utilisation == pytest.approx(0.5, rel=0.04)


def test_in_turn() -> None:
    """M/D/1 with one slot: 1 + load / (2 (1 - load))."""
    assert run(rate=0.6, slots=1, kinds=ALONE).mean == pytest.approx(1 + 0.6 / 0.8, rel=0.04)


def test_several_servers() -> None:
    """M/G/4-PS with 2.8 erlangs: as M/M/4, 1 + Erlang C / (4 - 2.8), with C = 0.4287."""
    assert run(rate=2.8, servers=4.0, requests=80_000).mean == pytest.approx(1 + 0.4287 / 1.2, rel=0.04)


def test_two_choices_beat_one() -> None:
    one, two = run(50, 45.0, slots=1, kinds=ALONE), run(50, 45.0, slots=1, kinds=ALONE, routing="two")
    assert two.p95 < 0.5 * one.p95


def test_nothing_is_lost_where_nothing_fails() -> None:
    for fleet in ({}, {"routing": "prefix"}, {"slow_share": 0.3}, {"bursts": {"factor": 5.0}}):
        found = run(10, 7.0, requests=5000, warm_up=0.0, **fleet)
        assert (found.finished, found.lost, found.retried, found.unserved) == (5000, 0, 0, 0), fleet


@pytest.mark.parametrize(
    ("retry", "lost", "retried"), [("queued", True, True), ("all", False, True), ("none", True, False)]
)
def test_failures(retry: str, lost: bool, retried: bool) -> None:
    failures = {"every": 100.0, "repair": 10.0, "retry": retry}
    found = run(10, 8.0, slots=1, requests=20000, failures=failures)
    assert found.finished + found.lost + found.unserved == 20000
    assert (found.lost > 0, found.retried > 0, found.unserved) == (lost, retried, 0)
    assert found.replicas == pytest.approx(10 * 100 / 110, rel=0.05)
    calm = run(10, 8.0, slots=1, requests=20000)
    assert retry == "none" or found.p95 > calm.p95


def test_slow_replicas_and_bursts_are_felt() -> None:
    calm = run(20, 12.0)
    assert run(20, 12.0, slow_share=0.2, slow_speed=0.5).p99 > 1.2 * calm.p99
    assert run(20, 12.0, bursts={"factor": 4.0, "share": 0.1, "seconds": 30.0}).p95 > 1.2 * calm.p95


def test_prefixes_find_their_replica() -> None:
    chance, home = run(10, 6.0), run(10, 6.0, routing="prefix", prefixes={"count": 100, "saves": 0.5})
    assert chance.hits == 0
    assert home.hits > 0.8
    assert home.mean < 0.8 * chance.mean
    full = run(10, 6.0, routing="prefix", prefixes={"count": 100, "saves": 0.5, "kept": 1})
    assert full.hits < home.hits


def test_replicas_follow_the_load() -> None:
    scaling = {"most": 40, "target": 2.0, "interval": 5.0, "delay": 20.0}
    found = run(2, 10.0, autoscale=scaling)
    assert 10 < found.replicas < 40
    assert found.finished == 20000
    late = run(2, 10.0, autoscale={**scaling, "delay": 200.0}, warm_up=0.0)
    assert late.p99 > run(2, 10.0, autoscale=scaling, warm_up=0.0).p99
    assert run(30, 2.0, autoscale=scaling).replicas < 10, "and they go again"


@pytest.mark.parametrize("repair", [5.0, 60.0])
def test_who_failed_is_replaced_once(monkeypatch: pytest.MonkeyPatch, repair: float) -> None:
    """By its repair, which the autoscaler counts among those that come."""
    begin, served = _Run._start, list[int]()

    def start(run: _Run, now: float) -> None:
        begin(run, now)
        served.append(len(run._serving))

    monkeypatch.setattr(_Run, "_start", start)
    scaling = {"most": 10, "target": 1.0, "interval": 5.0, "delay": 5.0}
    found = run(10, 12.0, slots=1, autoscale=scaling, failures={"every": 100.0, "repair": repair})
    assert max(served) == 10, "never more than `most`"
    assert found.replicas == pytest.approx(10 * 100 / (100 + repair), rel=0.05)


def test_seeds() -> None:
    assert run(5, 3.0, requests=2000) == run(5, 3.0, requests=2000)
    assert run(5, 3.0, requests=2000) != run(5, 3.0, requests=2000, seed=2)


def test_a_thousand_replicas() -> None:
    found = run(1000, 7000.0, servers=10.0, slots=40, requests=30_000, routing="two", failures={"every": 1000.0})
    assert found.finished + found.lost == 30_000
    assert found.mean < 1.6
