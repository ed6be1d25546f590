"""What every benchmark prints: a table for people, then one JSON line for programs."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import transformers


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows of equal keys, aligned."""
    cells = [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def print_json(name: str, rows: Sequence[Mapping[str, object]], **conditions: object) -> None:
    """Print the run as one JSON line with the machine and the commit it was measured on."""
    run = {"benchmark": name, **machine(), **conditions, "rows": list(rows)}
    print(json.dumps(run, default=str))


def machine() -> dict[str, object]:
    """Hardware, versions and commit."""
    cpu = next(
        (line.split(":")[1].strip() for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")),
        platform.processor(),
    )
    here = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True)
    return {
        "cpu": cpu,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "bf16_instructions": bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": commit.stdout.strip() or None,
    }


def _text(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _read(path: str) -> str:
    file = Path(path)
    return file.read_text() if file.exists() else ""
