"""`trimtab bench` as a user meets it: its line, its files, and how it ends."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from trimtab.bench.errors import BenchError, ServerGone
from trimtab.bench.plan import Options
from trimtab.server.cli import app


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


@pytest.fixture
def asked(written: Any, tiny: str, tmp_path: Path) -> list[str]:
    """The options of a small run, as they are typed."""
    given = written(url=tiny, out=str(tmp_path / "run"))
    single = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if name != "concurrency"]
    return [*single, "--concurrency=3", "--concurrency=1"]


def test_it_ends_with_a_line_of_json(asked: list[str], tmp_path: Path) -> None:
    done = bench(*asked, "--only=arm")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["benchmark"] == "bench"
    assert (told["rows"], told["answers"], told["failed"]) == (4, 34, [])
    assert (told["folder"], told["dtype"], told["reward"]) == (str(tmp_path / "run"), "float32", "brief")
    assert told["machine"]["cores"] > 0
    assert "arm at 3: 6 requests" in done.stderr
    again = bench("--out", tmp_path / "run")
    assert json.loads(again.stdout.splitlines()[-1])["answers"] == 34
    assert "requests" not in again.stderr, "a complete run asks nothing"


def test_what_is_wrong_is_told_in_words(asked: list[str], tmp_path: Path) -> None:
    done = bench(*asked, "--reward=kindness")
    assert done.exit_code == 1
    assert done.stderr.startswith("trimtab: --reward kindness: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ServerGone("it stayed away"), 3, "it stayed away"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (BenchError("no such reward"), 1, "no such reward"),
    ],
)
def test_the_way_it_ends_is_its_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException, status: int, words: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("trimtab.bench.start.start", fails)
    out = tmp_path / "my run"
    done = bench("--out", out, "--profile", tmp_path / "p.json")
    assert done.exit_code == status
    assert f"trimtab: {words}" in done.stderr
    if status != 1:
        command = done.stderr.split("to go on: ")[1].strip()
        assert shlex.split(command) == [
            "trimtab", "bench", "--out", str(out), "--profile", str(tmp_path / "p.json"),
        ]  # fmt: skip


def test_every_option_of_a_run_can_be_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: dict[str, Any] = {}

    def notes(told: dict[str, Any], out: Path, **_: Any) -> None:
        given.update(told)
        raise BenchError("enough")

    monkeypatch.setattr("trimtab.bench.start.start", notes)
    bench("--out", tmp_path)
    assert given == {}, "defaults are those of the run"
    values: dict[str, Any] = {name: "7" for name in Options.model_fields if name != "temperature"}
    bench("--temperature=0.5", *(f"--{name.replace('_', '-')}={value}" for name, value in values.items()))
    assert set(given) == set(Options.model_fields)
    assert (given["only"], given["concurrency"], given["timed"], given["url"]) == (("7",), (7,), 7, "7")
