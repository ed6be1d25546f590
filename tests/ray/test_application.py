"""The application on a cluster of two nodes: what clients get while replicas work, die, freeze and are replaced."""

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from on_ray import NAME, Running, eventually, kill, names, processes, serve
from wire import CHAT, ask

from trimtab.cluster.placing import guide_digest, server_settings
from trimtab.cluster.protocol import PROTOCOL, Call, GuideCall, route
from trimtab.cluster.settings import ClusterSettings

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]

LONG = 200
"""tokens of an answer that is still being written when something happens to its replica"""


def events(response: httpx2.Response) -> list[Any]:
    """The events of a stream, the last one `[DONE]`."""
    lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def searching(text: str = "Hi", **changes: Any) -> dict[str, Any]:
    return ask(text, max_tokens=8, decoding={"strategy": "best_of_n", "n": 3, "reward": "taste"}, **changes)


class Stream(threading.Thread):
    """A streamed request in a thread; `begun` once it has answered, `told` are its events."""

    def __init__(self, app: Running, text: str) -> None:
        super().__init__()
        self.app, self.text, self.begun = app, text, threading.Event()
        self.told: list[Any] = []
        self.start()

    def run(self) -> None:
        body = ask(self.text, stream=True, max_tokens=LONG, n=8)
        with httpx2.stream("POST", self.app.url + CHAT, json=body, timeout=60) as response:
            self.begun.set()
            self.told = events(response)

    @property
    def error(self) -> str | None:
        """The code of the error that it ended with."""
        self.join(60)
        last = self.told[-1]
        return last["error"]["code"] if "error" in last else None


def test_a_request_is_answered_as_by_one_server(app: Running) -> None:
    one, two = (app.client.post(CHAT, json=ask()).json()["choices"] for _ in range(2))
    assert one == two
    with app.client.stream("POST", CHAT, json=ask(stream=True)) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        told = events(response)
    text = "".join(choice["delta"].get("content") or "" for each in told for choice in each["choices"])
    assert text == one[0]["message"]["content"]
    assert app.client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert app.client.get("/ready").json() == {"status": "ready"}


def test_answers_come_while_they_are_written(app: Running) -> None:
    began = time.monotonic()
    with app.client.stream("POST", CHAT, json=ask(stream=True, max_tokens=LONG)) as response:
        arrived = [time.monotonic() for line in response.iter_lines() if line]
    assert arrived[0] - began < 0.5 * (arrived[-1] - began)
    assert len(set(arrived)) > 20


def test_errors_are_those_of_the_server(app: Running) -> None:
    for body, status in ((ask(model="none"), 404), (ask(temperature=-1), 400)):
        answer = app.client.post(CHAT, json=body)
        assert answer.status_code == status
        assert answer.json()["error"]["code"]
        assert len(answer.headers.get_list("x-request-id")) == 1
    huge = app.client.post(CHAT, content=b"x" * (9 * 2**20))
    assert (huge.status_code, huge.json()["error"]["code"]) == (413, "body_too_large")


def test_what_would_make_replicas_differ_is_refused(app: Running) -> None:
    refused = [("POST", path) for path in ("/admin/guides", "/v1/norms", "/v1/profiles")]
    for method, path in [*refused, ("GET", "/admin/guides")]:
        answer = app.client.request(method, path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (501, "not_replicated")
    assert app.client.post("/v1/norms/search", json={"query": "x"}).status_code != 501


def test_equal_beginnings_reach_one_replica_and_all_replicas_work(app: Running) -> None:
    before = app.metric("request_success_total")
    for _ in range(4):
        app.client.post(CHAT, json=ask("the same beginning", max_tokens=1))
    mine = {each: count - before.get(each, 0) for each, count in app.metric("request_success_total").items()}
    assert sorted(mine.values())[-1] == sum(mine.values()) == 4
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: app.client.post(CHAT, json=ask(f"question {i}", max_tokens=1)), range(32)))
    after = app.metric("request_success_total")
    assert len(after) == 2
    assert min(after.values()) > 0


def test_metrics_name_their_replica(app: Running) -> None:
    up = app.metric("replica_up")
    assert len(up) == 2
    assert set(up.values()) == {1.0}
    assert app.metric("engine_up") == up
    assert {each.rpartition("#")[2] for each in names("engine")} == set(up)


def test_a_client_that_leaves_frees_its_rows(app: Running) -> None:
    with app.client.stream("POST", CHAT, json=ask(stream=True, max_tokens=LONG, n=16)) as response:
        lines = response.iter_lines()
        next(lines)
        eventually(lambda: sum(app.running().values()) == 1, 10)
    eventually(lambda: sum(app.running().values()) == 0, 10)
    assert sum(app.metric("request_failure_total").values()) >= 1


