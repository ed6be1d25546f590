"""The device that a setting names, checked before anything is loaded."""

import logging
import os

import torch

from trimtab.engine.errors import ModelLoadError

logger = logging.getLogger(__name__)

KEPT_SHAPES = 256
"""products that oneDNN keeps compiled for each of its two caches; a step of one model needs about ten"""


def bound_caches() -> None:
    """Let oneDNN keep a bounded number of compiled products, unless the environment says how many.

    Rows and lengths make ever new shapes, of which torch keeps a thousand by default, a few hundred kilobytes each.
    To be called before the first forward, in any thread.
    """
    for variable in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(variable, str(KEPT_SHAPES))


def find_device(name: str) -> torch.device:
    """The device called `name`; `auto` is the first GPU when there is one, else the CPU.

    Raises ModelLoadError for a name that means nothing here. A GPU becomes the calling thread's current one.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelLoadError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N") from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise ModelLoadError(f"device {name!r} is not supported: use auto, cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        why = "has no CUDA" if torch.version.cuda is None and torch.version.hip is None else "sees no GPU"
        raise ModelLoadError(
            f"device {name!r}: torch {torch.__version__} {why}: install a CUDA build of torch (pytorch.org) and the "
            "GPU's driver, or set device: cpu"
        )
    index, count = device.index or 0, torch.cuda.device_count()
    if index >= count:
        last = f"cuda:0 to cuda:{count - 1}" if count > 1 else "cuda:0 alone"
        raise ModelLoadError(f"device {name!r} does not exist: this machine has {last}")
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def check_dtype(dtype: torch.dtype, device: torch.device) -> None:
    """Warn of bfloat16 on a GPU that only emulates it."""
    if (
        device.type == "cuda"
        and dtype == torch.bfloat16
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        logger.warning("%s has no bfloat16: set dtype: float16", torch.cuda.get_device_name(device))
