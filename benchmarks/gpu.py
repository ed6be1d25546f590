"""Everything that needs a GPU, in one run of at most eight minutes.

    python benchmarks/gpu.py                      # all sections; the result is benchmarks/results/NAME.json
    python benchmarks/gpu.py --only floor sampler
    python benchmarks/gpu.py --dry-run            # every path once on the CPU, tiny; writes nothing, times mean nothing

Each section runs in a process of its own, with seconds of its own: one that fails or takes too long costs no other,
and the rows that it had measured by then are kept. What was not measured is never called met.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from gpu_place import Place
from gpu_targets import targets, with_shares
from report import machine, print_json, print_table

Row = dict[str, object]
RESULTS = Path(__file__).with_name("results")
TOTAL = 470.0
"""seconds of the whole run"""
DRY_BUDGET = 120.0
START = 10.0
"""seconds in which a process has imported what it needs"""


class Section(NamedTuple):
    """One part of the run; its module is imported in its own process, since kernels are compiled where they run."""

    module: str
    function: str
    budget: float
    """seconds; what one section leaves over the next ones may not take"""


SECTIONS: dict[str, Section] = {
    "correctness": Section("gpu_operators", "correctness", 100),
    "floor": Section("gpu_sampler", "floor", 15),
    "bandwidth": Section("gpu_sampler", "bandwidth", 15),
    "capture": Section("gpu_operators", "capture", 30),
    "sampler": Section("gpu_sampler", "sampler", 130),
    "draws": Section("gpu_sampler", "draws", 20),
    "decode-1b": Section("gpu_decode", "decode_1b", 60),
    "decode-8b": Section("gpu_decode", "decode_8b", 80),
    "sanitizers": Section("gpu_operators", "sanitizers", 60),
}
TIMELESS = {"correctness", "capture", "draws", "sanitizers"}
"""what a dry run can judge"""


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    if args.section:
        _run(args.section, Path(args.rows), dry=args.dry_run, budget=args.budget)
        return
    if not args.dry_run and not torch.cuda.is_available():
        sys.exit("this benchmark needs a CUDA GPU, and torch sees none; --dry-run runs its paths on the CPU")
    began = perf_counter()
    found: dict[str, dict[str, Any]] = {}
    for name in args.only:
        left = TOTAL - (perf_counter() - began)
        budget = DRY_BUDGET if args.dry_run else min(SECTIONS[name].budget, left)
        if budget < 5:
            found[name] = {"status": "not run: no time left", "seconds": 0.0, "rows": []}
            continue
        _say(f"{name}: at most {budget:.0f} s")
        found[name] = _apart(name, dry=args.dry_run, budget=budget)
        _say(f"{name}: {found[name]['status']}, {found[name]['seconds']:.0f} s, {len(found[name]['rows'])} rows")
    _report(found, args, perf_counter() - began)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the CPU; nothing is written")
    parser.add_argument("--name", help="of the result; absent: the GPU's")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the result goes")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--rows", help=argparse.SUPPRESS)
    parser.add_argument("--budget", type=float, default=DRY_BUDGET, help=argparse.SUPPRESS)
    return parser


def _apart(name: str, *, dry: bool, budget: float) -> dict[str, Any]:
    """Run a section in a process of its own; its rows, and whether it came to its end."""
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if dry else {})
    began = perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        rows, errors = Path(folder) / "rows", Path(folder) / "errors"
        command = [sys.executable, __file__, "--section", name, "--rows", str(rows), "--budget", str(budget)]
        with errors.open("w") as said:
            process = subprocess.Popen([*command, *(["--dry-run"] if dry else [])], env=environment, stderr=said)
            try:
                code = process.wait(budget + START)
                status = "ok" if code == 0 else f"failed: {_last(errors.read_text()) or f'exit status {code}'}"
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                status = "stopped: out of time"
        lines = rows.read_text().splitlines() if rows.exists() else []
    return {"status": status, "seconds": perf_counter() - began, "rows": [json.loads(line) for line in lines]}


def _run(name: str, path: Path, *, dry: bool, budget: float) -> None:
    """In the process of a section: write its rows as they come."""
    section = SECTIONS[name]
    measure: Callable[[Place], Iterator[Row]] = getattr(import_module(section.module), section.function)
    with path.open("w") as file:
        for row in measure(Place(dry, budget)):
            print(json.dumps(row, default=str), file=file, flush=True)


def _report(found: dict[str, dict[str, Any]], args: argparse.Namespace, seconds: float) -> None:
    measured = with_shares({name: section["rows"] for name, section in found.items()})
    for name, section in found.items():
        section["rows"] = measured[name]
        print(f"\n{name}: {section['status']}")
        for columns in dict.fromkeys(tuple(row) for row in section["rows"]):  # rows of one form together
            print_table([row for row in section["rows"] if tuple(row) == columns])
    judged = targets({name: rows for name, rows in measured.items() if not args.dry_run or name in TIMELESS})
    rows: list[Row] = [target._asdict() for target in judged]
    print("\ntargets")
    print_table([row | {"met": {True: "yes", False: "NO", None: "not measured"}[row["met"]]} for row in rows])
    conditions = {"driver": _driver(), "cuda": torch.version.cuda, "triton": _triton(), "seconds": seconds}
    if not args.dry_run:
        name = args.name or re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
        args.folder.mkdir(parents=True, exist_ok=True)
        path = args.folder / f"{name}.json"
        run = {"benchmark": "gpu", **machine(), **conditions, "sections": found, "targets": rows}
        path.write_text(json.dumps(run, indent=1, default=str) + "\n")
        print(f"\nwritten to {path}")
    print_json("gpu", rows, **conditions, dry_run=args.dry_run)
    met, known = sum(t.met is True for t in judged), sum(t.met is not None for t in judged)
    broken = sum(section["status"] != "ok" for section in found.values())
    print(
        f"{met} of {known} measured targets met, {len(judged) - known} not measured, "
        f"{broken} of {len(found)} sections not finished, {seconds:.0f} s"
        + (" (dry run: times mean nothing)" if args.dry_run else "")
    )


def _driver() -> str | None:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _triton() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    version: str = triton.__version__
    return version


def _last(text: str) -> str:
    return next((line.strip()[:300] for line in reversed(text.splitlines()) if line.strip()), "")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
