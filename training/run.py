"""What every kind of training does before and after its own part: base, folder, card, report."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from trimtab.engine.guides.card import CARD, Card, identity
from trimtab.engine.loading import LoadedModel, load_causal_lm
from trimtab.engine.sources import short_name
from trimtab.training.checkpoint import remove_checkpoint, write
from trimtab.training.data import digest
from trimtab.training.errors import TrainingError
from trimtab.training.loop import Progress
from trimtab.training.options import AnyOptions, Run, Source

REPORT = "report.json"


def open_base(options: Source) -> LoadedModel:
    """Load the base that a guide is trained for, frozen."""
    return load_causal_lm(options.base, dtype=options.dtype, device=device_of(options))


def device_of(options: Source) -> str:
    """The device that `auto` stands for."""
    if options.device != "auto":
        return options.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def open_folder(options: Run) -> None:
    """Make the folder, and forget an interrupted run in it if that is asked for; TrainingError if it cannot be."""
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"cannot write to {options.out} ({error.strerror}): pass another --out") from error
    if options.restart:
        remove_checkpoint(options.out)


def settings_of(options: Source) -> dict[str, Any]:
    """Everything that decides the result: the options, and what lies in the files that they name."""
    told = _told(options) | {"base": options.base}
    return told | {name: digest(value) for name, value in options if isinstance(value, Path) and value.is_file()}


def finish(
    options: AnyOptions,
    loaded: LoadedModel,
    metrics: Mapping[str, float],
    *,
    examples: int,
    policy: str | None = None,
    progress: Progress | None = None,
) -> Card:
    """Write the card and the report beside the weights, and drop the checkpoint."""
    told = _told(options)
    data = options.source or options.data.name
    card = Card(
        kind=options.kind,
        base=identity(loaded.source, loaded.model),
        data=f"{data} ({examples} examples, sha256 {digest(options.data)})",
        licence=options.licence,
        policy=policy,
        metrics={name: round(value, 4) for name, value in metrics.items() if isfinite(value)},
        training=told,
        version=version("trimtab"),
    )
    report: dict[str, Any] = {"kind": options.kind, "options": told, "examples": examples, "metrics": dict(metrics)}
    if progress is not None:
        report |= {"steps": progress.step, "best_epoch": progress.best + 1, "epochs": progress.history}
    write(options.out / REPORT, lambda path: path.write_text(json.dumps(report, indent=2) + "\n"))
    write(options.out / CARD, lambda path: path.write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8"))
    remove_checkpoint(options.out)
    return card


def _told(options: Source) -> dict[str, Any]:
    """The options that are no places on a disk and no words for the card."""
    told = options.model_dump(mode="json", exclude={"kind", "base", "restart", "licence", "source"})
    places = {name for name, value in options if isinstance(value, Path)}
    if "sampled" in told:
        told["sampled"].pop("cache")
        reward = told["sampled"]["reward"]
        told["sampled"]["reward"] = reward and short_name(reward)
    return {name: value for name, value in told.items() if name not in places}
