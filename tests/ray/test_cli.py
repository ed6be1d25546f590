"""`trimtab-ray`: what it refuses before it starts anything, what it asks for, and how it ends."""

import signal
import time
from collections.abc import Callable, Iterator
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
    monkeypatch.setattr(serve, "delete", told.append)
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


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("Deploying application trimtab failed")


@pytest.mark.parametrize(("end", "code"), [(interrupt, 0), (fail, 1)])
def test_what_else_a_cluster_serves_goes_on(
    stopped: list[str], monkeypatch: pytest.MonkeyPatch, end: Callable[..., None], code: int
) -> None:
    monkeypatch.setattr(serve, "run", end)
    done = CliRunner().invoke(app, ["--address", "10.0.0.1:6379"])
    assert (done.exit_code, stopped) == (code, ["trimtab", "ray"])
    stopped.clear()
    done = CliRunner().invoke(app, [])
    assert (done.exit_code, stopped) == (code, ["serve", "ray"])


def test_nothing_is_deleted_that_was_not_asked_for(stopped: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "start", fail)
    assert CliRunner().invoke(app, ["--address", "10.0.0.1:6379"]).exit_code == 1
    assert stopped == ["ray"]


def test_a_slow_end_is_left_to_the_cluster(stopped: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def late(_: str) -> None:
        raise TimeoutError("Some of these applications weren't deleted after 60s")

    monkeypatch.setattr(serve, "run", interrupt)
    monkeypatch.setattr(serve, "delete", late)
    done = CliRunner().invoke(app, ["--address", "10.0.0.1:6379"])
    assert (done.exit_code, stopped) == (0, ["ray"]), done.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "2 replicas at http://127.0.0.1:9000\n"),
        (["--address", "10.0.0.1:6379"], "2 replicas at the address of Serve on the cluster 10.0.0.1:6379\n"),
    ],
)
def test_only_an_address_that_was_applied_is_told(
    stopped: list[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.setattr(serve, "run", lambda *_, **__: None)
    monkeypatch.setattr("trimtab.cluster.cli.time.sleep", interrupt)
    done = CliRunner().invoke(app, ["--port", "9000", *arguments])
    assert done.stdout.endswith(told)
    assert stopped


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

    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("trimtab.cluster.app.build", asked.append)
    monkeypatch.setattr(serve, "run", interrupt)
    (tmp_path / "own.yaml").write_text(f"engine: {file}\n")
    CliRunner().invoke(app, ["--config", str(tmp_path / "own.yaml"), *arguments])
    assert server_settings(asked[0]).engine.threads == threads
    assert stopped
