"""Presets, policies and keys are replaced while the server runs: all of them, or none."""

import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from trimtab.llm import LLM
from trimtab.server.settings import Settings, Source

Start = Callable[..., Any]
OPERATOR = {"authorization": "Bearer op"}
ADMIN = {"sha256": hashlib.sha256(b"op").hexdigest()}
ONE = {"one": {"decoding": {"strategy": "best_of_n", "n": 2, "reward": "brevity"}}}
TWO = {"two": {"sampling": {"temperature": 0.1}}}


class Configured:
    """A server with a configuration file that the test rewrites."""

    def __init__(self, llm: LLM, start: Start, path: Path, **values: Any) -> None:
        self._path = path
        self.write(admin_key=ADMIN, **values)
        source = Source(path)
        self.running = start(llm, source.load(), source.load)
        self.url = self.running.url

    def write(self, server: Mapping[str, Any] | None = None, **values: Any) -> None:
        self._path.write_text(yaml.safe_dump({**values, "server": {"port": 0, **(server or {})}}), encoding="utf-8")

    def reload(self) -> httpx2.Response:
        return httpx2.post(self.url + "/admin/reload", json={}, headers=OPERATOR, timeout=30)

    def models(self, **headers: str) -> list[str]:
        return [card["id"] for card in httpx2.get(self.url + "/v1/models", headers=headers).json()["data"]]


@pytest.fixture
def configured(llm: LLM, start: Start, tmp_path: Path) -> Callable[..., Configured]:
    return lambda **values: Configured(llm, start, tmp_path / "trimtab.yaml", **values)


def test_a_reload_replaces_presets(configured: Callable[..., Configured]) -> None:
    server = configured(presets=ONE)
    assert server.models() == ["tiny", "tiny:one"]
    server.write(admin_key=ADMIN, presets=TWO)
    assert server.reload().json() == {"needs_restart": []}
    assert server.models() == ["tiny", "tiny:two"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"presets": {"x": {"decoding": {"strategy": "nope"}}}}, "preset x"),
        ({"presets": TWO, "default_policy": "strict"}, "no policy 'strict'"),
        ({"presets": TWO, "keys": {"ann": {"env": "NO_SUCH_KEY"}}}, "NO_SUCH_KEY"),
        ({"presets": TWO, "prests": {}}, "did you mean 'presets'"),
        ({"presets": TWO, "server": {"port": "x"}}, "server.port"),
        ({"presets": TWO, "policies": {"p": {"floor": {"reward": "no-such-guide"}}}}, "p"),
    ],
)
def test_an_invalid_reload_changes_nothing(
    configured: Callable[..., Configured], change: dict[str, Any], words: str
) -> None:
    server = configured(presets=ONE)
    before = server.running.service.rules
    server.write(admin_key=ADMIN, **change)
    refused = server.reload()
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_settings")
    assert words in refused.json()["error"]["message"]
    assert server.running.service.rules is before
    assert server.models() == ["tiny", "tiny:one"]
    assert "trimtab:config_last_reload_successful 0.0" in httpx2.get(server.url + "/metrics").text
    server.write(admin_key=ADMIN, presets=TWO)
    assert server.reload().status_code == 200
    assert "trimtab:config_last_reload_successful 1.0" in httpx2.get(server.url + "/metrics").text


def test_keys_come_and_go(configured: Callable[..., Configured]) -> None:
    ann = {"ann": {"sha256": hashlib.sha256(b"a").hexdigest()}}
    server = configured()
    assert server.models() == ["tiny"]
    server.write(admin_key=ADMIN, keys=ann)
    assert server.reload().status_code == 200
    assert httpx2.get(server.url + "/v1/models").status_code == 401
    assert server.models(authorization="Bearer a") == ["tiny"]
    server.write(admin_key={"sha256": hashlib.sha256(b"new").hexdigest()}, keys=ann)
    assert server.reload().status_code == 200
    assert server.reload().status_code == 401


def test_what_needs_a_restart_is_told_and_not_in_force(configured: Callable[..., Configured]) -> None:
    server = configured(server={"limits": {"max_n": 3}})
    server.write(admin_key=ADMIN, server={"limits": {"max_n": 9}}, engine={"max_rows": 5})
    for _ in range(2):
        assert server.reload().json() == {"needs_restart": ["server.limits", "engine.max_rows"]}
    body = {"model": "tiny", "prompt": "a", "max_tokens": 1, "n": 4}
    assert httpx2.post(server.url + "/v1/completions", json=body).status_code == 400


def test_requests_that_run_keep_the_rules_that_they_began_with(configured: Callable[..., Configured]) -> None:
    server = configured(presets=ONE)
    body = {"model": "tiny:one", "prompt": "a", "max_tokens": 200, "ignore_eos": True, "stream": True}
    with httpx2.stream("POST", server.url + "/v1/completions", json=body, timeout=60) as answer:
        server.write(admin_key=ADMIN, presets=TWO)
        assert server.reload().status_code == 200
        assert '"preset":"one"' in answer.read().decode()


def test_without_a_source_a_reload_keeps_what_there_is(llm: LLM, start: Start) -> None:
    running = start(llm, Settings.model_validate({"presets": ONE}))
    assert running.service.reload() == []
    assert list(running.service.rules.presets) == ["one"]


def test_sighup_reloads_and_survives_a_mistake(model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "trimtab.yaml"
    engine = {"model": str(model_folder), "threads": 1, "pool_tokens": 1024}

    def write(**values: Any) -> None:
        path.write_text(yaml.safe_dump({"engine": engine, **values}), encoding="utf-8")

    def models(url: str) -> list[str]:
        return [card["id"] for card in httpx2.get(url + "/v1/models", timeout=30).json()["data"]]

    write(presets=ONE)
    code = "from trimtab.server.cli import app; app()"
    command = [sys.executable, "-c", code, "serve", "--port", "0", "--config", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            url = next(line.split()[-1] for line in process.stdout if " at http" in line)
            assert models(url) == ["tiny", "tiny:one"]
            write(presets={"x": {"decoding": {"strategy": "nope"}}})
            process.send_signal(signal.SIGHUP)
            told = next(line for line in process.stdout if "not reloaded" in line)
            assert "preset x" in told
            assert models(url) == ["tiny", "tiny:one"]
            write(presets=TWO)
            process.send_signal(signal.SIGHUP)
            deadline = time.monotonic() + 20
            while models(url) != ["tiny", "tiny:two"]:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            process.terminate()
            process.communicate(timeout=20)
