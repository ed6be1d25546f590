"""The events of a fleet in the order of time: arrivals, ends, failures, repairs, and looks of the autoscaler."""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import ceil, inf
from typing import Literal

import numpy as np

from trimtab.bench.capacity.simulation import arrivals
from trimtab.bench.capacity.simulation.arrivals import Kind
from trimtab.bench.capacity.simulation.replica import Rate, Replica, Request
from trimtab.bench.capacity.simulation.routing import Router
from trimtab.bench.capacity.simulation.settings import Fleet

What = Literal["end", "failure", "repair", "look", "ready"]
Event = tuple[float, int, What, int, int]
"""time, order of being planned, what, replica, its version"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of the requests; latencies are seconds, of requests that ended after the warm-up."""

    requests: int
    finished: int
    lost: int
    """begun on a replica that died, and not asked again"""
    retried: int
    """sent to another replica after theirs had died"""
    unserved: int
    """found no replica to the end"""
    mean: float
    p50: float
    p95: float
    p99: float
    utilisation: float
    """work done over what the replicas that were there could have done"""
    replicas: float
    """mean over time"""
    hits: float
    """share of the requests whose prefix their replica had read"""
    seconds: float
    """of the load, from the first arrival to the last end"""


def simulate(
    settings: Fleet, *, replicas: int, rate: float, kinds: Sequence[Kind], speed: Rate, slots: int, seed: int
) -> Outcome:
    """Run a fleet. `rate` is of all arrivals per second, `speed(n)` of one replica; the same seed, the same outcome."""
    return _Run(settings, replicas, rate, kinds, speed, slots, seed).outcome()


