"""Calls to one server: cancelled ones really end, refused ones come again, and nothing is left behind."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from typing import Any

import pytest
from fake_faults import Fault
from fake_remote import FakeRemote
from hypothesis import given
from hypothesis import strategies as st
from running import wait_until

from trimtab.engine.errors import ModelLoadError, RemoteError, RemoteUnavailable
from trimtab.engine.remote.client import Connection
from trimtab.engine.remote.events import Events
from trimtab.engine.remote.failures import Failed, pause
from trimtab.engine.remote.loop import LOOP
from trimtab.engine.remote.settings import ConnectionSettings

PATH = "/v1/completions"
BODY = {"prompt": [1, 2], "max_tokens": 5, "return_token_ids": True}
SECRET = "the-secret-of-the-prompt"


@pytest.fixture(scope="module")
def server() -> Iterator[FakeRemote]:
    with FakeRemote("vllm") as fake:
        yield fake


@pytest.fixture
def fake(server: FakeRemote) -> FakeRemote:
    server.script, server.always = [], None
    server.calls.clear()
    server.gone = server.most = 0
    return server


@pytest.fixture
def connect(fake: FakeRemote) -> Iterator[Any]:
    open_: list[Connection] = []

    def connect(**changes: Any) -> Connection:
        settings = {"url": fake.url, "backoff": 0.01, "longest_backoff": 0.5, "retries": 3, **changes}
        open_.append(Connection(ConnectionSettings(**settings)))
        return open_[-1]

    yield connect
    for each in open_:
        each.close()
    assert not any(thread.name == "trimtab-remote" for thread in threading.enumerate())
    assert LOOP._users == 0


def test_an_answer_comes_parsed(connect: Any) -> None:
    connection = connect()
    answer = connection.send("POST", PATH, BODY).result(10)
    assert len(answer["choices"][0]["token_ids"]) == 5
    assert connection.stats.calls == connection.stats.seconds.counts[0] + sum(connection.stats.seconds.counts[1:]) == 1
    assert (connection.stats.in_flight, connection.stats.waiting, connection.stats.failures) == (0, 0, {})


def test_a_stream_is_told_in_order_and_ends(connect: Any) -> None:
    told: list[dict[str, Any]] = []
    connection = connect()
    whole = connection.send("POST", PATH, BODY).result(10)["choices"][0]["token_ids"]
    assert connection.stream(PATH, {**BODY, "stream": True}, told.append).result(10) is None
    assert [id_ for chunk in told for choice in chunk["choices"] for id_ in choice.get("token_ids", ())] == whole


def test_what_the_listener_raises_ends_the_stream(fake: FakeRemote, connect: Any) -> None:
    def refuse(chunk: dict[str, Any]) -> None:
        raise RemoteError("enough")

    fake.always = Fault(pause=0.05)
    with pytest.raises(RemoteError, match="enough"):
        connect().stream(PATH, {**BODY, "stream": True}, refuse).result(10)
    wait_until(lambda: fake.gone == 1)
    assert len(fake.calls) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_cancelled_call_closes_its_connection(fake: FakeRemote, connect: Any, stream: bool) -> None:
    fake.always = Fault(pause=10.0, delay=0.0 if stream else 10.0)
    connection = connect()
    if stream:
        call = connection.stream(PATH, {**BODY, "stream": True}, lambda chunk: None)
    else:
        call = connection.send("POST", PATH, BODY)
    wait_until(lambda: fake.running == 1)
    begun = time.monotonic()
    assert call.cancel()
    wait_until(lambda: fake.gone == 1 and fake.running == 0)
    assert time.monotonic() - begun < 2.0
    wait_until(lambda: connection.stats.in_flight == 0)
    fake.always = None
    assert connection.send("POST", PATH, BODY).result(10)


def test_a_call_that_waits_can_be_cancelled_without_being_sent(fake: FakeRemote, connect: Any) -> None:
    fake.always = Fault(delay=0.3)
    connection = connect(connections=1)
    first, second, third = [connection.send("POST", PATH, BODY) for _ in range(3)]
    wait_until(lambda: connection.stats.waiting == 2)
    assert second.cancel()
    assert first.result(10)
    assert third.result(10)
    assert len(fake.calls) == 2


def test_no_more_calls_than_connections_are_under_way(fake: FakeRemote, connect: Any) -> None:
    fake.always = Fault(delay=0.02)
    calls = [connect_.send("POST", PATH, BODY) for connect_ in [connect(connections=3)] for _ in range(12)]
    for call in calls:
        call.result(10)
    assert fake.most == 3


def test_waiting_for_a_connection_does_not_count_as_silence(fake: FakeRemote, connect: Any) -> None:
    fake.always = Fault(delay=0.3)
    connection = connect(connections=1, read_timeout=0.6)
    for call in [connection.send("POST", PATH, BODY) for _ in range(4)]:
        assert call.result(10)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_was_not_taken_comes_again(fake: FakeRemote, connect: Any, status: int, stream: bool) -> None:
    fake.script = [Fault(status=status)] * 2
    connection = connect()
    if stream:
        connection.stream(PATH, {**BODY, "stream": True}, lambda chunk: None).result(10)
    else:
        connection.send("POST", PATH, BODY).result(10)
    assert len(fake.calls) == 3
    assert connection.stats.retries == 2
    assert connection.stats.failures == {"limited" if status == 429 else "unavailable": 2}


def test_the_last_refusal_is_told_with_the_servers_patience(fake: FakeRemote, connect: Any) -> None:
    fake.always = Fault(status=503, headers={"retry-after": "0.02"})
    with pytest.raises(RemoteUnavailable, match="503") as caught:
        connect(retries=2).send("POST", PATH, BODY).result(10)
    assert len(fake.calls) == 3
    assert caught.value.retry_after == 0.02


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_server_that_asks_for_too_long_is_not_waited_for(fake: FakeRemote, connect: Any, form: str) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    fake.always = Fault(status=429, headers={"retry-after": date if form == "date" else "60"})
    begun = time.monotonic()
    with pytest.raises(RemoteUnavailable) as caught:
        connect().send("POST", PATH, BODY).result(10)
    assert time.monotonic() - begun < 5
    assert len(fake.calls) == 1
    assert 30 < caught.value.retry_after <= 90


@pytest.mark.parametrize("header", ["soon", "inf", "nan", "-1", "Wed, 99 Foo"])
def test_a_retry_after_that_says_nothing_is_passed_over(fake: FakeRemote, connect: Any, header: str) -> None:
    fake.script = [Fault(status=429, headers={"retry-after": header})]
    assert connect().send("POST", PATH, BODY).result(10)


def test_retry_after_is_waited_for(fake: FakeRemote, connect: Any) -> None:
    fake.script = [Fault(status=429, headers={"retry-after": "0.3"})]
    begun = time.monotonic()
    connect().send("POST", PATH, BODY).result(10)
    assert time.monotonic() - begun >= 0.3


def test_waits_grow_and_differ() -> None:
    waits = [[pause(tried, 1.0, 4.0, None) or 0.0 for _ in range(50)] for tried in range(5)]
    assert [round(max(each)) for each in waits] == [1, 2, 4, 4, 4]
    assert all(len(set(each)) > 40 for each in waits)
    assert all(min(later) >= 0.9 * min(sooner) for sooner, later in pairwise(waits))


@pytest.mark.parametrize(("status", "kind"), [(400, "refused"), (404, "refused"), (500, "failed"), (301, "refused")])
def test_other_statuses_are_errors_at_once_and_quote_nothing(
    fake: FakeRemote, connect: Any, status: int, kind: str
) -> None:
    told = b'{"error": {"message": "%b", "code": "bad_thing", "param": "%b here"}}' % ((SECRET.encode(),) * 2)
    fake.always = Fault(status=status, body=told)
    connection = connect()
    with pytest.raises(RemoteError, match=rf"{status} \(bad_thing\)") as caught:
        connection.send("POST", PATH, {**BODY, "user": SECRET}).result(10)
    assert SECRET not in str(caught.value)
    assert len(fake.calls) == 1
    assert connection.stats.failures == {kind: 1}


@pytest.mark.parametrize(
    "body", [b"<html>502</html>", b"", b'{"choices": [', b"\xff\xfe", b"NaN", b'{"a": NaN}', b"[" * 10**5]
)
def test_what_is_no_json_is_an_error(fake: FakeRemote, connect: Any, body: bytes) -> None:
    fake.always = Fault(body=body)
    with pytest.raises(RemoteError, match="no JSON"):
        connect().send("POST", PATH, BODY).result(10)
    assert len(fake.calls) == 1


def test_a_silent_server_is_asked_once(fake: FakeRemote, connect: Any) -> None:
    fake.always = Fault(delay=5.0)
    begun = time.monotonic()
    with pytest.raises(RemoteUnavailable, match=r"silent for 0.2 s \(read_timeout\)"):
        connect(read_timeout=0.2).send("POST", PATH, BODY).result(10)
    assert time.monotonic() - begun < 2
    assert len(fake.calls) == 1
    wait_until(lambda: fake.gone == 1)


def test_a_stream_that_falls_silent_has_failed(fake: FakeRemote, connect: Any) -> None:
    fake.always = Fault(pause=5.0)
    with pytest.raises(RemoteUnavailable, match="silent"):
        connect(read_timeout=0.2).stream(PATH, {**BODY, "stream": True}, lambda chunk: None).result(10)


def test_a_lost_answer_is_asked_for_again(fake: FakeRemote, connect: Any) -> None:
    fake.script = [Fault(drop_after=0), Fault(drop_after=1)]
    connection = connect()
    assert connection.send("POST", PATH, BODY).result(10)
    assert connection.stats.failures == {"lost": 2}


def test_a_stream_is_not_begun_again_once_something_was_told(fake: FakeRemote, connect: Any) -> None:
    fake.script = [Fault(drop_after=0), Fault(drop_after=2)]
    told: list[dict[str, Any]] = []
    with pytest.raises(RemoteUnavailable, match="closed the connection"):
        connect().stream(PATH, {**BODY, "stream": True}, told.append).result(10)
    assert len(fake.calls) == 2
    assert len(told) <= 2


def test_a_stream_without_its_end_is_lost(fake: FakeRemote, connect: Any) -> None:
    fake.always = Fault(body=b'data: {"choices": []}\n\n')
    with pytest.raises(RemoteUnavailable, match="before the answer was whole"):
        connect().stream(PATH, {**BODY, "stream": True}, lambda chunk: None).result(10)


@pytest.mark.parametrize("line", [b"data: [1]", b"data: {", b"data: null", b'data: "x"'])
def test_a_stream_of_other_things_than_objects_is_an_error(fake: FakeRemote, connect: Any, line: bytes) -> None:
    fake.always = Fault(body=line + b"\n\ndata: [DONE]\n\n")
    with pytest.raises(RemoteError):
        connect().stream(PATH, {**BODY, "stream": True}, lambda chunk: None).result(10)


def test_nobody_there(fake: FakeRemote, connect: Any) -> None:
    begun = time.monotonic()
    connection = connect(url="http://127.0.0.1:9", retries=2)
    with pytest.raises(RemoteUnavailable, match=r"127.0.0.1:9 cannot be reached"):
        connection.send("GET", "/v1/models").result(10)
    assert connection.stats.failures == {"connect": 3}
    assert time.monotonic() - begun < 5


def test_a_late_answer_is_asked_for_a_second_time_only_if_wanted(fake: FakeRemote, connect: Any) -> None:
    fake.script = [Fault(delay=2.0), None]
    begun = time.monotonic()
    connection = connect(hedge_after=0.1)
    assert connection.send("POST", PATH, BODY).result(10)
    assert time.monotonic() - begun < 1.5
    assert connection.stats.hedges == 1
    wait_until(lambda: fake.gone == 1)  # the slower one was given up
    fake.script = [Fault(delay=0.3)]
    assert connect().send("POST", PATH, BODY).result(10)
    assert len(fake.calls) == 3


def test_a_hedge_outlives_the_failure_of_the_other(fake: FakeRemote, connect: Any) -> None:
    fake.script = [Fault(delay=0.2, status=500), Fault(delay=0.3)]
    assert connect(hedge_after=0.05).send("POST", PATH, BODY).result(10)
    assert len(fake.calls) == 2


def test_closing_ends_what_is_under_way(fake: FakeRemote, connect: Any) -> None:
    fake.always = Fault(delay=10.0)
    connection = connect(connections=1)
    calls = [connection.send("POST", PATH, BODY) for _ in range(3)]
    wait_until(lambda: fake.running == 1)
    connection.close()
    connection.close()
    for call in calls:
        with pytest.raises(CancelledError):
            call.result(10)
    wait_until(lambda: fake.gone == 1)
    with pytest.raises(RemoteUnavailable, match="closed"):
        connection.send("POST", PATH, BODY)


def test_nothing_is_left_in_the_loop(fake: FakeRemote, connect: Any) -> None:
    """Another connection keeps the loop; the closed one has no task there."""
    other = connect()
    fake.always = Fault(delay=10.0)
    connection = connect(hedge_after=0.01)
    connection.send("POST", PATH, BODY)
    connection.stream(PATH, {**BODY, "stream": True}, lambda chunk: None)
    wait_until(lambda: fake.running == 3)
    connection.close()

    async def others() -> int:
        return len(asyncio.all_tasks())

    assert other.start(others()).result(10) == 1


def test_many_calls_from_many_threads(fake: FakeRemote, connect: Any) -> None:
    connection = connect(connections=16)
    answers: list[Any] = []

    def ask() -> None:
        answers.extend(connection.send("POST", PATH, {**BODY, "seed": n}) for n in range(20))

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(answer.result(30)["choices"] for answer in answers)
    assert connection.stats.calls == 100


def test_the_key_is_sent_and_never_told(fake: FakeRemote, connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAR_KEY", SECRET)
    fake.always = Fault(status=401)
    with pytest.raises(RemoteError, match="api_key_env") as caught:
        connect(api_key_env="FAR_KEY").send("POST", PATH, BODY).result(10)
    assert fake.calls[0][2]["authorization"] == f"Bearer {SECRET}"
    assert SECRET not in str(caught.value)
    with pytest.raises(ModelLoadError, match="MISSING_KEY is not set"):
        connect(api_key_env="MISSING_KEY")


def test_credentials_in_the_address_are_not_told(connect: Any) -> None:
    connection = connect(url=f"http://me:{SECRET}@127.0.0.1:9/base/?key={SECRET}", retries=0)
    assert connection.name == "http://127.0.0.1:9/base"
    with pytest.raises(RemoteUnavailable) as caught:
        connection.send("GET", "/v1/models").result(10)
    assert SECRET not in str(caught.value)


def test_a_session_goes_into_the_headers_of_routers(fake: FakeRemote, connect: Any) -> None:
    connection = connect()
    connection.send("POST", PATH, BODY, session="s1").result(10)
    connection.send("POST", PATH, BODY).result(10)
    (_, _, with_one), (_, _, without) = fake.calls
    assert with_one["x-session-id"] == with_one["x-smg-routing-key"] == "s1"
    assert "x-session-id" not in without


DATA = st.binary(min_size=1, max_size=20).filter(lambda data: not set(data) & {10, 13} and data != b"[DONE]")


@given(st.lists(DATA, max_size=6), st.data(), st.sampled_from([b"\n", b"\r\n"]))
def test_events_are_the_same_however_they_are_cut(events: list[bytes], data: st.DataObject, end: bytes) -> None:
    lines = [b": comment" + end + b"event: x" + end + b"data: " + event + end + end for event in events]
    whole = b"".join([*lines, b"data: [DONE]" + end + end])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    reader = Events()
    told = []
    for begin, stop in pairwise([0, *cuts, len(whole)]):
        told += list(reader.feed(whole[begin:stop]))
    assert told == [event.removeprefix(b"") for event in events]
    assert reader.ended


def test_an_event_without_an_end_is_not_collected_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.engine.remote.events.LONGEST", 100)
    reader = Events()
    assert list(reader.feed(b"data: " + b"0" * 90)) == []
    with pytest.raises(Failed, match="without an end"):
        list(reader.feed(b"0123456789"))


def test_an_answer_without_an_end_is_not_collected_for_ever(
    fake: FakeRemote, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trimtab.engine.remote.client.LARGEST", 1000)
    fake.always = Fault(body=b" " * 2000)
    with pytest.raises(RemoteError, match="more than"):
        connect().send("POST", PATH, BODY).result(10)
