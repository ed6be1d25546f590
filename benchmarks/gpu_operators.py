"""Every Triton operator once, on tiny shapes: what is captured without a synchronisation, and what sanitizers run.

compute-sanitizer --tool memcheck python benchmarks/gpu_operators.py
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from gpu_place import Place, Run, warm_up
from torch import Tensor

from trimtab.kernels.candidates import best_candidates
from trimtab.kernels.edits import Edits
from trimtab.kernels.mixing import Aux, Placement
from trimtab.kernels.philox import Keys
from trimtab.kernels.row_adapters import AdapterRows, AdapterStacks, add_row_adapters
from trimtab.kernels.row_vectors import add_row_vectors
from trimtab.kernels.survivors import RowParams

Row = dict[str, object]
ROOT = Path(__file__).resolve().parents[1]
BATCH, VOCAB = 2, 300
PROCESSES = 6  # of tests at a time: each compiles its kernels on a core of its own


def operators(place: Place) -> dict[str, Run]:
    """Calls of the launchers; they read what they are given and leave it to the caller to wait."""
    from trimtab.kernels.mixing_triton import mix_triton
    from trimtab.kernels.paged_attention_triton import paged_attention_triton
    from trimtab.kernels.steer_sample_triton import steer_sample_triton

    device = place.device
    base = place.random(BATCH, VOCAB)
    weight = torch.ones(BATCH, device=device)
    aux = [Aux(place.random(BATCH, VOCAB), Placement.of(range(BATCH), [0.5] * BATCH, BATCH, device))]
    ids = torch.arange(4, device=device).expand(BATCH, 4).contiguous()
    edits = Edits(ids, torch.full((BATCH, 4), 1.1, device=device), torch.zeros(BATCH, 4, device=device))
    bitmask = torch.full((BATCH, -(-VOCAB // 32)), -2, dtype=torch.int32, device=device)
    keys = Keys(*torch.zeros(3, BATCH, dtype=torch.int64, device=device))
    one, off = torch.ones(BATCH), torch.zeros(BATCH)
    plain = RowParams(one, off.long(), one, off)
    filtered = RowParams(one, off.long() + 20, one * 0.9, off + 0.01)
    for params in (plain, filtered):
        params.columns(device)  # what is not there yet would be copied inside a capture

    def sample(params: RowParams, alpha: Tensor | None, reference: Tensor | None, full: bool) -> object:
        return steer_sample_triton(
            base,
            params,
            keys,
            base_weight=weight,
            aux=aux,
            edits=edits,
            bitmask=bitmask,
            alpha=alpha,
            reference=reference,
            full=full,
        )

    stacks = AdapterStacks(64, 64, torch.float32, device)
    stacks.add(0, place.random(4, 64), place.random(4, 64))
    rows = AdapterRows([0, -1], torch.tensor([0, -1], dtype=torch.int32, device=device))
    x, y = place.random(BATCH, 64), place.random(BATCH, 64)
    query, pages = place.random(BATCH, 4, 1, 64), place.random(8, 16, 2, 2, 64)
    blocks = torch.arange(8, dtype=torch.int32, device=device).view(BATCH, 4)
    positions = torch.full((BATCH, 1), 40, dtype=torch.int32, device=device)
    attend = partial(paged_attention_triton, query, pages, blocks, positions, positions)
    return {
        "steer_sample": partial(sample, plain, None, None, True),
        "steer_sample, filters": partial(sample, filtered, weight * 0.1, None, True),
        "steer_sample, reference": partial(sample, plain, None, place.random(BATCH, VOCAB), True),
        "steer_sample, token alone": partial(sample, plain, None, None, False),
        "mix": lambda: mix_triton(base, weight, aux, edits, bitmask),
        "best_candidates": lambda: best_candidates(base, 10, backend="triton"),
        "paged_attention": partial(attend, splits=2),
        "paged_attention, one split": partial(attend, splits=1),
        "row_adapters": lambda: add_row_adapters(y, x, stacks, rows, "triton"),
        "row_vectors": lambda: add_row_vectors(y[:, None], x, None, "triton"),
    }


def capture(place: Place) -> Iterator[Row]:
    """Whether each operator can be captured in a CUDA graph while torch refuses every synchronisation."""
    for name, run in operators(place).items():
        error = None
        try:
            _captured(place, run)
        except RuntimeError as refused:
            error = str(refused).splitlines()[0]
        yield {"operator": name, "captured": error is None, "error": error}


def _captured(place: Place, run: Run) -> None:
    if place.dry:
        run()
        return
    warm_up([run])
    graph = torch.cuda.CUDAGraph()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.graph(graph):
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph.replay()
    torch.cuda.synchronize()


def sanitizers(place: Place) -> Iterator[Row]:
    """compute-sanitizer's memcheck and racecheck over every operator."""
    command = shutil.which("compute-sanitizer")
    for tool in ("memcheck", "racecheck"):
        if command is None:
            yield {"tool": tool, "ran": False, "why": "compute-sanitizer is not on the PATH"}
            continue
        # Torch's caching allocator would hide a read behind the end of a tensor.
        environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        arguments = [command, "--tool", tool, "--error-exitcode", "9", sys.executable, __file__]
        try:
            run = subprocess.run(
                arguments, env=environment, capture_output=True, text=True, timeout=max(1.0, place.left)
            )
        except subprocess.TimeoutExpired:
            yield {"tool": tool, "ran": False, "why": "took too long"}
            continue
        summary = re.findall(r"=+ (.*SUMMARY.*)", run.stdout + run.stderr)
        yield {"tool": tool, "ran": True, "clean": run.returncode == 0, "summary": summary[-1:]}


def correctness(place: Place) -> Iterator[Row]:
    """The tests of the kernels, which run on the GPU when there is one; a process for each file."""
    tests = ROOT / "tests" / "kernels"
    files = sorted(tests.glob("test_ops_triton.py" if place.dry else "test_*.py"))
    with ThreadPoolExecutor(PROCESSES) as pool:
        yield from pool.map(partial(_tested, place), (file for file in files if file.name != "test_compile.py"))


def _tested(place: Place, file: Path) -> Row:
    paths = [str(ROOT / name) for name in ("src", "tests/support", "benchmarks")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
        "PYTHONUNBUFFERED": "1",
    }
    # Without the project's pytest settings, which name plugins that a GPU machine may lack.
    options = ["-c", os.devnull, "--rootdir", str(ROOT), "--import-mode=importlib", "-p", "no:cacheprovider"]
    arguments = [sys.executable, "-m", "pytest", "-q", "--tb=line", *options, str(file)]
    row: Row = {"file": file.name, "passed": 0, "failed": 0, "finished": False, "failures": []}
    try:
        run = subprocess.run(
            arguments, env=environment, capture_output=True, text=True, timeout=max(1.0, place.left - 2)
        )
    except subprocess.TimeoutExpired as stopped:
        said = (stopped.stdout or b"").decode()
        return row | {"passed": said.count("."), "failed": said.count("F")}
    lines = run.stdout.splitlines() or run.stderr.splitlines() or [""]
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error)", lines[-1])}
    finished = run.returncode in {0, 1}
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return row | {
        "passed": counts.get("passed", 0),
        "failed": counts.get("failed", 0) + counts.get("error", 0),
        "finished": finished,
        "failures": failures if finished else lines[-1:],
    }


if __name__ == "__main__":
    for each in operators(Place(dry=False, budget=60)).values():
        each()
    torch.cuda.synchronize()
