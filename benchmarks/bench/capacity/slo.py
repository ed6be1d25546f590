"""`--slo p95=5s`: what latency is asked for."""

import re
from collections.abc import Sequence

from trimtab.bench.capacity.naming import unknown
from trimtab.bench.errors import BenchError

NAMES = ("mean", "p50", "p95")
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0}


def parse_slo(given: Sequence[str]) -> dict[str, float]:
    """Seconds by name; raises BenchError."""
    found = {}
    for each in given:
        matched = re.fullmatch(r"(\w+)=(\d+(?:\.\d+)?)(ms|s|m)", each.strip())
        if matched is None:
            raise BenchError(f"--slo {each!r}: write it as p95=5s, with ms, s or m")
        name, number, unit = matched.groups()
        if name not in NAMES:
            raise BenchError(f"--slo {each}: {unknown('measure', name, NAMES)}")
        found[name] = float(number) * _UNITS[unit]
    return found
