"""What a run makes of servers that end, and of its own end, in the middle."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_folder

from trimtab.bench.errors import BenchError
from trimtab.bench.serve import served
from trimtab.bench.start import start
from trimtab.clients.client import ClientError, TrimtabClient

TRIMTAB = [sys.executable, "-c", "from trimtab.server.cli import app; app()"]
PATIENCE = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("restart") / "tiny")


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def command(*arguments: str) -> "subprocess.Popen[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TRIMTAB_", "HF_", "OTEL_"))}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    return subprocess.Popen([*TRIMTAB, *arguments], env=kept | {"OMP_NUM_THREADS": "1"}, **pipes)


@contextmanager
def serving(model: Path, port: int, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """`trimtab serve` as a child that is ready."""
    with command("serve", "--model", str(model), "--threads", "1", "--port", str(port), *arguments) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            yield process
        finally:
            process.kill()


def kept(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of the answers so far."""
    file = folder / "answers.jsonl"
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.exists() else []


def until(folder: Path, answers: int) -> None:
    """Wait for so many answers."""
    deadline = time.monotonic() + PATIENCE
    while len(kept(folder)) < answers:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def options(written: Any, port: int) -> dict[str, Any]:
    """A run that takes about a second."""
    few = {"name": "few", "decoding": {"strategy": "candidates", "top_k": 5}}
    given: dict[str, Any] = written(
        settings=[few], reward="brevity", gold="none", concurrency=(2,), max_tokens=40, repeats=3
    )
    return given | {"url": f"http://127.0.0.1:{port}"}


def everything(folder: Path) -> Sequence[tuple[str, str, int]]:
    return [(each["setting"], each["prompt"], each["seed"]) for each in kept(folder)]


SEEDS = {"base": 6, "few": 3}
EXPECTED = Counter((name, f"p{number}", seed) for name in SEEDS for number in range(6) for seed in range(SEEDS[name]))


def test_a_run_outlives_its_server(options: dict[str, Any], model: Path, port: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    rows: list[Any] = []
    with serving(model, port) as first:
        running = threading.Thread(
            target=lambda: rows.extend(start(options, folder, patience=PATIENCE, api_key=None)), daemon=True
        )
        running.start()
        until(folder, 27)
        first.kill()
        first.wait(PATIENCE)
        with serving(model, port):
            running.join(PATIENCE)
            assert not running.is_alive()
    assert Counter(everything(folder)) == EXPECTED
    assert {each["part"] for each in kept(folder)} == {0, 1}
    assert [(row.setting, row.answers, row.error) for row in rows] == [("base", 36, None), ("few", 18, None)]


@pytest.mark.parametrize(
    ("end", "status"),
    [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130), (signal.SIGTERM, 130)],
    ids=["killed", "Ctrl-C", "SIGTERM"],
)
def test_a_run_that_ends_in_the_middle_goes_on(
    options: dict[str, Any], tiny: str, tmp_path: Path, end: int, status: int
) -> None:
    folder = tmp_path / "run"
    changed = {**options, "url": tiny, "reward": "brief", "concurrency": 2}
    asked = [f"--{name.replace('_', '-')}={value}" for name, value in changed.items()]
    with command("bench", *asked, "--out", str(folder)) as bench:
        until(folder, 7)
        bench.send_signal(end)
        assert bench.wait(PATIENCE) == status
    before = kept(folder)
    assert 7 <= len(before) < 54
    start({}, folder, patience=0, api_key=None)
    assert kept(folder)[: len(before)] == before
    assert Counter(everything(folder)) == EXPECTED


def test_a_server_of_the_runs_own_ends_with_it(model: Path) -> None:
    with served(str(model)) as child, TrimtabClient(child.url) as client:
        assert client.ready()
        assert child.ended() is None
    with TrimtabClient(child.url, retries=0) as client, pytest.raises(ClientError, match="no answer"):
        client.ready()
    with pytest.raises(BenchError, match=r"(?s)the server did not start:\n.*nowhere"), served("./nowhere"):
        pass
