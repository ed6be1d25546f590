"""Compile every launch of `launches.LAUNCHES` for every target, and hold what comes out against the budgets.

    python tests/support/compile_gate.py                        # a table, and exit status 1 where something failed
    python tests/support/compile_gate.py --only 'sample*' --target sm_90 --json out.json

No GPU and no driver is needed: ptxas, the disassembler and AMD's assembler and linker ship in Triton's wheel. Every
compilation is a real one, from a cache that is empty at first, down to the machine code that a GPU would load.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from time import perf_counter

from launches import BUDGETS, LAUNCHES, Launch

TARGETS = ("sm_80", "sm_90", "gfx942")
SHOWN = {"registers": "registers", "spills": "spills", "shared": "shared bytes", "instructions": "instructions"}
BEGIN = "<!-- written by tests/support/compile_gate.py -->"
END = "<!-- end of what tests/support/compile_gate.py writes -->"
WORKERS = min(2, os.cpu_count() or 1)


@dataclass(frozen=True)
class Outcome:
    """What one launch became on one target."""

    launch: str
    target: str
    kernels: list[dict[str, object]] = field(default_factory=list)
    """one per kernel launched: the fields of `aot.Compiled`, and instructions per element where that is measured"""
    failures: list[str] = field(default_factory=list)
    """what is wrong, a line each"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="a pattern of names of launches")
    parser.add_argument("--target", choices=TARGETS, nargs="+", default=list(TARGETS))
    parser.add_argument("--json", type=Path, help="write the outcomes here")
    parser.add_argument("--markdown", type=Path, help="write the worst of each kernel between the markers of this file")
    args = parser.parse_args(argv)
    began = perf_counter()
    names = [name for name in LAUNCHES if fnmatch(name, args.only)]
    outcomes = compile_all(names, args.target)
    if args.json:
        args.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes]))
    if args.markdown:
        _fill(args.markdown, outcomes)
    print("\n".join(_table(outcomes)))
    failures = [line for outcome in outcomes for line in outcome.failures]
    print("\n".join(["", *failures]) if failures else "", end="\n" if failures else "")
    kernels = len({(k["kernel"], k["target"], str(k["constants"])) for o in outcomes for k in o.kernels})
    print(
        f"{len(names)} launches x {len(args.target)} targets, {kernels} different kernels, {len(failures)} failures, "
        f"{perf_counter() - began:.0f} s, {getrusage(RUSAGE_CHILDREN).ru_utime:.0f} s of processors"
    )
    sys.exit(bool(failures))


def compile_all(names: Sequence[str], targets: Sequence[str]) -> list[Outcome]:
    """Compile in processes of their own, in which Triton compiles and does not interpret."""
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="trimtab-aot-") as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn")) as pool:
            futures = [pool.submit(compile_one, name, target) for name in names for target in targets]
            outcomes = []
            for future in as_completed(futures):
                outcomes.append(future.result())
                if sys.stderr.isatty():
                    print(f"\r{len(outcomes)} of {len(futures)} ", end="", file=sys.stderr, flush=True)
    return sorted(outcomes, key=lambda o: (names.index(o.launch), targets.index(o.target)))


def compile_one(name: str, target: str) -> Outcome:
    """Compile one launch of the table."""
    return judge(name, LAUNCHES[name], target)


def judge(name: str, launch: Launch, target: str) -> Outcome:
    """Compile `launch` for `target` and tell what it needs and where that is too much."""
    from aot import SHARED_LIMIT, compiling

    outcome = Outcome(name, target)
    with compiling(target) as compiled:
        try:
            launch.run()
        except Exception as error:  # whatever a compiler throws is what this is here to show
            last = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "")
            outcome.failures.append(f"{name} {target}: {type(error).__name__}: {last[:200]}")
    if not compiled and not outcome.failures:
        outcome.failures.append(f"{name} {target}: launched no Triton kernel")
    for each in compiled:
        where = f"{name} {target} {each.kernel}"
        budget = BUDGETS.get(each.kernel)
        if budget is None:
            outcome.failures.append(f"{where}: has no line in launches.BUDGETS")
            continue
        tile = each.constants.get(budget.tile) if budget.tile else None
        per_element = each.instructions / (tile / each.threads) if tile and not each.loops else None
        outcome.kernels.append(asdict(each) | {"per_element": per_element})
        limits = [
            ("registers", each.registers, budget.registers),
            ("spills", each.spills, budget.spills),
            ("bytes of shared memory", each.shared, SHARED_LIMIT[target]),
        ]
        nvidia = target.startswith("sm_")  # what counts there is tuned; for AMD the code is portable, not tuned
        if nvidia and launch.per_element is not None and budget.tile:
            if per_element is None:
                outcome.failures.append(f"{where}: has a loop, so its instructions per element cannot be told")
            else:
                limits.append(("instructions per element", per_element, launch.per_element))
        for what, value, limit in limits:
            if value > limit:
                outcome.failures.append(f"{where}: {value:g} {what}, at most {limit:g} ({each.described()})")
        if nvidia and budget.wide and launch.aligned and not each.wide_loads:
            outcome.failures.append(f"{where}: no 128-bit load of aligned rows ({each.described()})")
    return outcome


def _table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    widths = (34, 7, 30, 5, 6, 7, 5, 6, 8)
    yield _line(("launch", "target", "kernel", "regs", "spills", "shared", "128b", "instr", "per elem"), widths)
    for outcome in outcomes:
        for k in outcome.kernels:
            per_element = f"{k['per_element']:.1f}" if k["per_element"] else "-"
            numbers = (k[key] for key in ("registers", "spills", "shared", "wide_loads", "instructions"))
            yield _line((outcome.launch, outcome.target, k["kernel"], *numbers, per_element), widths)


def _fill(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write a row per kernel, the worst of all launches on each target; exits if the file has no place for it."""
    text = path.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"{path} has no place for the table: put the lines {BEGIN} and {END} where it should stand")
    worst: dict[str, dict[str, dict[str, float]]] = {}
    for outcome in outcomes:
        for k in outcome.kernels:
            of = worst.setdefault(str(k["kernel"]), {}).setdefault(outcome.target, dict.fromkeys(SHOWN, 0))
            of.update({name: max(of[name], k[name] or 0) for name in SHOWN})  # type: ignore[call-overload]
    columns = [f"kernel, worst on {', '.join(TARGETS)}", *SHOWN.values()]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for kernel, by_target in worst.items():
        cells = [", ".join(f"{by_target[t][name]:.0f}" for t in TARGETS if t in by_target) for name in SHOWN]
        lines.append(f"| `{kernel}` | {' | '.join(cells)} |")
    for outcome in outcomes:
        limit = LAUNCHES[outcome.launch].per_element
        for k in outcome.kernels:
            if limit and k["per_element"] and outcome.target.startswith("sm_"):
                told = f"{k['per_element']:.1f} instructions per element, at most {limit:g}"
                lines.append(f'\n`{k["kernel"]}` in "{outcome.launch}" on {outcome.target}: {told}.')
    path.write_text("\n".join([f"{before}{begin}", *lines, f"{end}{after}"]))


def _line(cells: Sequence[object], widths: Sequence[int]) -> str:
    sides = "<<<" + ">" * (len(widths) - 3)
    return " ".join(f"{cell!s:{side}{width}}" for cell, side, width in zip(cells, sides, widths, strict=True))


if __name__ == "__main__":
    main()
