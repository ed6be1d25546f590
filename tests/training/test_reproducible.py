"""Every kind of adapter: one seed, one result, however often the run was interrupted; and what a run refuses."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from line import Interrupted
from taught import KINDS, weights
from tiny import tiny_folder

from trimtab.engine.guides.card import Card
from trimtab.training import loop
from trimtab.training.checkpoint import NAME
from trimtab.training.errors import TrainingError

KILLED = """
import os, signal, sys
from taught import KINDS
from trimtab.training import loop

loop.CHECKPOINT_STEPS = 2
step = loop._step

def killing(*arguments):
    if arguments[-1] == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*arguments)

loop._step = killing
KINDS["arm"].train(KINDS["arm"].options.model_validate_json(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def whole(base: Path) -> Callable[[str], Path]:
    """The folder of an uninterrupted run of a kind, trained once."""

    def trained(kind: str) -> Path:
        out = base.parent / kind
        if not out.exists():
            KINDS[kind].run(base, out)
        return out

    return trained


def interrupting(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Raise before a step, counted from 0; checkpoints come after every second one."""
    step = loop._step

    def interrupted(*arguments: Any) -> float:
        if arguments[-1] == at:
            raise Interrupted
        return step(*arguments)

    monkeypatch.setattr(loop, "CHECKPOINT_STEPS", 2)
    monkeypatch.setattr(loop, "_step", interrupted)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_one_result_and_another_seed_another(
    base: Path, whole: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    card = KINDS[kind].run(base, tmp_path / "again")
    assert weights(tmp_path / "again") == weights(whole(kind))
    assert card == Card.load(whole(kind))
    assert (tmp_path / "again" / "report.json").read_text() == (whole(kind) / "report.json").read_text()
    assert not (tmp_path / "again" / NAME).exists()
    KINDS[kind].run(base, tmp_path / "other", schedule={"seed": 1})
    assert weights(tmp_path / "other") != weights(whole(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_gives_the_same_bytes(
    base: Path, whole: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with monkeypatch.context() as patched:
        interrupting(patched, 3)
        with pytest.raises(Interrupted):
            KINDS[kind].run(base, tmp_path / "out")
    assert (tmp_path / "out" / NAME).is_file()
    KINDS[kind].run(base, tmp_path / "out")
    assert weights(tmp_path / "out") == weights(whole(kind))
    assert (tmp_path / "out" / "report.json").read_text() == (whole(kind) / "report.json").read_text()


def test_a_killed_run_gives_the_same_bytes(base: Path, whole: Callable[[str], Path], tmp_path: Path) -> None:
    told = KINDS["arm"].told(base, tmp_path / "out")
    path = [entry for entry in sys.path if entry]
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, told.model_dump_json()],
        env={"PYTHONPATH": ":".join(path), "OMP_NUM_THREADS": str(torch.get_num_threads())},
        check=False,
        capture_output=True,
    )
    assert ended.returncode == -9, ended.stderr[-500:]
    assert (tmp_path / "out" / NAME).is_file()
    KINDS["arm"].train(told)
    assert weights(tmp_path / "out") == weights(whole("arm"))


def test_other_settings_or_data_need_a_restart(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arm = KINDS["arm"]
    with monkeypatch.context() as patched:
        interrupting(patched, 3)
        with pytest.raises(Interrupted):
            arm.run(base, tmp_path / "out")
    with pytest.raises(TrainingError, match="--restart"):
        arm.run(base, tmp_path / "out", beta=0.1)
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({**line, "chosen": "best"}) + "\n" for line in arm.data))
    with pytest.raises(TrainingError, match="--restart"):
        arm.run(base, tmp_path / "out", data=other)
    arm.run(base, tmp_path / "out", data=other, restart=True)
    arm.run(base, tmp_path / "fresh", data=other)
    assert weights(tmp_path / "out") == weights(tmp_path / "fresh")


def test_nothing_depends_on_where_files_lie(base: Path, whole: Callable[[str], Path], tmp_path: Path) -> None:
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(KINDS["arm"].told(base, tmp_path).data.read_bytes())
    KINDS["arm"].run(base, tmp_path / "out", data=moved)
    assert weights(tmp_path / "out") == weights(whole("arm"))


def test_a_folder_that_cannot_be_made(base: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"cannot write to .*: pass another --out"):
        KINDS["arm"].run(base, tmp_path / "file" / "out")
