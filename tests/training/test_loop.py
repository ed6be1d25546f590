"""The training loop on a line: early stop, resumption, and what stops a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from line import SCHEDULE, Interrupted, Line
from torch import Tensor

from trimtab.training import loop
from trimtab.training.checkpoint import NAME, remove_checkpoint
from trimtab.training.errors import TrainingError
from trimtab.training.loop import Progress, fit
from trimtab.training.schedule import Schedule

SETTINGS: Mapping[str, Any] = {"kind": "line"}
LONGER = SCHEDULE.model_copy(update={"epochs": 6, "patience": 6})


def fitted(folder: Path, schedule: Schedule = SCHEDULE, task: Line | None = None) -> tuple[list[Tensor], Progress]:
    """The parameters, bit for bit, and how the run went."""
    task = task or Line()
    progress = fit(task, schedule, folder, run=SETTINGS, label="line")
    return [value.detach().clone() for value in task.parameters.values()], progress


def test_it_fits(tmp_path: Path) -> None:
    (a, b), progress = fitted(tmp_path, Schedule(epochs=100, batch=4, lr=0.1, patience=100))
    assert a.item() == pytest.approx(3.0, abs=0.1)
    assert b.item() == pytest.approx(-1.0, abs=0.1)
    assert progress.history[-1]["train_loss"] < 0.02
    assert progress.step == 400


def test_history_tells_the_mean_training_loss_of_each_epoch(tmp_path: Path) -> None:
    still = Schedule(epochs=2, batch=4, lr=1e-30)
    _, progress = fitted(tmp_path, still)
    mean = Line().y[:16].square().mean().item()
    assert [epoch["train_loss"] for epoch in progress.history] == pytest.approx([mean, mean])


@pytest.mark.parametrize(
    "change",
    [{"epochs": 4}, {"batch": 5}, {"lr": 0.05}, {"warmup": 0.5}, {"weight_decay": 0.5}, {"clip": 1e-7}, {"seed": 1}],
)
def test_every_option_changes_the_result(tmp_path: Path, change: dict[str, Any]) -> None:
    plain, _ = fitted(tmp_path / "plain")
    changed, _ = fitted(tmp_path / "changed", SCHEDULE.model_copy(update=change))
    assert plain != changed


def test_the_best_epoch_is_kept_and_patience_ends_the_run(tmp_path: Path) -> None:
    told = [4.0, 2.0, 3.0, 2.5, 1.0, 0.5]
    kept, progress = fitted(tmp_path / "patient", LONGER.model_copy(update={"patience": 2}), Line(held_out=told))
    assert (progress.best, len(progress.history), progress.step) == (1, 4, 16)
    # The rate depends on all epochs that were asked for, so the second one is had by stopping behind it.
    second = Line(stop=8, held_out=told)
    with pytest.raises(Interrupted):
        fit(second, LONGER, tmp_path / "second", run=SETTINGS, label="line")
    assert kept == [value.detach() for value in second.parameters.values()]
    _, progress = fitted(tmp_path / "more", LONGER.model_copy(update={"patience": 3}), Line(held_out=told))
    assert (progress.best, len(progress.history)) == (5, 6)


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 5, 11])
def test_an_interrupted_run_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_STEPS", 3)
    whole, progress = fitted(tmp_path / "whole")
    with pytest.raises(Interrupted):
        fitted(tmp_path / "cut", task=Line(stop=stop))
    again = Line()
    assert fitted(tmp_path / "cut", task=again) == (whole, progress)
    assert len(again.batches) == 12 - max(step for step in (0, 3, 4, 6, 8, 9) if step <= stop)


def test_a_run_that_ended_is_not_trained_again(tmp_path: Path) -> None:
    whole = fitted(tmp_path)
    again = Line()
    assert fitted(tmp_path, task=again) == whole
    assert again.batches == []


@pytest.mark.parametrize("change", [{"schedule": SCHEDULE.model_copy(update={"lr": 0.2})}, {"run": {"kind": "curve"}}])
def test_other_settings_do_not_resume(tmp_path: Path, change: dict[str, Any]) -> None:
    fitted(tmp_path)
    with pytest.raises(TrainingError, match=r"checkpoint of a run with other settings or data.*--restart"):
        fit(Line(), label="line", folder=tmp_path, **{"schedule": SCHEDULE, "run": SETTINGS, **change})
    remove_checkpoint(tmp_path)
    assert fit(Line(), label="line", folder=tmp_path, **{"schedule": SCHEDULE, "run": SETTINGS, **change}).step == 12


def test_a_loss_that_is_no_number_stops_with_step_and_examples(tmp_path: Path) -> None:
    task = Line(poison=3)
    with pytest.raises(TrainingError) as error:
        fitted(tmp_path, task=task)
    step, batch = len(task.batches), sorted(task.batches[-1])
    assert 3 in batch
    assert str(error.value) == (
        f"the loss is nan at step {step}, on points {batch}: look at these, or lower --lr; the last checkpoint is kept"
    )
    assert all(value.isfinite() for value in task.parameters.values())


def test_a_rate_that_is_too_high_stops_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"at step \d+, on points .*lower --lr"):
        fitted(tmp_path, SCHEDULE.model_copy(update={"lr": 1e25, "epochs": 9, "patience": 9}))


def test_a_gradient_that_is_no_number(tmp_path: Path) -> None:
    class Root(Line):
        def _error(self, batch: list[int]) -> Tensor:
            return self.a.abs().sqrt()  # 0 at 0, where its slope is infinite

    with pytest.raises(TrainingError, match="the gradient is not finite at step 1, on points"):
        fitted(tmp_path, task=Root())


def test_a_held_out_loss_that_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the held-out loss is nan after step 8: lower --lr"):
        fitted(tmp_path, task=Line(held_out=[1.0, float("nan")]))
    assert (tmp_path / NAME).is_file()


def test_parameters_are_changed_in_place(tmp_path: Path) -> None:
    task = Line()
    a = task.a
    fitted(tmp_path, task=task)
    assert task.a is a
    assert torch.count_nonzero(a) == 1