class _Run:
    def __init__(
        self, settings: Fleet, replicas: int, rate: float, kinds: Sequence[Kind], speed: Rate, slots: int, seed: int
    ) -> None:
        streams = np.random.default_rng(seed).spawn(5)
        self._settings = settings
        self._chance = streams[0]  # failures, and who is slow
        self._router = Router(settings, streams[1])
        curve = [0.0, *(speed(n) for n in range(1, slots + 1))]
        self._curve, self._slots = curve.__getitem__, slots
        self._top = curve[slots]
        count = settings.requests
        self._arrivals = arrivals.times(streams[2], rate, count, settings.bursts).tolist()
        self._sizes = arrivals.requests(streams[3], kinds, count).tolist()
        self._prefixes = arrivals.prefixes(streams[4], settings.prefixes, count).tolist()
        self._replicas: list[Replica] = []
        self._serving: list[int] = []
        self._events: list[Event] = []
        self._order = self._present = self._hits = self._routed = 0
        self._lost = self._retried = 0
        self._coming = 0  # replicas that will serve: replacements and those that the autoscaler has asked for
        self._homeless: list[Request] = []
        self._times: list[float] = []
        self._first = int(settings.warm_up * count)
        self._area = self._since = 0.0
        self._marks: list[tuple[float, float, float]] = []  # time, work done and replica-seconds so far
        for _ in range(replicas):
            self._start(0.0)
        if settings.autoscale is not None:
            self._plan(settings.autoscale.interval, "look")

    def outcome(self) -> Outcome:
        """Run to the end of the last request."""
        now, number, count = 0.0, 0, len(self._arrivals)
        while number < count or self._present:
            arrival = self._arrivals[number] if number < count else inf
            if self._events and self._events[0][0] <= arrival:
                now, _, what, at, version = heappop(self._events)
                self._handle(now, what, at, version)
            elif number < count:
                now = arrival
                if number in (self._first, count - 1):
                    self._mark(now)
                self._present += 1
                self._route(now, Request(number, now, self._sizes[number], self._prefixes[number]))
                number += 1
            else:
                break  # those who are left have no replica, and none will come
        return self._told(now)

    def _mark(self, now: float) -> None:
        """Note where replicas stand: at the end of the warm-up, and at the last arrival."""
        for replica in self._replicas:
            replica.move(now)
        self._grow(now)
        self._marks.append((now, sum(replica.busy for replica in self._replicas), self._area))

    def _handle(self, now: float, what: What, at: int, version: int) -> None:
        if what == "end":
            self._end(now, at, version)
        elif what == "failure":
            self._fail(now, at)
        elif what == "look":
            self._look(now)
        else:  # a replacement, or one more
            self._coming -= 1
            self._start(now)
            waiting, self._homeless = self._homeless, []
            for request in waiting:
                self._route(now, request)

    def _plan(self, when: float, what: What, at: int = 0, version: int = 0) -> None:
        self._order += 1
        heappush(self._events, (when, self._order, what, at, version))

    def _start(self, now: float) -> None:
        """One more replica serves."""
        self._grow(now)
        slow = self._settings.slow_share and self._chance.random() < self._settings.slow_share
        speed = self._settings.slow_speed if slow else 1.0
        self._replicas.append(Replica(self._curve, self._slots, speed, moved=now))
        at = len(self._replicas) - 1
        self._serving.append(at)
        if self._settings.failures is not None:
            self._plan(now + float(self._chance.exponential(self._settings.failures.every)), "failure", at)

    def _stop(self, now: float, at: int) -> None:
        """A replica takes nothing more."""
        self._grow(now)
        self._serving.remove(at)

    def _grow(self, now: float) -> None:
        """Count the time of the replicas that serve."""
        self._area += (now - self._since) * len(self._serving)
        self._since = now

    def _route(self, now: float, request: Request) -> None:
        if not self._serving:
            self._homeless.append(request)
            return
        at = self._router.choose(self._serving, self._replicas, request.prefix, self._present)
        replica, size = self._replicas[at], self._sizes[request.number]
        self._routed += 1
        if self._settings.routing == "prefix" and replica.reads(request.prefix, self._settings.prefixes.kept):
            self._hits += 1
            size *= 1 - self._settings.prefixes.saves
        replica.move(now)
        replica.add(request, size)
        self._await(at)

    def _await(self, at: int) -> None:
        """Plan the next end of a replica, in place of the one before."""
        replica = self._replicas[at]
        replica.version += 1
        when = replica.next_end()
        if when is not None:
            self._plan(when, "end", at, replica.version)

    def _end(self, now: float, at: int, version: int) -> None:
        replica = self._replicas[at]
        if version != replica.version:
            return
        replica.move(now)
        request = replica.end()
        self._present -= 1
        if request.number >= self._first:
            self._times.append(now - request.arrived)
        self._await(at)

    def _fail(self, now: float, at: int) -> None:
        failures, replica = self._settings.failures, self._replicas[at]
        assert failures is not None
        if not replica.up:
            return
        replica.move(now)
        replica.up = False
        replica.version += 1
        if not replica.draining:
            self._stop(now, at)
            self._coming += 1
            self._plan(now + failures.repair, "repair")
        begun, waiting = replica.fail()
        if failures.retry == "none":
            begun, waiting = [*begun, *waiting], []
        elif failures.retry == "all":
            begun, waiting = [], [*begun, *waiting]
        self._lost += len(begun)
        self._present -= len(begun)
        self._retried += len(waiting)
        for request in waiting:
            self._route(now, request)

    def _look(self, now: float) -> None:
        scaling = self._settings.autoscale
        assert scaling is not None
        have = len(self._serving) + self._coming
        want = min(scaling.most, max(scaling.least, ceil(self._present / scaling.target)))
        for _ in range(want - have):
            self._coming += 1
            self._plan(now + scaling.delay, "ready")
        for at in self._serving[::-1][: max(0, min(have - want, len(self._serving) - scaling.least))]:
            self._stop(now, at)
            self._replicas[at].draining = True
        self._plan(now + scaling.interval, "look")

    def _told(self, now: float) -> Outcome:
        times = np.array(self._times or [float("nan")])
        p50, p95, p99 = (float(each) for each in np.percentile(times, (50, 95, 99)))
        unserved = len(self._homeless)
        watched, done, area = (after - before for before, after in zip(self._marks[0], self._marks[-1], strict=True))
        return Outcome(
            requests=len(self._arrivals),
            finished=len(self._arrivals) - self._lost - unserved,
            lost=self._lost,
            retried=self._retried,
            unserved=unserved,
            mean=float(times.mean()),
            p50=p50,
            p95=p95,
            p99=p99,
            utilisation=done / (area * self._top) if area else 0.0,
            replicas=area / watched if watched else float(len(self._serving)),
            hits=self._hits / self._routed if self._routed else 0.0,
            seconds=now,
        )
