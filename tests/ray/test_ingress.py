"""What the ingress refuses and passes on, without a cluster behind it."""

import asyncio
import time
from typing import Any

import httpx2
import pytest
from fake_handle import HANGS, JSON, Handle

from trimtab.cluster.ingress import Ingress

pytestmark = pytest.mark.ray

METRICS: list[Any] = [("hello", "a"), ("start", 200, JSON), ("body", b"# HELP f g\n# TYPE f gauge\nf 1\n")]


def asked(handle: Handle, method: str, path: str) -> httpx2.Response:
    ingress = Ingress(handle, {}, 512, 1000, 1.0, shared=False)  # type: ignore[arg-type]

    async def ask() -> httpx2.Response:
        transport = httpx2.ASGITransport(ingress.__serve_build_asgi_app__())
        async with httpx2.AsyncClient(transport=transport, base_url="http://ingress") as client:
            return await client.request(method, path)

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("method", "path", "refused"),
    [
        ("GET", "/admin/guides", True),
        ("POST", "/admin/guides", True),
        ("POST", "/v1/norms", True),
        ("GET", "/v1/norms", False),
        ("POST", "/v1/norms/search", False),
        ("PUT", "/v1/norms/search", True),
        ("PATCH", "/v1/norms/search", True),
        ("DELETE", "/v1/norms/search", True),
        ("PUT", "/v1/profiles/search", True),
        ("GET", "/v1/profiles/search", False),
    ],
)
def test_what_replicas_may_differ_in_is_refused(method: str, path: str, refused: bool) -> None:
    answer = asked(Handle([("hello", "a"), ("start", 200, JSON), ("body", b"ok")]), method, path)
    assert answer.status_code == (501 if refused else 200)


@pytest.mark.parametrize("status", [401, 403])
def test_whoever_may_not_see_metrics_is_told_so(status: int) -> None:
    headers = [*JSON, (b"www-authenticate", b"Bearer"), (b"x-request-id", b"1"), (b"content-length", b"6")]
    refusal: list[Any] = [("hello", "a"), ("start", status, headers), ("body", b"not "), ("body", b"me")]
    answer = asked(Handle(refusal), "GET", "/metrics")
    assert (answer.status_code, answer.text) == (status, "not me")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "x-request-id" not in answer.headers, "Serve's proxy adds it"


def test_metrics_of_all_replicas_come_as_one_text() -> None:
    answer = asked(Handle(METRICS, METRICS), "GET", "/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert {'f{instance="a"} 1', 'f{instance="b"} 1'} <= set(answer.text.splitlines())


def test_each_replica_is_asked_once_for_its_metrics() -> None:
    handle = Handle(METRICS, METRICS, METRICS)
    asked(handle, "GET", "/metrics")
    assert len(handle.scripts) == 1


def test_a_silent_replica_delays_the_metrics_of_others_no_longer_than_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is asked first."""
    monkeypatch.setattr("trimtab.cluster.scrape.PATIENCE", 0.3)
    for scripts, silent, speaks in (([[HANGS], METRICS], "a", "b"), ([METRICS, [HANGS]], "b", "a")):
        began, handle = time.monotonic(), Handle(*scripts)
        told = set(asked(handle, "GET", "/metrics").text.splitlines())
        assert time.monotonic() - began < 1.0
        assert {f'trimtab:replica_up{{instance="{silent}"}} 0', f'trimtab:replica_up{{instance="{speaks}"}} 1'} <= told
        assert f'f{{instance="{speaks}"}} 1' in told
        assert handle.scripts == []


def test_a_refusal_of_metrics_is_passed_on_where_the_first_replica_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.cluster.scrape.PATIENCE", 0.3)
    refusal: list[Any] = [("hello", "b"), ("start", 401, JSON), ("body", b"no")]
    assert asked(Handle([HANGS], refusal), "GET", "/metrics").status_code == 401


def test_without_replicas_there_are_no_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.cluster.scrape.PATIENCE", 0.3)
    answer = asked(Handle([HANGS], known=[]), "GET", "/metrics")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_replica")
