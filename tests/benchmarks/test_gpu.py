"""The GPU benchmark: its paths run tiny on the CPU, and it never calls met what it did not measure."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu
import gpu_decode
import gpu_operators
import gpu_sampler
import pytest
import torch
from gpu_place import Place
from gpu_targets import targets, with_shares

SCRIPT = Path(gpu.__file__)


def dry() -> Place:
    """The CPU, with two minutes from now on."""
    return Place(dry=True, budget=120.0)


without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a dry run is for machines without a GPU")

COPY = [{"what": "copy", "GB/s": 3000.0}]
PASS = {"batch": 256, "vocab": 151_936, "dtype": "float32", "guides": 1, "bytes": 3e8, "warm us": 100.0}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)


def judged(sections: dict[str, list[dict[str, Any]]]) -> dict[str, bool]:
    """What was measured, and whether it was met."""
    return {target.what: target.met for target in targets(sections) if target.met is not None}


def test_nothing_measured_is_nothing_met() -> None:
    assert not judged({})
    assert not judged({"sampler": [PASS | {"cold us": 120.0}]}), "a share needs this run's own bandwidth"


@pytest.mark.parametrize(("cold", "met"), [(120.0, True), (130.0, False)])
def test_share_is_of_the_copy_of_the_same_run(cold: float, met: bool) -> None:
    sections = {"bandwidth": COPY, "sampler": [PASS | {"cold us": cold}, PASS | {"cold us": 110.0}]}
    assert judged(sections) == {"share of copy bandwidth, float32, 2 tensors, cold, worst": met}
    shared = with_shares(sections)["sampler"][0]
    assert shared["share of copy"] == pytest.approx(100 / cold)


def test_small_batches_are_no_bandwidth() -> None:
    small = PASS | {"batch": 8, "bytes": 9.7e6, "cold us": 50.0, "warm us": 10.5}
    assert judged({"bandwidth": COPY, "sampler": [small]}) == {"us per pass in a graph, B <= 8, worst": False}


def test_decoding_is_held_against_bytes_and_plain_steps() -> None:
    rows = [
        {"model": "8B", "what": "plain", "batch": 1, "ms/step": 6.0, "bytes": 15e9},
        {"model": "8B", "what": "plain", "batch": 8, "ms/step": 6.0, "bytes": 15e9},
        {"model": "8B", "what": "guided", "batch": 8, "ms/step": 7.2, "bytes": 16e9},
    ]
    assert judged({"bandwidth": COPY, "decode-8b": rows}) == {
        "8B, batch 1, share of the memory-bound limit": True,  # 15e9 / 3e12 = 5 ms
        "8B with a 135M guide over plain, batch 8": False,
    }


def test_files_that_did_not_finish_count_as_failing() -> None:
    rows = [{"file": "a", "passed": 9, "failed": 0, "finished": True}]
    assert all(judged({"correctness": rows}).values())
    assert not any(judged({"correctness": [*rows, rows[0] | {"finished": False}]}).values())


@without_gpu
def test_without_a_gpu_it_says_so() -> None:
    done = run()
    assert done.returncode == 1
    assert "needs a CUDA GPU" in done.stderr


@without_gpu
def test_dry_run_reports_and_writes_nothing(tmp_path: Path) -> None:
    done = run("--dry-run", "--only", "bandwidth", "--folder", str(tmp_path / "results"))
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("0 of 0 measured targets met")
    assert "dry run" in last
    assert not (tmp_path / "results").exists()


def test_a_section_that_takes_too_long_is_stopped() -> None:
    found = gpu._apart("bandwidth", dry=True, budget=0.1 - gpu.START)
    assert found["status"] == "stopped: out of time"


@without_gpu
def test_every_operator_is_called() -> None:
    rows = list(gpu_operators.capture(dry()))
    assert all(row["captured"] for row in rows), rows
    assert len(rows) >= 10


@without_gpu
def test_passes_are_timed_beside_eager_and_compiled() -> None:
    row = next(gpu_sampler.sampler(dry()))
    assert all(row[name] > 0 for name in row if name.endswith(" us"))
    assert "compiled us" in row
    floor = list(gpu_sampler.floor(dry()))
    assert floor
    assert all(row["in a graph us"] > 0 for row in floor)


@without_gpu
def test_draws_are_counted() -> None:
    rows = list(gpu_sampler.draws(dry()))
    assert [row["target"] for row in rows] == ["normal", "heavy tail"]
    assert all(row["draws"] >= 64 and row["chi2"] < row["bound"] for row in rows)


@without_gpu
def test_decode_takes_the_engine_and_generate() -> None:
    rows = list(gpu_decode.decode_1b(dry()))
    assert [row["what"] for row in rows] == ["load", "plain", "guided", "generate"]


def test_bytes_of_a_step_are_those_of_the_weights_and_the_keys() -> None:
    config = gpu_decode.llama("8B")
    with torch.device("meta"):
        model = gpu_decode.AutoModelForCausalLM.from_config(config)
    weights = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
    kept = 3 * 100 * 32 * 2 * 8 * 128
    assert gpu_decode._bytes(config, 3, 100) == 2 * (weights + kept)
