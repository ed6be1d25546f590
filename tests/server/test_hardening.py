"""Clients that send too much, too slowly, nonsense or nothing, over raw sockets; and what others notice of them."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from typing import Any

import httpx2
import pytest
from wire import connect

from trimtab.engine.errors import ModelLoadError, Overloaded
from trimtab.server.protocol import MAX_HEADERS, MAX_PIPELINE, PIPELINE, SPARE
from trimtab.server.settings import ServerSettings

PATH = "/v1/chat/completions"
CHAT = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}
BODY = json.dumps(CHAT).encode()
SOON = 5.0
"""seconds in which anything that is bounded by the limits below has ended"""
LIMITS = ServerSettings(
    header_timeout=0.4,
    body_timeout=0.6,
    write_timeout=0.5,
    max_header_bytes=8192,
    max_body_bytes=100_000,
    max_connections=8,
)


@pytest.fixture
def url(fake: Any, start: Any) -> str:
    return str(start(fake, LIMITS).url)


def head(path: str = PATH, method: str = "POST", **headers: object) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: x"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def post(body: bytes = BODY, **headers: object) -> bytes:
    return head(content_type="application/json", content_length=len(body), **headers) + body


HEALTH = head("/health", "GET")


def read(client: socket.socket, seconds: float = SOON) -> bytes:
    """Everything until the server closes; fails if it does not within `seconds`."""
    client.settimeout(seconds)
    received = b""
    while chunk := client.recv(1 << 16):
        received += chunk
    return received


def told(response: bytes) -> tuple[int, str]:
    """Status and error code of a raw response that has an error body and an id."""
    top, _, body = response.partition(b"\r\n\r\n")
    assert top.lower().count(b"x-request-id: ") == 1, response
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return int(top.split()[1]), error["code"]


def trickle(client: socket.socket, data: bytes, pause: float) -> None:
    """Send byte by byte until all is sent or the server has had enough."""
    for byte in data:
        try:
            client.sendall(bytes([byte]))
        except OSError:
            return
        time.sleep(pause)


def flood(client: socket.socket, data: bytes) -> int:
    """Send ten million bytes, or until the server has had enough; returns how many went."""
    sent = 0
    with suppress(OSError):
        while sent < 10_000_000:
            client.sendall(data)
            sent += len(data)
    return sent


def alive(url: str) -> bool:
    return httpx2.get(url + "/health", timeout=SOON).status_code == 200


def test_a_head_that_trickles_ends_with_408(url: str) -> None:
    with closing(connect(url)) as client:
        began = time.monotonic()
        trickle(client, head(x="y" * 20), 0.05)
        assert told(read(client)) == (408, "header_timeout")
        assert time.monotonic() - began < SOON
    assert alive(url)


def test_slow_clients_do_not_disturb_others(url: str) -> None:
    with ExitStack() as slow:
        for _ in range(30):
            slow.enter_context(closing(connect(url))).sendall(b"GET /hea")
        for _ in range(5):
            began = time.monotonic()
            assert alive(url)
            assert time.monotonic() - began < 1


def test_a_connection_that_says_nothing_is_closed_in_silence(url: str) -> None:
    with closing(connect(url)) as client:
        assert read(client) == b""


def test_line_ends_do_not_keep_a_connection_open(url: str) -> None:
    with closing(connect(url)) as client:
        client.sendall(HEALTH)
        assert client.recv(12) == b"HTTP/1.1 200"
        trickle(client, b"\r\n" * 10, 0.05)
        assert b'"header_timeout"' in read(client)


def test_a_body_that_trickles_ends_with_408(url: str) -> None:
    with closing(connect(url)) as client:
        client.sendall(head(content_type="application/json", content_length=len(BODY)))
        trickle(client, BODY, 0.05)
        assert told(read(client)) == (408, "body_timeout")
    assert alive(url)


def test_a_body_nobody_reads_is_not_taken_for_ever(url: str) -> None:
    with closing(connect(url)) as client:
        client.sendall(head("/nowhere", content_type="application/json", content_length=10_000))
        assert client.recv(12) == b"HTTP/1.1 404"
        began = time.monotonic()
        trickle(client, b"x" * 100, 0.05)
        read(client)
        assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    "flood",
    [
        head("/health", "GET", x="y" * 9000),
        head("/health", "GET", **{f"x{i}": "y" * 100 for i in range(100)}),
        head("/health", "GET", **{f"x{i}": "" for i in range(MAX_HEADERS + 1)}),
        head("/health?" + "y" * 9000, "GET"),
    ],
    ids=["one large", "large together", "many", "path"],
)
def test_a_flood_of_headers_is_431(url: str, flood: bytes) -> None:
    with closing(connect(url)) as client:
        client.sendall(flood)
        assert told(read(client)) == (431, "headers_too_large")
    assert alive(url)


def test_a_header_without_end_is_not_kept(url: str) -> None:
    with closing(connect(url)) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nx: ")
        assert flood(client, b"y" * 4096) < 5_000_000  # what the kernel holds
    assert alive(url)


def test_headers_up_to_the_limit_pass(url: str) -> None:
    headers = {f"x-{i}": "y" * 60 for i in range(MAX_HEADERS - 20)}
    assert httpx2.get(url + "/health", headers=headers).status_code == 200


@pytest.mark.parametrize("stated", [10_000_000, 2**64 - 1])
def test_a_large_body_is_refused_unread(url: str, fake: Any, stated: int) -> None:
    with closing(connect(url)) as client:
        client.sendall(head(content_type="application/json", content_length=stated) + b"{")
        assert told(read(client)) == (413, "body_too_large")
    assert not fake.submitted


def test_a_chunked_body_is_refused_where_it_is_too_large(url: str, fake: Any) -> None:
    with closing(connect(url)) as client:
        client.sendall(head(content_type="application/json", transfer_encoding="chunked"))
        assert flood(client, b"1000\r\n" + b"x" * 4096 + b"\r\n") < 8_000_000
        assert told(read(client)) == (413, "body_too_large")
    assert not fake.submitted
    assert alive(url)


@pytest.mark.parametrize("length", ["-1", "1x", "+5", "", "5, 6", "5\r\ncontent-length: 6", "٣", "9" * 40])
def test_a_content_length_that_is_none_is_400(url: str, length: str) -> None:
    with closing(connect(url)) as client:
        client.sendall(head(content_type="application/json", content_length=length) + BODY)
        assert told(read(client)) == (400, "invalid_http")
    assert alive(url)


def test_a_body_shorter_than_stated_is_nobodys(url: str, fake: Any) -> None:
    with closing(connect(url)) as client:
        client.sendall(head(content_type="application/json", content_length=len(BODY) + 1) + BODY)
        assert told(read(client)) == (408, "body_timeout")
    with closing(connect(url)) as client:  # leaves in the middle of its body
        client.sendall(head(content_type="application/json", content_length=len(BODY)) + BODY[:9])
    assert alive(url)
    assert not fake.submitted


def test_chunked_and_length_together_are_refused(url: str, fake: Any) -> None:
    with closing(connect(url)) as client:
        client.sendall(post(transfer_encoding="chunked"))
        assert told(read(client)) == (400, "invalid_http")
    assert not fake.submitted


NONSENSE = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),  # a TLS handshake
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET  HTTP/1.1\r\n\r\n",
    b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
    b"GET / HTTP/1.1\r\nx: a\x00b\r\n\r\n",
    b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
)


@pytest.mark.parametrize("nonsense", NONSENSE, ids=range(len(NONSENSE)))
def test_what_is_not_http_is_400(url: str, nonsense: bytes) -> None:
    with closing(connect(url)) as client:
        client.sendall(nonsense)
        status, code = told(read(client))
    assert (status, code) in ((400, "invalid_http"), (404, "not_found"), (405, "method_not_allowed"))
    assert alive(url)


def test_deep_json_is_400(url: str) -> None:
    for open_, close in (("[", "]"), ('{"a":', "}")):
        deep = open_ * 15_000 + "1" + close * 15_000
        for body in (deep, f'{{"model":"fake","messages":[],"chat_template_kwargs":{{"x":{deep}}}}}'):
            response = httpx2.post(url + PATH, content=body, headers={"content-type": "application/json"})
            assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")
    assert alive(url)


@pytest.mark.parametrize(
    ("sent", "used"),
    [
        (["first-1", "second-2"], "first-1"),
        (["bad id", "second-2"], "second-2"),
        (["x" * 129], None),
        (["a\x80b"], None),
        ([""], None),
    ],
)
def test_one_request_id_is_used(url: str, sent: list[str], used: str | None) -> None:
    lines = "".join(f"x-request-id: {each}\r\n" for each in sent).encode("latin-1")
    with closing(connect(url)) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nconnection: close\r\n" + lines + b"\r\n")
        top = read(client).partition(b"\r\n\r\n")[0].decode()
    (answered,) = [line.partition(": ")[2] for line in top.split("\r\n") if line.startswith("x-request-id")]
    assert answered == used if used else len(answered) == 32


def test_expect_100_continue(url: str, fake: Any, wait_until: Any) -> None:
    with closing(connect(url)) as client:
        client.sendall(head(content_type="application/json", content_length=len(BODY), expect="100-continue"))
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(BODY)
        wait_until(lambda: len(fake.submitted) == 1)
        fake.end("hello")
        assert client.recv(12) == b"HTTP/1.1 200"
    with closing(connect(url)) as client:  # what will be refused is not asked for
        client.sendall(head(content_type="application/json", content_length=10**7, expect="100-continue"))
        assert told(read(client)) == (413, "body_too_large")


def test_a_request_for_another_protocol_is_answered_and_ends_the_connection(url: str) -> None:
    with closing(connect(url)) as client:
        client.sendall(head("/health", "GET", connection="upgrade, http2-settings", upgrade="h2c"))
        assert read(client).startswith(b"HTTP/1.1 200")


def test_pipelined_requests_are_answered_in_order(url: str) -> None:
    ids = [f"id-{i}" for i in range(200)]
    requests = b"".join(head("/health", "GET", x_request_id=each) for each in ids[:-1])
    with closing(connect(url)) as client:
        client.sendall(requests + head("/health", "GET", x_request_id=ids[-1], connection="close"))
        received = read(client).decode()
    assert [line.partition(": ")[2] for line in received.split("\r\n") if line.startswith("x-request-id")] == ids


def test_thousands_of_pipelined_requests_end_after_those_that_fit(url: str) -> None:
    with closing(connect(url)) as client:
        with suppress(OSError):
            client.sendall(HEALTH * 5000)
        answered = read(client).count(b"HTTP/1.1 200")
    assert 1 <= answered <= 5000
    assert alive(url)


def test_a_pile_behind_a_running_request_is_bounded(url: str, fake: Any, wait_until: Any) -> None:
    with closing(connect(url)) as client:
        client.sendall(post() + HEALTH * (MAX_PIPELINE + 50))
        wait_until(lambda: len(fake.submitted) == 1)
        time.sleep(0.1)
        fake.end("hello")
        answered = read(client)
    assert answered.count(b"HTTP/1.1 200") <= MAX_PIPELINE + 1
    assert b"hello" in answered
    assert alive(url)


@pytest.mark.parametrize("behind", [1, PIPELINE // 2])
def test_leaving_with_requests_in_the_pipe_cancels(url: str, fake: Any, wait_until: Any, behind: int) -> None:
    with closing(connect(url)) as client:
        client.sendall(post() * (1 + behind))
        wait_until(lambda: len(fake.submitted) == 1)
        time.sleep(0.1)
    wait_until(lambda: fake.cancelled == [fake.submitted[0][1]])
    assert alive(url)


def test_nonsense_behind_a_running_request_waits_for_its_answer(url: str, fake: Any, wait_until: Any) -> None:
    with closing(connect(url)) as client:
        client.sendall(post() + b"NONSENSE\r\n\r\n")
        wait_until(lambda: len(fake.submitted) == 1)
        fake.end("hello")
        received = read(client)
    assert received.count(b"HTTP/1.1 ") == 1
    assert b"hello" in received


def test_thousands_of_tiny_requests(url: str) -> None:
    with httpx2.Client(base_url=url) as client:
        for _ in range(500):
            assert client.get("/health").status_code == 200
    for _ in range(200):
        with closing(connect(url)) as one:
            one.sendall(head("/health", "GET", connection="close"))
            assert read(one).startswith(b"HTTP/1.1 200")


def test_too_many_requests_at_a_time_are_503(url: str, fake: Any, wait_until: Any) -> None:
    with ExitStack() as clients:
        for _ in range(LIMITS.max_connections):
            clients.enter_context(closing(connect(url))).sendall(post())
        wait_until(lambda: len(fake.submitted) == LIMITS.max_connections)
        refused = httpx2.post(url + PATH, json=CHAT)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        assert refused.headers["retry-after"] == "1"
        assert "server.max_connections" in refused.json()["error"]["message"]
        assert alive(url)
    wait_until(lambda: len(fake.cancelled) == LIMITS.max_connections)
    assert httpx2.post(url + "/tokenize", json={"prompt": "x"}).status_code == 200


def test_connections_are_bounded(url: str) -> None:
    with ExitStack() as clients:
        many = [clients.enter_context(closing(connect(url))) for _ in range(LIMITS.max_connections + SPARE + 20)]
        time.sleep(0.1)
        many[-1].settimeout(SOON)
        with suppress(ConnectionResetError):
            assert many[-1].recv(10) == b""
        many[0].sendall(HEALTH)
        assert many[0].recv(12) == b"HTTP/1.1 200"


@pytest.fixture
def reader() -> Iterator[Callable[[str], socket.socket]]:
    """Connects with a small window; nothing is read unless the test does."""
    with ExitStack() as clients:

        def connected(url: str) -> socket.socket:
            client = clients.enter_context(closing(socket.socket()))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", int(url.rpartition(":")[2])))
            return client

        yield connected


def test_a_reader_that_never_reads_is_cut_off(
    fake: Any, start: Any, wait_until: Any, reader: Callable[[str], socket.socket]
) -> None:
    running = start(fake, LIMITS)
    reader(running.url).sendall(post(json.dumps({**CHAT, "stream": True, "n": 8}).encode()))
    wait_until(lambda: len(fake.submitted) == 1)
    (connection,) = running.server.server_state.connections
    text = "x" * 100_000
    for _ in range(40):
        for choice in range(8):
            fake.say(text, choice)
        held = connection.transport.get_write_buffer_size()
        assert held < 16 * len(text), "more than what was unread at the last write stands in the connection's buffer"
    wait_until(lambda: fake.cancelled == [fake.submitted[0][1]])
    wait_until(lambda: not running.server.server_state.connections)
    assert running.service.bridge.open == 0


def test_a_whole_answer_that_nobody_reads_is_not_kept(
    fake: Any, start: Any, wait_until: Any, reader: Callable[[str], socket.socket]
) -> None:
    running = start(fake, LIMITS)
    reader(running.url).sendall(post())
    wait_until(lambda: len(fake.submitted) == 1)
    fake.end("x" * 20_000_000)
    wait_until(lambda: running.service.bridge.open == 0)
    assert running.server.server_state.connections
    wait_until(lambda: not running.server.server_state.connections)


def test_a_slow_reader_gets_everything(url: str, fake: Any, wait_until: Any) -> None:
    """It takes longer than write_timeout, but never stands still for as long."""
    with closing(connect(url)) as client:
        client.sendall(post(connection="close"))
        wait_until(lambda: len(fake.submitted) == 1)
        fake.end("x" * 20_000_000)
        received, began = 0, time.monotonic()
        while chunk := client.recv(1 << 20):
            received += len(chunk)
            time.sleep(0.05)
    assert received > 20_000_000
    assert time.monotonic() - began > LIMITS.write_timeout


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("/srv/models/secret on gpu-7.internal"),
        OSError(2, "No such file or directory", "/srv/models/secret"),
        ModelLoadError("cannot read /srv/models/secret: gpu-7.internal is down"),
    ],
)
@pytest.mark.parametrize("stage", ["submit", "run", "stream"])
def test_an_error_tells_no_path_and_no_host(url: str, fake: Any, wait_until: Any, stage: str, error: Exception) -> None:
    if stage == "submit":
        fake.refuses = error
    with closing(connect(url)) as client:
        body = json.dumps({**CHAT, "stream": stage == "stream"}).encode()
        client.sendall(post(body, connection="close"))
        if stage != "submit":
            wait_until(lambda: len(fake.submitted) == 1)
            fake.fail(error)
        received = read(client)
    assert b'"code":"internal_error"' in received
    for word in (b"secret", b"gpu-7", b"/srv", b"Traceback", b".py", socket.gethostname().encode()):
        assert word not in received


def test_a_retry_is_told_when(url: str, fake: Any) -> None:
    fake.refuses = Overloaded("the queue is full", retry_after=7)
    assert httpx2.post(url + PATH, json=CHAT).headers["retry-after"] == "7"
