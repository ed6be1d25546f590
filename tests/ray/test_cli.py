"""`trimtab-ray`: what it refuses before it starts anything, what it asks for, and how it ends."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from on_ray import ray, serve
from typer.testing import CliRunner

from trimtab.cluster.cli import app
from trimtab.cluster.settings import ClusterSettings

pytestmark = pytest.mark.ray


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--guide", "nobody"], "guides.nobody"),
        (["--config", "/nowhere.yaml"], "cannot read the configuration /nowhere.yaml"),
        (["--replicas", "3", "--most", "2"], "most"),
    ],
)
def test_mistakes_are_told_before_anything_starts(arguments: list[str], told: str) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1
    assert told in done.stderr
    assert not ray.is_initialized()


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was shut down, in an order; nothing is really started."""
    told: list[str] = []
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    # Ray sets a handler of its own for the second one.
    monkeypatch.setattr(ray, "init", lambda *_, **__: signal.signal(signal.SIGTERM, signal.SIG_IGN))
    monkeypatch.setattr(serve, "start", lambda **_: None)
    monkeypatch.setattr(serve, "shutdown", lambda: told.append("serve"))
    monkeypatch.setattr(ray, "shutdown", lambda: told.append("ray"))
    yield told
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_while_it_still_starts(
    stopped: list[str], monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def run(*_: Any, **__: Any) -> None:
        signal.raise_signal(number)
        time.sleep(0.1)
        raise AssertionError("it went on waiting")

    monkeypatch.setattr(serve, "run", run)
    done = CliRunner().invoke(app, [])
    assert (done.exit_code, stopped) == (0, ["serve", "ray"]), done.output


@pytest.mark.parametrize(
    ("arguments", "file", "threads"),
    [
        (["--replicas", "2"], "{}", 4),
        (["--replicas", "2"], "{threads: 3}", 3),
        (["--gpus", "0.5"], "{}", None),
        (["--address", "10.0.0.1:6379"], "{}", None),
    ],
)
def test_cores_are_shared_out_where_nobody_says_otherwise(
    arguments: list[str],
    file: str,
    threads: int | None,
    stopped: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from trimtab.cluster.placing import server_settings

    asked: list[ClusterSettings] = []

    def run(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("trimtab.cluster.app.build", asked.append)
    monkeypatch.setattr(serve, "run", run)
    (tmp_path / "own.yaml").write_text(f"engine: {file}\n")
    CliRunner().invoke(app, ["--config", str(tmp_path / "own.yaml"), *arguments])
    assert server_settings(asked[0]).engine.threads == threads
    assert stopped
