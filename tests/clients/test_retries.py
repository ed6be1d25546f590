"""What is asked again, after how long, and what never is; against a server that says any bytes."""

import json
import time
from typing import Any

import pytest

from trimtab.clients.client import ClientError
from trimtab.clients.retries import LONGEST_WAIT, SLOWEST, Retries
from trimtab.clients.stream import Piece

ASK = [{"role": "user", "content": "Hi"}]
MODELS = json.dumps({"data": [{"id": "tiny"}]})
ERROR = json.dumps({"error": {"message": "full", "type": "x", "param": None, "code": "overloaded"}})
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-request-id: r-7\r\nconnection: close\r\n\r\n"


def reply(status: int, body: str, **headers: str) -> bytes:
    told = {"content-length": str(len(body)), "connection": "close", **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in told.items())
    return f"HTTP/1.1 {status} X\r\n{lines}\r\n{body}".encode()


OK = reply(200, MODELS)


def chunk(text: str | None = None, **more: Any) -> bytes:
    """An event with a piece of text, in UTF-8."""
    choices = [] if text is None else [{"index": 0, "delta": {"content": text}, "finish_reason": "stop"}]
    told = {"object": "chat.completion.chunk", "choices": choices, **more}
    return f"data: {json.dumps(told, ensure_ascii=False)}\n\n".encode()


LAST = chunk(
    usage={"prompt_tokens": 1, "completion_tokens": 1},
    decoding={
        "spec": {"strategy": "sample"}, "chosen": [0], "candidates": [{"tokens": 1, "reward": None}],
        "model_tokens": {"base": 2}, "milliseconds": {"total": 1.0},
    },
)  # fmt: skip


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("first", [reply(503, ERROR), reply(429, ERROR), reply(503, "<html>")], ids=["503", "429", "?"])
def test_a_busy_server_is_asked_again(client: Any, sockets: Any, first: bytes) -> None:
    sockets.script = [[first], [first], [OK]]
    assert client.ask(sockets.url, "models") == ["tiny"]
    assert len(sockets.requests) == 3


@pytest.mark.usefixtures("at_once")
def test_it_ends_after_the_last_try_with_the_servers_words(client: Any, sockets: Any) -> None:
    sockets.script = [[reply(503, ERROR, retry_after="0", x_request_id="r-1")]] * 2
    with pytest.raises(ClientError, match="full") as failed:
        client.ask(sockets.url, "models", options={"retries": 1})
    assert (failed.value.status, failed.value.code) == (503, "overloaded")
    assert (failed.value.request_id, failed.value.retry_after) == ("r-1", 0.0)
    assert len(sockets.requests) == 2


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    "first",
    [
        reply(503, ERROR, x_should_retry="false"),
        reply(500, ERROR),
        reply(400, ERROR),
        reply(503, ERROR, retry_after="3600"),
    ],
    ids=["told not to", "500", "400", "an hour"],
)
def test_what_a_retry_cannot_help_is_asked_once(client: Any, sockets: Any, first: bytes) -> None:
    sockets.script = [[first], [OK]]
    with pytest.raises(ClientError, match="full"):
        client.ask(sockets.url, "models")
    assert len(sockets.requests) == 1


