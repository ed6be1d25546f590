"""Every Triton kernel, as every launcher asks for it, compiles to machine code within its budget."""

import ast
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from launches import LAUNCHES

pytest.importorskip("triton")
pytestmark = pytest.mark.timeout(1200)  # the first test waits for all compilations

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"
Outcomes = dict[str, list[dict[str, Any]]]


def compiling_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """By launch, what it became on each target."""
    path = tmp_path_factory.mktemp("compiled") / "outcomes.json"
    run = subprocess.run(
        [sys.executable, SUPPORT / "compile_gate.py", "--json", path],
        env=compiling_environment(),
        capture_output=True,
        text=True,
    )
    assert path.exists(), run.stderr
    found: Outcomes = defaultdict(list)
    for outcome in json.loads(path.read_text()):
        found[outcome["launch"]].append(outcome)
    return found


@pytest.mark.parametrize("launch", LAUNCHES)
def test_compiles_within_budget(launch: str, outcomes: Outcomes) -> None:
    failures = [line for outcome in outcomes[launch] for line in outcome["failures"]]
    assert not failures, "\n".join(failures)
    assert len(outcomes[launch]) == 3


def test_every_kernel_is_launched(outcomes: Outcomes) -> None:
    """A kernel is what some launcher writes with a grid: kernel[grid](...)."""
    written = {
        node.func.value.id
        for path in (ROOT / "kernels").glob("*_triton.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript) and isinstance(node.func.value, ast.Name)
    }
    assert written
    compiled = {kernel["kernel"] for each in outcomes.values() for outcome in each for kernel in outcome["kernels"]}
    assert not written - compiled, "add a launch to tests/support/launches.py"


def test_every_option_is_compiled_both_ways(outcomes: Outcomes) -> None:
    """A flag is compiled as true and as false, a tensor that may be absent (a constant None) as present too."""
    seen: dict[tuple[str, str], set[object]] = defaultdict(set)
    kernels = [kernel for each in outcomes.values() for outcome in each for kernel in outcome["kernels"]]
    optional = {
        (kernel["kernel"], name)
        for kernel in kernels
        for name, value in kernel["constants"].items()
        if value is None or isinstance(value, bool)
    }
    for kernel in kernels:
        for name in (name for of, name in optional if of == kernel["kernel"]):
            seen[kernel["kernel"], name].add(kernel["constants"].get(name, "a tensor"))
    one_way = {key for key, values in seen.items() if len(values) < 2} - ONE_WAY.keys()
    assert not one_way, "add a launch to tests/support/launches.py"


ONE_WAY = {
    ("attend_pages", "WIDEN"): "true in the interpreter alone",
}


def test_gate_refuses_what_only_the_interpreter_runs() -> None:
    code = (
        "import compile_gate, divergent\n"
        "for target in compile_gate.TARGETS:\n"
        "    print(*compile_gate.judge('divergent', divergent.LAUNCH, target).failures)\n"
    )
    environment = compiling_environment() | {"PYTHONPATH": str(SUPPORT)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    lines = run.stdout.splitlines()
    assert len(lines) == 3
    assert all("divergent" in line and "Error" in line for line in lines)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="compiled on this machine, not interpreted")
def test_interpreter_runs_what_the_gate_refuses() -> None:
    from divergent import launch

    assert launch(torch.arange(4.0)).item() == 3.0
