"""Holds the model against a server: mixes near saturation, predicted and measured."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from trimtab.bench.capacity.lengths import Lengths
from trimtab.bench.capacity.machines.clock import Machine
from trimtab.bench.capacity.mix import Entry, Mix, checked
from trimtab.bench.capacity.probe import Asked, Probe, Told
from trimtab.bench.capacity.site import Site, site_of
from trimtab.bench.records import Record

GUIDES = {
    "positivity": {"kind": "adapter", "reads": "answer"},
    "positive-lm": {"kind": "adapter"},
    "negative-lm": {"kind": "adapter"},
    "aligned": {"kind": "adapter"},
}
EDGE = 0.2
"""share of the requests, at either end, whose time is not measured: the beginning is empty, the end is not full"""


class Check(Record):
    """One mix at one number of requests at a time."""

    name: str
    concurrency: int
    requests: tuple[dict[str, Any], ...]
    """as in a mix file"""


CHECKS = (
    Check(
        name="chat",
        concurrency=12,
        requests=(
            {"share": 3, "prompt": {"mean": 60, "cv": 0.5}, "answer": {"mean": 32, "cv": 0.5, "ends": "limit"}},
            {
                "share": 1,
                "decoding": {"strategy": "dexperts", "expert": "positive-lm", "antiexpert": "negative-lm"},
                "prompt": {"mean": 48},
                "answer": {"mean": 24, "cv": 0.3, "ends": "limit"},
            },
        ),
    ),
    Check(
        name="search",
        concurrency=6,
        requests=(
            {
                "share": 1,
                "decoding": {"strategy": "best_of_n", "n": 4, "reward": "positivity"},
                "prompt": {"mean": 50},
                "answer": {"mean": 30, "cv": 0.3, "ends": "limit"},
            },
            {
                "share": 1,
                "decoding": {"strategy": "cd_blockwise", "k": 3, "block": 8, "value": "positivity"},
                "prompt": {"mean": 50},
                "answer": {"mean": 24, "cv": 0.3, "ends": "limit"},
            },
            {
                "share": 1,
                "decoding": {"strategy": "qalign", "steps": 3, "reward": "positivity"},
                "prompt": {"mean": 50},
                "answer": {"mean": 20, "ends": "limit"},
            },
        ),
    ),
    Check(
        name="all sorts",
        concurrency=10,
        requests=(
            {"share": 4, "prompt": {"mean": 80, "cv": 0.6}, "answer": {"mean": 28, "cv": 0.6, "ends": "limit"}},
            {
                "share": 2,
                "decoding": {"strategy": "best_of_n", "n": 3, "reward": "positivity"},
                "prompt": {"mean": 50},
                "answer": {"mean": 24, "cv": 0.3, "ends": "limit"},
            },
            {
                "share": 1,
                "decoding": {"strategy": "speculative_rejection", "n": 6, "schedule": [8, 16], "reward": "positivity"},
                "prompt": {"mean": 50},
                "answer": {"mean": 28, "ends": "limit"},
            },
            {
                "share": 1,
                "decoding": {"strategy": "args", "reward": "positivity", "k": 5},
                "prompt": {"mean": 50},
                "answer": {"mean": 20, "ends": "limit"},
            },
            {
                "share": 1,
                "decoding": {"strategy": "dera", "aligned": "aligned", "lam": 1.0},
                "prompt": {"mean": 50},
                "answer": {"mean": 24, "cv": 0.3, "ends": "limit"},
            },
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Compared:
    """One mix."""

    name: str
    concurrency: int
    requests: int
    predicted: float
    measured: float
    """requests per second"""

    @property
    def error(self) -> float:
        """Of the prediction, over what was measured."""
        return self.predicted / self.measured - 1


def mix_of(check: Check, model: str) -> Mix:
    """The mix file of a check."""
    return checked({"model": model, "guides": GUIDES, "requests": list(check.requests)}, check.name)


def predicted(site: Site, concurrency: int) -> float:
    """Requests per second with so many under way all the time; those beyond the slots wait."""
    return site.process.rate(concurrency)


def jobs(mix: Mix, count: int, seed: int) -> list[Asked]:
    """So many requests, of each kind its share, in an order of chance; lengths are drawn evenly from their law."""
    drawn: list[Asked] = []
    for entry in mix.entries:
        drawn += _drawn(entry, max(1, round(entry.share * count)), seed)
    random.Random(seed).shuffle(drawn)
    return [Asked(each.decoding, each.prompt, each.answer, seed + 1 + i, each.label) for i, each in enumerate(drawn)]


def throughput(told: Sequence[Told]) -> float:
    """Requests per second between the edges, each counted by the part of its time that falls there."""
    began, ended = min(each.began for each in told), max(each.ended for each in told)
    low, high = began + EDGE * (ended - began), ended - EDGE * (ended - began)
    inside = sum(max(0.0, min(each.ended, high) - max(each.began, low)) / (each.ended - each.began) for each in told)
    return inside / (high - low)


def check(
    probe: Probe,
    machine: Machine,
    checks: Sequence[Check],
    model: str,
    *,
    seconds: float,
    seed: int,
    say: Callable[[str], None],
) -> list[Compared]:
    """Run each mix for about so many seconds, and compare."""
    found = []
    for each in checks:
        mix = mix_of(each, model)
        said = predicted(site_of(mix, machine), each.concurrency)
        asked = jobs(mix, ceil(max(said * seconds, 4 * each.concurrency)), seed)
        measured = throughput(probe.closed(asked, each.concurrency))
        found.append(Compared(each.name, each.concurrency, len(asked), said, measured))
        say(f"{each.name}: {said:.2f} requests/s predicted, {measured:.2f} measured")
    return found


def told(compared: Compared) -> Mapping[str, object]:
    """A row of the table."""
    return {
        "mix": compared.name,
        "at a time": compared.concurrency,
        "requests": compared.requests,
        "predicted/s": compared.predicted,
        "measured/s": compared.measured,
        "error %": 100 * compared.error,
    }


def _drawn(entry: Entry, count: int, seed: int) -> list[Asked]:
    chance = random.Random(f"{seed} {entry.name}")

    def lengths(law: Lengths) -> list[int]:
        drawn = [max(2, round(each)) for each in law.grid(count)]
        chance.shuffle(drawn)
        return drawn

    pairs = zip(lengths(entry.prompt), lengths(entry.answer), strict=True)
    return [Asked(entry.decoding, prompt, answer, 0, entry.name) for prompt, answer in pairs]
