"""Which implementation of a kernel runs: Triton on a GPU, plain torch everywhere else."""

from functools import cache
from importlib.util import find_spec
from os import environ
from typing import Literal

from torch import Tensor

Backend = Literal["auto", "torch", "compiled", "triton"]
"""auto: Triton on a GPU, else torch; compiled: torch with its dense loops compiled for the CPU"""


def use_triton(tensor: Tensor, backend: Backend) -> bool:
    """Whether a kernel over `tensor` runs on Triton; `auto` and `compiled` are Triton on a GPU.

    Raises RuntimeError where Triton is asked for and cannot run. Triton's interpreter (TRITON_INTERPRET=1, set before
    the first kernel is imported) runs it on CPU tensors, slowly: for tests.
    """
    if backend == "torch" or (backend != "triton" and not tensor.is_cuda):
        return False
    if not _installed():
        if backend != "triton":
            return False
        raise RuntimeError("triton is not installed: pip install triton, or use the torch backend")
    if not tensor.is_cuda and environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("Triton kernels need a GPU: use the torch backend, or set TRITON_INTERPRET=1 for tests")
    return True


@cache
def _installed() -> bool:
    return find_spec("triton") is not None