def test_a_guide_that_is_a_deployment_judges_as_it_would_inside(app: Running, arguments: ClusterSettings) -> None:
    from trimtab.cluster.judge import load_judge
    from trimtab.engine.rewards import Pair

    answer = app.client.post(CHAT, json=searching()).json()
    found = answer["decoding"]["candidates"]
    judge = load_judge("taste", server_settings(arguments).engine)
    for each in found:
        pair = Pair(({"role": "user", "content": "Hi"},), each["text"])
        assert judge.judge([pair])[0].score == pytest.approx(each["reward"], abs=1e-4)
    assert len({each["reward"] for each in found}) > 1


def test_a_replica_that_dies_loses_no_request_that_had_not_begun(app: Running) -> None:
    streams = [Stream(app, f"stream {i}") for i in range(6)]
    assert all(each.begun.wait(30) for each in streams)
    eventually(lambda: sum(app.running().values()) == len(streams), 10)
    busy = app.running()
    victim = max(busy, key=lambda each: busy[each])
    assert busy[victim] > 0
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(app.client.post, CHAT, json=ask(f"whole {i}", max_tokens=60)) for i in range(16)]
        kill("engine", victim)
        assert {each.result().status_code for each in answers} == {200}
    errors = [each.error for each in streams]
    assert set(errors) <= {"replica_lost", None}
    assert errors.count("replica_lost") == busy[victim]
    eventually(lambda: len(app.metric("replica_up")) == 2)


def test_a_replica_that_freezes_is_as_good_as_lost(app: Running) -> None:
    """What a partition of the network looks like: nothing comes, and nothing says that nothing will."""
    eventually(lambda: len(processes("engine")) == 2)
    streams = [Stream(app, f"stream {i}") for i in range(8)]
    assert all(each.begun.wait(30) for each in streams)
    eventually(lambda: sum(app.running().values()) == len(streams), 10)
    busy = app.running()
    assert min(busy.values()) > 0
    frozen = processes("engine")[0]
    frozen.suspend()
    try:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda i: app.client.post(CHAT, json=ask(f"q {i}", max_tokens=4)), range(16)))
        assert {each.status_code for each in answers} == {200}
        assert "replica_lost" in {each.error for each in streams}
        assert None in {each.error for each in streams}
    finally:
        frozen.resume()
    eventually(lambda: list(app.metric("replica_up").values()) == [1.0, 1.0])


def test_a_guide_without_replicas_fails_those_who_need_it_alone(app: Running) -> None:
    kill("guide-taste")
    needing = app.client.post(CHAT, json=searching())
    assert needing.status_code == 503
    assert int(needing.headers["retry-after"]) >= 1
    assert app.client.post(CHAT, json=ask(max_tokens=4)).status_code == 200
    eventually(lambda: app.client.post(CHAT, json=searching()).status_code == 200)


def test_other_versions_refuse_each_other_until_the_update_is_through(app: Running, arguments: ClusterSettings) -> None:
    async def asked(protocol: int) -> list[Any]:
        call: Call = {
            "protocol": protocol,
            "route": route(),
            "method": "GET",
            "path": "/version",
            "query": b"",
            "headers": [],
            "body": b"",
        }
        handle = serve.get_deployment_handle("engine", NAME).options(stream=True)
        return [each async for each in handle.answer.remote(call)]

    assert [each[0] for each in asyncio.run(asked(PROTOCOL))] == ["hello", "start", "body"]
    ((kind, _),) = asyncio.run(asked(PROTOCOL + 1))
    assert kind == "refused"

    digest = guide_digest(server_settings(arguments), "taste")
    handle = serve.get_deployment_handle("guide-taste", NAME)
    for protocol, expected, status in ((PROTOCOL, digest, 200), (PROTOCOL, "other", 503), (PROTOCOL + 1, digest, 503)):
        call: GuideCall = {
            "protocol": protocol,
            "digest": expected,
            "route": route(),
            "path": "/v1/score",
            "body": {"model": "taste", "pairs": [{"prompt": "Hi", "answer": "Ho"}]},
        }
        told, body = handle.post.remote(call).result(timeout_s=20)
        assert told == status
        assert status == 200 or body["error"]["code"] == "version_skew"


def test_a_rolling_update_loses_nothing(app: Running, arguments: ClusterSettings) -> None:
    statuses, over = [], threading.Event()

    def load() -> None:
        while not over.is_set():
            statuses.append(app.client.post(CHAT, json=ask("steady", max_tokens=8)).status_code)

    streams = [Stream(app, f"stream {i}") for i in range(2)]
    assert all(each.begun.wait(30) for each in streams)
    loading = threading.Thread(target=load)
    loading.start()
    before = set(names("engine"))
    engine = {**arguments.settings["engine"], "max_rows": 32}
    try:
        assert all(each.is_alive() for each in streams)
        app.deploy(arguments.model_copy(update={"settings": {**arguments.settings, "engine": engine}}))
        eventually(lambda: not before & set(names("engine")), 60)
    finally:
        over.set()
        loading.join()
    assert len(statuses) > 5
    assert set(statuses) == {200}
    assert {each.error for each in streams} == {None}, "those that had begun came to their end"