@pytest.mark.usefixtures("at_once")
def test_a_connection_that_breaks_is_made_again(client: Any, sockets: Any) -> None:
    sockets.script = [[], [b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{"], [OK]]
    assert client.ask(sockets.url, "models") == ["tiny"]


@pytest.mark.usefixtures("at_once")
def test_a_server_that_is_only_slow_is_not_asked_twice(client: Any, sockets: Any) -> None:
    sockets.script = [[0.6, OK]]
    with pytest.raises(ClientError, match="silent"):
        client.ask(sockets.url, "models", options={"timeout": 0.2})
    assert len(sockets.requests) == 1


def test_the_wait_that_the_server_asks_for_is_kept(client: Any, sockets: Any) -> None:
    sockets.script = [[reply(503, ERROR, retry_after="0.3")], [OK]]
    began = time.monotonic()
    assert client.ask(sockets.url, "models") == ["tiny"]
    assert 0.3 <= time.monotonic() - began < 5.0


def test_waits_double_and_spread_and_end() -> None:
    busy = ClientError("busy", may_retry=True)
    retries = Retries(times=9, first=0.5)
    for tried in range(9):
        waits = [retries.wait(tried, busy) or 0.0 for _ in range(50)]
        longest = min(0.5 * 2**tried, SLOWEST)
        assert longest / 2 <= min(waits) < max(waits) <= longest
    assert retries.wait(9, busy) is None
    assert Retries(times=0).wait(0, busy) is None
    assert 4.0 <= (retries.wait(0, ClientError("busy", may_retry=True, retry_after=4.0)) or 0.0) <= 5.0
    assert retries.wait(0, ClientError("busy", may_retry=True, retry_after=LONGEST_WAIT + 1)) is None


def test_a_date_to_retry_after_is_understood(client: Any, sockets: Any) -> None:
    sockets.script = [[reply(503, ERROR, retry_after="Wed, 21 Oct 2065 07:28:00 GMT")]]
    with pytest.raises(ClientError) as failed:
        client.ask(sockets.url, "models")
    assert (failed.value.retry_after or 0.0) > 1e8
    sockets.script = [[reply(503, ERROR, retry_after="soon")]]
    with pytest.raises(ClientError) as failed:
        client.ask(sockets.url, "models", options={"retries": 0})
    assert failed.value.retry_after is None


@pytest.mark.usefixtures("at_once")
def test_a_stream_that_was_refused_is_asked_again(client: Any, sockets: Any) -> None:
    sockets.script = [[reply(503, ERROR)], [STREAM + chunk("Hi") + LAST]]
    *pieces, answer = client.stream(sockets.url, "stream_chat", "tiny", ASK)
    assert pieces == ["Hi"]
    assert answer.request_id == "r-7"


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("end", [b"", b"data: [DONE]\n\n", b"data: {\n\n", b"data: 3\n\n"])
def test_a_stream_that_has_begun_is_never_begun_again(client: Any, sockets: Any, end: bytes) -> None:
    sockets.script = [[STREAM + chunk("Hi") + end], [STREAM + chunk("Hi") + LAST]]
    with pytest.raises(ClientError) as failed:
        client.stream(sockets.url, "stream_chat", "tiny", ASK)
    assert failed.value.request_id == "r-7"
    assert len(sockets.requests) == 1


@pytest.mark.usefixtures("at_once")
def test_a_stream_that_is_cut_off(client: Any, sockets: Any) -> None:
    cut = STREAM.replace(b"connection: close", b"transfer-encoding: chunked")
    sockets.script = [[cut, b"3000\r\n" + chunk("Hi")], [OK]]
    with pytest.raises(ClientError, match="broke off"):
        client.stream(sockets.url, "stream_chat", "tiny", ASK)
    assert len(sockets.requests) == 1


def test_characters_and_lines_may_be_split_anywhere(client: Any, sockets: Any) -> None:
    text = "é\u2028😀\x85\u2029 漢"
    whole = chunk(text) + b": keep-alive\r\n\r\n" + LAST.replace(b"\n\n", b"\r\n\r\n")
    sockets.script = [[STREAM, *(part for index in range(len(whole)) for part in (whole[index : index + 1],))]]
    pieces = client.stream(sockets.url, "stream_chat", "tiny", ASK)
    assert pieces[0] == text
    assert pieces[-1].text == text


def test_leaving_the_loop_hangs_up(client: Any, sockets: Any) -> None:
    sockets.script = [[STREAM, chunk("a"), *([0.01, chunk("b")] * 500)]]
    assert client.stream(sockets.url, "stream_chat", "tiny", ASK, most=1, left=sockets.gone) == [Piece("a", 0)]


def test_keys_and_request_ids_are_headers(client: Any, sockets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sockets.script = [[OK], [OK], [reply(400, ERROR, x_request_id="mine")]]
    monkeypatch.setenv("TRIMTAB_API_KEY", "from-env")
    client.ask(sockets.url, "models")
    client.ask(sockets.url, "models", options={"api_key": "given"})
    with pytest.raises(ClientError) as failed:
        client.ask(sockets.url, "chat", "tiny", ASK, request_id="mine")
    first, second, third = (request.lower() for request in sockets.requests)
    assert b"authorization: bearer from-env\r\n" in first
    assert b"authorization: bearer given\r\n" in second
    assert b"x-request-id: mine\r\n" in third
    assert b"request_id" not in third
    assert failed.value.request_id == "mine"


@pytest.mark.parametrize("body", ["<html>", "[]", '{"data": 3}', "{}"])
def test_an_answer_of_somebody_else_is_an_error_of_its_own(client: Any, sockets: Any, body: str) -> None:
    sockets.script = [[reply(200, body)]]
    with pytest.raises(ClientError, match="not that of a trimtab server"):
        client.ask(sockets.url, "models")
