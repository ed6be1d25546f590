"""The training loop that every kind of guide shares: steps, evaluation, early stop, checkpoints, resumption."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from tqdm import tqdm

from trimtab.training.checkpoint import load_checkpoint, save_checkpoint
from trimtab.training.errors import TrainingError
from trimtab.training.schedule import Schedule


class Task(Protocol):
    """What is trained: parameters, a loss of some examples, and what held-out examples say."""

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """What is trained, by name; float32 leaves that the loop changes in place."""
        ...

    @property
    def lengths(self) -> list[int]:
        """How much each training example costs; batches hold examples of like length."""
        ...

    def loss(self, batch: Sequence[int]) -> Tensor:
        """Return the mean loss of training examples, with its graph.

        What it draws from torch's generator depends on the schedule's seed and the step alone.
        """
        ...

    def evaluate(self) -> dict[str, float]:
        """Return metrics of the held-out examples; `loss` chooses the epoch that is kept."""
        ...

    def describe(self, batch: Sequence[int]) -> str:
        """Say which examples these are, for a person who looks for the bad one."""
        ...


class Progress(BaseModel):
    """How far a run is; with the tensors of a checkpoint it is all that the next step depends on."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")

    run: str
    """digest of the settings and the data"""
    step: int = 0
    """steps done"""
    total: float = 0.0
    """sum of the losses of the current epoch so far"""
    history: list[dict[str, float]] = []
    """per epoch: the mean training loss as `train_loss`, and what `evaluate` said"""
    best: int = -1
    """epoch whose parameters are kept"""


CHECKPOINT_STEPS = 200
"""steps between two checkpoints; one is also written after every epoch"""


def fit(task: Task, schedule: Schedule, folder: Path, *, run: Mapping[str, Any], label: str) -> Progress:
    """Train `task`; its parameters are then those of the best epoch. A run that was interrupted goes on.

    `run` names everything that decides the result; a checkpoint in `folder` of another run is refused.
    Raises TrainingError for a loss or a gradient that is not finite, naming the step and the examples, and when a
    checkpoint cannot be written.
    """
    digest = hashlib.sha256(json.dumps([schedule.model_dump(), run], sort_keys=True, default=str).encode()).hexdigest()
    parameters = dict(task.parameters)
    optimizer = torch.optim.AdamW(parameters.values(), lr=schedule.lr, weight_decay=schedule.weight_decay)
    best = {name: value.detach().clone() for name, value in parameters.items()}
    progress = Progress(run=digest[:16])
    found = load_checkpoint(folder, parameters, optimizer, best)
    if found is not None:
        progress = Progress.model_validate_json(found)
        if progress.run != digest[:16]:
            raise TrainingError(
                f"{folder} holds a checkpoint of a run with other settings or data: give those again to resume it, "
                "or pass --restart to begin anew"
            )
    lengths = task.lengths
    each = len(schedule.batches(lengths, 0))
    steps = each * schedule.epochs
    with tqdm(total=steps, initial=progress.step, unit="step", desc=label) as bar:
        while progress.step < steps and not _stale(progress, schedule):
            epoch, at = divmod(progress.step, each)
            for batch in schedule.batches(lengths, epoch)[at:]:
                optimizer.param_groups[0]["lr"] = schedule.rate(progress.step, steps)
                torch.manual_seed(schedule.seed * 1_000_003 + progress.step)
                progress.total += _step(task, batch, optimizer, parameters, schedule.clip, progress.step)
                progress.step += 1
                bar.update()
                bar.set_postfix(loss=f"{progress.total / (progress.step - epoch * each):.4g}", refresh=False)
                if progress.step % CHECKPOINT_STEPS == 0 and progress.step % each:
                    save_checkpoint(folder, progress.model_dump_json(), parameters, optimizer, best)
            _end_epoch(task, progress, parameters, best, each)
            bar.write(f"{label}: epoch {epoch + 1}: {_told(progress.history[-1])}")
            save_checkpoint(folder, progress.model_dump_json(), parameters, optimizer, best)
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(best[name])
    return progress


def _step(
    task: Task,
    batch: Sequence[int],
    optimizer: torch.optim.AdamW,
    parameters: Mapping[str, Tensor],
    clip: float,
    step: int,
) -> float:
    optimizer.zero_grad(set_to_none=True)
    loss = task.loss(batch)
    value = loss.item()
    if math.isfinite(value):
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), clip).item()
    if not (math.isfinite(value) and math.isfinite(norm)):
        what = f"the loss is {value}" if not math.isfinite(value) else "the gradient is not finite"
        raise TrainingError(
            f"{what} at step {step + 1}, on {task.describe(batch)}: look at these, or lower --lr; the last checkpoint "
            "is kept"
        )
    optimizer.step()
    return value


def _end_epoch(
    task: Task, progress: Progress, parameters: Mapping[str, Tensor], best: Mapping[str, Tensor], each: int
) -> None:
    with torch.no_grad():
        metrics = task.evaluate()
    if not math.isfinite(metrics["loss"]):
        raise TrainingError(
            f"the held-out loss is {metrics['loss']} after step {progress.step}: lower --lr; the last checkpoint is "
            "kept"
        )
    progress.history.append({"train_loss": progress.total / each, **metrics})
    progress.total = 0.0
    if progress.best < 0 or metrics["loss"] < progress.history[progress.best]["loss"]:
        progress.best = len(progress.history) - 1
        for name, value in parameters.items():
            best[name].copy_(value.detach())


def _stale(progress: Progress, schedule: Schedule) -> bool:
    return len(progress.history) - 1 - progress.best >= schedule.patience if progress.history else False


def _told(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in metrics.items())
