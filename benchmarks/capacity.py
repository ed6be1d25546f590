"""Measures what `trimtab plan` reckons with, and holds its predictions against a server.

--costs       what each strategy makes its models read, counted by the server: benchmarks/bench/data/costs.yaml
--calibrate   how long this machine takes: a file for `trimtab plan --gpu FILE`
--check       calibrates, then runs three mixes near saturation: requests per second, predicted and measured

All run against a server of their own with the demo model, unless --url names one that does nothing else.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from time import monotonic
from typing import Any

import yaml
from report import machine, print_json, print_table

from trimtab.bench.capacity import calibrating, checking, costing
from trimtab.bench.capacity.costs import Table, read_costs
from trimtab.bench.capacity.machines.measured import Calibration, Workstation, machine_of
from trimtab.bench.capacity.naming import unknown
from trimtab.bench.capacity.probe import Probe
from trimtab.bench.errors import BenchError
from trimtab.bench.serve import served
from trimtab.engine.settings import CPU_POOL

GOAL = 0.2
"""of the prediction's error"""
DEMO = "demo"
COSTS = Path(__file__).parent / "bench" / "data" / "costs.yaml"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--costs", nargs="?", type=Path, const=COSTS, metavar="FILE", help="write the table of costs")
    what.add_argument("--calibrate", type=Path, metavar="FILE", help="write a calibration, .json or .yaml")
    what.add_argument("--check", action="store_true", help="compare predictions with measurements")
    parser.add_argument("--only", nargs="+", default=[], help="strategies of --costs, or mixes of --check")
    parser.add_argument("--url", help="a server that does nothing else; absent: one is started")
    parser.add_argument("--gpu", help="with --check: a calibration that there is already")
    parser.add_argument("--name", default="cpu", help="of the calibration")
    parser.add_argument("--model", default=DEMO, help="what the server of the run serves, and what the file calls it")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=2, help="of the server")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="batches to calibrate")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=45.0, help="of each mix, about")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--arm", default="positivity-arm", help="adapter guide that reads along")
    parser.add_argument("--reward", default="positivity", help="adapter guide that judges")
    args = parser.parse_args()
    try:
        _check_options(args)
        with _probe(args) as probe:
            if args.costs is not None:
                return _costs(args, probe)
            return _calibrate(args, probe) if args.calibrate is not None else _check(args, probe)
    except BenchError as error:
        print(f"capacity: {error}", file=sys.stderr)
        return 1


def _check_options(args: argparse.Namespace) -> None:
    """Raise BenchError for what would go wrong after minutes of measuring."""
    if args.calibrate is None:
        names = [each["strategy"] for each in costing.settings()] if args.costs else [e.name for e in checking.CHECKS]
        for name in args.only:
            if name not in names:
                raise BenchError(f"--only: {unknown('strategy' if args.costs else 'mix', name, dict.fromkeys(names))}")
    if args.costs == COSTS and (args.url is not None or args.model != DEMO):
        raise BenchError(f"--costs: {COSTS.name} is of the demo model alone: name a file of your own, --costs FILE")
    if args.costs is not None and args.costs.exists():
        before = read_costs(args.costs).measured.get("model")
        if before != args.model:
            raise BenchError(
                f"--costs {args.costs} holds what {before!r} did, and --model is {args.model!r}: name another file"
            )


def _costs(args: argparse.Namespace, probe: Probe) -> int:
    """Measure, and put the rows in the place of those that the file has of the same decodings."""
    wanted = [each for each in costing.settings() if not args.only or each["strategy"] in args.only]
    rows = costing.measure(probe, wanted, _say)
    old = read_costs(args.costs).rows if args.costs.exists() else ()
    merged = {json.dumps(each.decoding, sort_keys=True): each for each in (*old, *rows)}
    guides = "those that come with trimtab" if args.url is None else "those of the server"
    measured = {"model": args.model, "guides": guides, "version": version("trimtab"), "commit": machine()["commit"]}
    _write(args.costs, Table(measured=measured, rows=tuple(merged.values())).model_dump(mode="json"))
    print_json("capacity-costs", [each.model_dump() for each in rows], file=str(args.costs))
    return 0


def _calibrate(args: argparse.Namespace, probe: Probe) -> int:
    found = _calibrated(args, probe)
    _write(args.calibrate, found.model_dump(mode="json"))
    print_json("capacity-calibration", [found.model_dump(mode="json")], file=str(args.calibrate))
    return 0


def _check(args: argparse.Namespace, probe: Probe) -> int:
    began = monotonic()
    checks = [each for each in checking.CHECKS if not args.only or each.name in args.only]
    site = machine_of(args.gpu) if args.gpu is not None else Workstation(_calibrated(args, probe))
    compared = checking.check(probe, site, checks, args.model, seconds=args.seconds, seed=args.seed, say=_say)
    rows = [checking.told(each) for each in compared]
    print_table(rows)
    worst = max(abs(each.error) for each in compared)
    print_json(
        "capacity",
        rows,
        goal=GOAL,
        met=worst <= GOAL,
        worst=round(worst, 4),
        mean=round(mean(abs(each.error) for each in compared), 4),
        seconds=round(monotonic() - began, 1),
        threads=args.threads,
        calibration=site.calibration.model_dump(mode="json") if isinstance(site, Workstation) else site.name,
    )
    return 0 if worst <= GOAL else 1


def _calibrated(args: argparse.Namespace, probe: Probe) -> Calibration:
    told: dict[str, Any] = {**machine(), "dtype": args.dtype, "threads": args.threads}
    planned = calibrating.runs(args.rows, arm=args.arm, reward=args.reward)
    return calibrating.calibrate(
        probe,
        planned,
        args.rows,
        rounds=args.rounds,
        name=args.name,
        model=args.model,
        machine=told,
        pool_tokens=CPU_POOL,
        say=_say,
    )


@contextmanager
def _probe(args: argparse.Namespace) -> Iterator[Probe]:
    """A server that has answered once: first requests are slow."""
    if args.url is not None:
        yield Probe(args.url)
        return
    with served(args.model, {"engine.threads": args.threads, "engine.dtype": args.dtype}) as child:
        yield Probe(child.url)


def _write(path: Path, values: dict[str, Any]) -> None:
    if path.suffix == ".json":
        path.write_text(json.dumps(values, indent=2) + "\n")
    else:
        path.write_text(yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=120))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
