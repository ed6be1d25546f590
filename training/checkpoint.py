"""Checkpoints of a run: parameters, the best ones so far and the optimizer's moments in one safetensors file."""

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trimtab.training.errors import TrainingError

NAME = "checkpoint.safetensors"


def save_checkpoint(
    folder: Path,
    progress: str,
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.AdamW,
    best: Mapping[str, Tensor],
) -> None:
    """Write a checkpoint in the place of the last one; TrainingError, the last one kept, where there is no room."""
    tensors = {f"best.{name}": value for name, value in best.items()}
    for name, value in parameters.items():
        state = optimizer.state[value]
        tensors |= {f"value.{name}": value.detach(), f"step.{name}": state["step"].clone()}
        tensors |= {f"mean.{name}": state["exp_avg"], f"square.{name}": state["exp_avg_sq"]}
    write(folder / NAME, lambda path: save_file(tensors, path, {"progress": progress}))


def load_checkpoint(
    folder: Path, parameters: Mapping[str, Tensor], optimizer: torch.optim.AdamW, best: Mapping[str, Tensor]
) -> str | None:
    """Read a checkpoint into parameters, optimizer and `best`; return its progress, None if there is none.

    TrainingError for a checkpoint of other parameters.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file, torch.no_grad():
            there = set(file.keys())
            known = [name for name in parameters if f"value.{name}" in there]
            shapes = {name: tuple(file.get_slice(f"value.{name}").get_shape()) for name in known}
            if shapes != {name: tuple(value.shape) for name, value in parameters.items()}:
                raise TrainingError(f"{path} is a checkpoint of other parameters: pass --restart, or another --out")
            for name, value in parameters.items():
                value.copy_(file.get_tensor(f"value.{name}"))
                best[name].copy_(file.get_tensor(f"best.{name}"))
                optimizer.state[value] = {
                    "step": file.get_tensor(f"step.{name}"),
                    "exp_avg": file.get_tensor(f"mean.{name}"),
                    "exp_avg_sq": file.get_tensor(f"square.{name}"),
                }
            progress: str = file.metadata()["progress"]
    except SafetensorError as error:
        raise TrainingError(f"{path} cannot be read ({error}): pass --restart to begin anew") from error
    return progress


def remove_checkpoint(folder: Path) -> None:
    """Forget a run."""
    (folder / NAME).unlink(missing_ok=True)


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Let `save` write a file and put it at `path` in one step; TrainingError where that fails, the old file kept."""
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save(unfinished)
            unfinished.chmod(0o644)  # safetensors lets only its owner read
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    except Exception as error:  # safetensors raises its own kind for a full disk
        reason = str(error)
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in reason:
            reason = "no space left on the device: free some, and run the same command again"
        raise TrainingError(f"cannot write {path}: {reason}") from error
