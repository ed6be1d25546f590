"""What the process runs on: hardware, libraries, and the memory that it holds now."""

import os
import platform
from functools import cache
from pathlib import Path

import torch
import transformers

MIB = 2**20


@cache
def machine() -> dict[str, str | int | bool | None]:
    """Hardware and versions; they do not change while the process runs."""
    cpu = next(
        (line.split(":")[1].strip() for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "bf16_instructions": torch.backends.mkldnn.is_available()
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def memory() -> dict[str, float | None]:
    """Mebibytes held now: `resident` of the process, `gpu` by its tensors; None where it cannot be told."""
    pages = _read("/proc/self/statm").split()
    resident = int(pages[1]) * os.sysconf("SC_PAGE_SIZE") / MIB if pages else None
    gpu = torch.cuda.memory_allocated() / MIB if torch.cuda.is_available() else None
    return {"resident": resident, "gpu": gpu}


def _read(path: str) -> str:
    file = Path(path)
    return file.read_text() if file.exists() else ""
