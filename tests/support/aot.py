"""Real compilation of Triton kernels on a machine without a GPU, exactly as their launchers ask for it.

Inside `compiling(target)` a launch compiles for that target and runs nothing, and the launcher's outputs hold whatever
their memory held. Signature, constants, divisibility and options are those that Triton's own runtime derives from the
arguments of the launch. Only for processes of their own, in which TRITON_INTERPRET was never set.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}
"""bytes that one block may have; Triton looks at this only when it loads a kernel"""

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"  # cuobjdump and nvdisasm ship in the wheel


@dataclass(frozen=True)
class Compiled:
    """One kernel as one launch asked for it, compiled to machine code."""

    kernel: str
    target: str
    constants: dict[str, Any]
    """compile-time arguments, those included that the runtime made constant (integers equal to 1)"""
    warps: int
    grid: tuple[int, ...]
    registers: int
    """per thread; on gfx942 vector registers"""
    spills: int
    """instructions that load or store a spilled register; on gfx942 vector registers spilled"""
    shared: int
    """bytes of shared memory per block"""
    wide_loads: int
    """128-bit loads from global memory, asynchronous copies to shared memory included"""
    instructions: int
    """of the whole kernel, padding left out"""
    loops: int
    """jumps back"""

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.warps * TARGETS[self.target].warp_size

    def described(self) -> str:
        """The compile-time arguments in one line, absent tensors left out."""
        return " ".join(f"{name}={value}" for name, value in self.constants.items() if value is not None)


class _Absent:
    """What Triton's runtime asks of a driver before it compiles."""

    def __init__(self, target: str) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self._target]

    def get_current_device(self) -> str:
        return self._target  # the runtime keeps what it compiled by device

    def get_current_stream(self, device: str) -> int:
        return 0


@contextmanager
def compiling(target: str) -> Iterator[list[Compiled]]:
    """Compile whatever is launched inside the block; yields the list that it is entered in.

    CPU tensors say that they are on a GPU, so that launchers do with them what they do there.
    """
    compiled: list[Compiled] = []
    run = JITFunction.run

    def record(function: JITFunction, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(function, *arguments, grid=grid, warmup=True, **options)
        constants = {function.arg_names[path[0]]: value for path, value in kernel.src.constants.items()}
        if callable(grid):
            grid = grid(constants)
        compiled.append(_examine(kernel, target, constants, tuple(grid)))
        return kernel

    driver.set_active(_Absent(target))
    JITFunction.run = record
    torch.Tensor.is_cuda = property(lambda self: True)  # type: ignore[misc, assignment]
    try:
        yield compiled
    finally:
        JITFunction.run = run
        del torch.Tensor.is_cuda  # what it had before is its base class's


def _examine(kernel: Any, target: str, constants: dict[str, Any], grid: tuple[int, ...]) -> Compiled:
    numbers = _amd(kernel.asm["amdgcn"]) if target.startswith("gfx") else _nvidia(kernel.asm["cubin"])
    return Compiled(
        kernel.src.fn.fn.__name__,
        target,
        constants,
        warps=kernel.metadata.num_warps,
        grid=grid,
        shared=kernel.metadata.shared,
        **numbers,
    )


def _nvidia(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _output("cuobjdump", "-res-usage", file.name)
        code = _output("nvdisasm", "-c", file.name)
    registers = re.search(r"REG:(\d+)", usage)
    assert registers, usage
    operations = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+\s+)?([A-Z][\w.]*)", code)
    return {
        "registers": int(registers[1]),
        "spills": sum(name.startswith(("LDL", "STL")) for name in operations),
        "wide_loads": sum(name.startswith(("LDG.", "LDGSTS.")) and ".128" in name for name in operations),
        "instructions": sum(name != "NOP" for name in operations),
        # Behind its exit every kernel has one jump to itself.
        "loops": _jumps_back(code, r"^(\.L\w+):", r"\bBRA\S*\s.*?`\((\.L\w+)\)") - 1,
    }


def _amd(assembly: str) -> dict[str, int]:
    def noted(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", assembly)
        assert found, f"the assembly does not tell .{name}"
        return int(found[1])

    code = assembly.partition(".section")[0]
    operations = re.findall(r"^\t([a-z]\w+)", code, flags=re.MULTILINE)
    return {
        "registers": noted("vgpr_count"),
        "spills": noted("vgpr_spill_count"),  # scalar registers spill into lanes of vector registers, not into memory
        "wide_loads": sum(name in {"global_load_dwordx4", "buffer_load_dwordx4"} for name in operations),
        "instructions": sum(name != "s_nop" for name in operations),
        "loops": _jumps_back(code, r"^(\.L\w+):", r"^\ts_c?branch\w*\s+(\.L\w+)"),
    }


def _jumps_back(code: str, label: str, jump: str) -> int:
    seen: set[str] = set()
    count = 0
    for line in code.splitlines():
        if found := re.search(label, line):
            seen.add(found[1])
        elif found := re.search(jump, line):
            count += found[1] in seen
    return count


def _output(tool: str, *arguments: str) -> str:
    return subprocess.run([_TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout
