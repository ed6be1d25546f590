"""Measures what each strategy makes its models read: one request at a time, by what the server counts."""

from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

import yaml

from trimtab.bench.capacity.costs import Cost
from trimtab.bench.capacity.probe import Asked, Probe
from trimtab.bench.errors import BenchError

PROMPT, ANSWER, REPEATS = 48, 40, 2
"""tokens, tokens, and requests with seeds of their own"""


def settings() -> list[dict[str, Any]]:
    """The decodings that are asked."""
    file = resources.files("trimtab.bench") / "data" / "cost-settings.yaml"
    listed: list[dict[str, Any]] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return listed


def measure(probe: Probe, decodings: Sequence[Mapping[str, Any]], say: Callable[[str], None]) -> list[Cost]:
    """A cost for each decoding; those that the server refuses are told and left out."""
    found = []
    for decoding in decodings:
        try:
            found.append(_measured(probe, decoding))
        except BenchError as error:
            say(f"left out: {error}")
            continue
        say(f"{decoding['strategy']}: {found[-1].ticks:g} steps, tokens {dict(found[-1].tokens)}")
    return found


def _measured(probe: Probe, decoding: Mapping[str, Any]) -> Cost:
    """The mean over a few requests to an idle server."""
    before = probe.counted()
    told = [
        probe.ask(Asked(decoding, PROMPT, ANSWER, seed, label=f"costs {decoding}")) for seed in range(1, REPEATS + 1)
    ]
    after = probe.counted()
    names = sorted({name for each in told for name in each.tokens})

    def mean(values: Sequence[float]) -> float:
        return round(sum(values) / REPEATS, 2)

    return Cost(
        decoding=dict(decoding),
        prompt=mean([each.prompt for each in told]),
        answer=ANSWER,
        ticks=mean([after[0] - before[0]]),
        rows=mean([after[1] - before[1]]),
        tokens={name: mean([each.tokens.get(name, 0) for each in told]) for name in names},
        forwards={name: mean([each.forwards.get(name, 0) for each in told]) for name in names},
        requests=REPEATS,
    )
