"""A real `trimtab serve`: how quickly it answers probes at work, and how it ends on signals."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from gate import PATIENCE
from tiny import tiny_folder
from wire import CHAT, RUNNING, ask, connect, leaving, metrics

LONG = 15_000
"""tokens: an answer of minutes"""
SEARCH = {"strategy": "best_of_n", "n": 4, "reward": "brevity"}
IN_BLOCKS = {"strategy": "cbs", "w": 2, "k": 2, "chunk": 5, "value": "brevity"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a context so long that an answer takes minutes."""
    folder = tiny_folder(tmp_path_factory.mktemp("drain") / "tiny")
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 16_384}))
    return folder


class Served:
    """A server in a process of its own."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        assert process.stdout is not None
        self.url = process.stdout.readline().split()[-1]

    def ends(self) -> tuple[int, float, list[dict[str, Any]]]:
        """Wait for its end; returns its status, the seconds that took, and the lines of its log."""
        began = time.monotonic()
        _, log = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, time.monotonic() - began, [json.loads(line) for line in log.splitlines()]


@contextmanager
def serving(folder: Path, *, port: int = 0, shutdown: float = 30) -> Iterator[Served]:
    command = [sys.executable, "-c", "from trimtab.server.cli import app; app()", "serve", "--model", str(folder)]
    command += ["--threads", "1", "--port", str(port), "--shutdown-timeout", str(shutdown)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TRIMTAB_", "HF_", "OTEL_"))}
    settings = {"OMP_NUM_THREADS": "1", "TRIMTAB_SERVER__LOG__FORMAT": "json", "TRIMTAB_ENGINE__POOL_TOKENS": "100000"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=kept | settings, **pipes) as process:
        try:
            yield Served(process)
        finally:
            process.kill()


def whole(url: str, **changes: object) -> httpx2.Response:
    return httpx2.post(url + CHAT, json=ask(max_tokens=LONG, **changes), timeout=60)


def test_health_answers_at_once_while_streams_and_a_search_run(folder: Path, wait_until: Any) -> None:
    with serving(folder) as served, ExitStack() as clients:
        for i in range(16):
            body = ask(f"{i}", max_tokens=3000, stream=True, logprobs=True, top_logprobs=5)
            clients.enter_context(leaving(served.url, body))
        traced = ask(max_tokens=500, decoding={**SEARCH, "trace": "tokens"}, n=2)
        clients.enter_context(leaving(served.url, traced))
        wait_until(lambda: metrics(served.url)["trimtab:rows"] >= 20)
        client = clients.enter_context(connect(served.url))
        waits = []
        for _ in range(300):
            began = time.monotonic()
            client.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            received = b""
            while not received.endswith(b'{"status":"ok"}'):
                received += client.recv(4096)
            waits.append(time.monotonic() - began)
            time.sleep(0.005)
        assert metrics(served.url)["trimtab:rows"] >= 16, "the load ended before the measurement"
    assert sorted(waits)[296] < 0.25


def test_sigterm_ends_searches_with_their_best_and_the_rest_with_an_error(folder: Path, wait_until: Any) -> None:
    with serving(folder, shutdown=3) as served, ThreadPoolExecutor(3) as pool:
        url = served.url
        bodies: list[dict[str, Any]] = [{"decoding": IN_BLOCKS}, {"stream": True}, {}]
        asked = [pool.submit(whole, url, **body) for body in bodies]
        wait_until(lambda: metrics(url)[RUNNING] == 3)
        served.process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx2.get(url + "/ready").status_code == 503)
        refused = httpx2.post(url + CHAT, json=ask())
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
        assert httpx2.get(url + "/health").status_code == 200
        status, seconds, log = served.ends()
        searched, streamed, sampled = (each.result(PATIENCE) for each in asked)
    assert (status, seconds < 8) == (0, True)
    assert searched.status_code == 200, searched.text
    answer = searched.json()
    assert 0 < answer["usage"]["completion_tokens"] < LONG
    assert answer["decoding"]["stopped_by"] == "shutdown"
    *_, error, done, rest = streamed.text.split("\n\n")
    assert json.loads(error.removeprefix("data: "))["error"]["type"] == "service_unavailable_error"
    assert (done, rest) == ("data: [DONE]", "")
    assert (sampled.status_code, "retry-after" in sampled.headers) == (503, True)
    assert all(line["logger"].startswith("trimtab") and "exception" not in line for line in log), log


def test_a_second_sigterm_ends_at_once(folder: Path, wait_until: Any) -> None:
    with serving(folder) as served, leaving(served.url, ask(max_tokens=LONG)), ExitStack() as clients:
        clients.enter_context(connect(served.url))
        wait_until(lambda: metrics(served.url)["trimtab:rows"] == 1)
        served.process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx2.get(served.url + "/ready").status_code == 503)
        served.process.send_signal(signal.SIGTERM)
        status, seconds, _ = served.ends()
    assert (status, seconds < 5) == (-signal.SIGTERM, True)


def test_after_a_kill_it_starts_again_on_the_same_port(folder: Path, wait_until: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with serving(folder, port=port) as killed, leaving(killed.url, ask(max_tokens=LONG, decoding=SEARCH)):
        wait_until(lambda: metrics(killed.url)["trimtab:rows"] == 4)
        killed.process.kill()
        killed.process.wait(PATIENCE)
    with serving(folder, port=port) as served:
        assert httpx2.post(served.url + CHAT, json=ask(), timeout=30).status_code == 200
        served.process.send_signal(signal.SIGTERM)
        assert served.ends()[0] == 0
