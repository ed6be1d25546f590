"""Checkpoints: written in one step, refused where they do not fit, kept where the disk is full."""

import errno
from pathlib import Path

import pytest
import torch
from line import SCHEDULE, Interrupted, Line
from safetensors import SafetensorError

from trimtab.training import checkpoint
from trimtab.training.checkpoint import NAME, load_checkpoint, write
from trimtab.training.errors import TrainingError
from trimtab.training.loop import fit


def run(task: Line, folder: Path) -> None:
    fit(task, SCHEDULE, folder, run={}, label="line")


def full(tensors: object, path: Path, *rest: object) -> None:
    """A disk that fills up while the file is written."""
    path.write_bytes(b"the first")
    raise OSError(errno.ENOSPC, "No space left on device")


def full_in_rust(tensors: object, path: Path, *rest: object) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("disk", [full, full_in_rust])
def test_a_full_disk_names_the_fix_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: object
) -> None:
    run(whole := Line(), tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(Line(stop=6), tmp_path / "cut")
    kept = (tmp_path / "cut" / NAME).read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", disk)
        with pytest.raises(TrainingError, match="no space left on the device: free some, and run the same command"):
            run(Line(), tmp_path / "cut")
    assert [file.name for file in (tmp_path / "cut").iterdir()] == [NAME]
    assert (tmp_path / "cut" / NAME).read_bytes() == kept
    run(again := Line(), tmp_path / "cut")
    assert len(again.batches) == 8  # from the end of the first epoch on
    assert again.parameters == whole.parameters


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"cannot write .*file/card.json: .*(Not a directory|File exists)"):
        write(tmp_path / "file" / "card.json", Path.touch)


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    def half(path: Path) -> None:
        path.write_text("ha")
        raise ValueError("lost the thread")

    write(tmp_path / "a", lambda path: path.write_text("whole"))
    with pytest.raises(TrainingError, match=r"cannot write .*a: lost the thread"):
        write(tmp_path / "a", half)
    assert (tmp_path / "a").read_text() == "whole"
    assert len(list(tmp_path.iterdir())) == 1


def test_no_checkpoint_is_a_new_run(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path, {}, torch.optim.AdamW([torch.zeros(1)]), {}) is None


@pytest.mark.parametrize("change", ["more", "wider"])
def test_a_checkpoint_of_other_parameters(tmp_path: Path, change: str) -> None:
    run(Line(), tmp_path)
    task = Line()
    parameters = task.parameters
    parameters |= {"c": torch.zeros(())} if change == "more" else {"a": torch.zeros(2)}
    with pytest.raises(TrainingError, match="checkpoint of other parameters: pass --restart, or another --out"):
        load_checkpoint(tmp_path, parameters, torch.optim.AdamW(parameters.values()), parameters)


def test_a_damaged_checkpoint(tmp_path: Path) -> None:
    run(Line(), tmp_path)
    file = tmp_path / NAME
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(TrainingError, match=r"cannot be read .*: pass --restart to begin anew"):
        run(Line(), tmp_path)
