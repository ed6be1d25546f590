"""One line per request, and what no line ever holds."""

import io
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import httpx2
import pytest
from wire import connect

from trimtab.engine.errors import GuideError
from trimtab.server.logs import QUEUE, Writer, logging_to
from trimtab.server.settings import LogSettings, ServerSettings

PATH = "/v1/chat/completions"
PROMPT, ANSWER, KEY = "PLANTED-PROMPT", "PLANTED-ANSWER", "sk-PLANTED-KEY"
CHAT = {"model": "fake", "messages": [{"role": "user", "content": PROMPT}]}
HEADERS = {"authorization": f"Bearer {KEY}", "x-request-id": "mine-1", "cookie": KEY}

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def log() -> Iterator[Callable[..., Lines]]:
    """`log(format=..., level=...)` begins to log; what it returns ends that and returns the lines."""
    with ExitStack() as ending:

        def begin(**changes: Any) -> Callable[[], Any]:
            stream, own = io.StringIO(), ExitStack()
            own.enter_context(logging_to(LogSettings(**changes), stream))
            ending.push(own)

            def end() -> Any:
                own.close()
                lines = stream.getvalue().splitlines()
                return lines if changes.get("format") == "text" else [json.loads(line) for line in lines]

            return end

        yield begin


def requests(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["logger"] == "trimtab.access"]


@pytest.fixture
def answered(fake: Any, start: Any, wait_until: Any) -> Callable[..., httpx2.Response]:
    """Ask, let the engine do `play`, and return the response."""
    running = start(fake)

    def ask(play: Callable[[], None], **changes: Any) -> httpx2.Response:
        got: list[httpx2.Response] = []
        thread = threading.Thread(
            target=lambda: got.append(httpx2.post(running.url + PATH, json={**CHAT, **changes}, headers=HEADERS))
        )
        thread.start()
        wait_until(lambda: len(fake.submitted) == 1)
        play()
        thread.join(20)
        wait_until(lambda: running.service.bridge.open == 0)
        running.stop()  # the line is written when the request has ended
        return got[0]

    return ask


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_one_line(fake: Any, answered: Any, log: Any, stream: bool) -> None:
    end = log(format="json")
    answered(lambda: fake.end(ANSWER, ANSWER), n=2, stream=stream)
    (line,) = requests(end())
    assert line.pop("ms") > 0
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "trimtab.access",
        "message": "request",
        "request_id": "mine-1",
        "method": "POST",
        "route": PATH,
        "status": 200,
        "caller": "anonymous",
        "model": "fake",
        "strategy": "sample",
        "prompt_tokens": 2,
        "completion_tokens": 2,
        "model_tokens": 3,
        "finish": ["stop", "stop"],
    }


def test_text_holds_the_same_on_one_line(fake: Any, answered: Any, log: Any) -> None:
    end = log(format="text")
    answered(lambda: fake.end(ANSWER))
    (line,) = [line for line in end() if "trimtab.access" in line]
    assert " info trimtab.access request request_id=mine-1 method=POST " in line
    assert " finish=stop" in line


@pytest.mark.parametrize("level", ["info", "debug"])
def test_probes_and_the_page_are_told_at_debug(fake: Any, start: Any, log: Any, level: str) -> None:
    end = log(format="json", level=level)
    running = start(fake)
    for path in ("/health", "/ready", "/metrics", "/version", "/", "/static/index.html"):
        httpx2.get(running.url + path)
    running.stop()
    told = {line["route"]: line["level"] for line in requests(end())}
    probes = dict.fromkeys(("/health", "/ready", "/metrics", "/", "/static/{path:path}"), "debug")
    assert told == ({"/version": "info"} | (probes if level == "debug" else {}))


def test_refusals_and_failures_are_told_with_their_code(fake: Any, start: Any, log: Any) -> None:
    end = log(format="json")
    running = start(fake)
    with httpx2.Client(base_url=running.url) as client:
        client.get(f"/nowhere/{KEY}")
        client.post(PATH, json={**CHAT, "model": "other"})
        client.post(PATH, content=b"{", headers={"content-type": "application/json"})
        fake.refuses = RuntimeError(PROMPT)
        client.post(PATH, json=CHAT)
    running.stop()
    told = [(line["level"], line.get("route"), line["status"], line["error"]) for line in requests(end())]
    assert told == [
        ("info", None, 404, "not_found"),
        ("info", PATH, 404, "model_not_found"),
        ("info", PATH, 400, "invalid_json"),
        ("warning", PATH, 500, "internal_error"),
    ]


def test_an_error_in_a_stream_and_a_client_that_leaves_are_told(
    fake: Any, start: Any, log: Any, wait_until: Any
) -> None:
    end = log(format="json")
    running = start(fake)
    for number, stream in enumerate((True, False), 1):
        with closing(connect(running.url)) as client:
            body = json.dumps({**CHAT, "stream": stream}).encode()
            head = f"POST {PATH} HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            wait_until(lambda count=number: len(fake.submitted) == count)
        wait_until(lambda: running.service.bridge.open == 0)
    thread = threading.Thread(target=lambda: httpx2.post(running.url + PATH, json={**CHAT, "stream": True}))
    thread.start()
    wait_until(lambda: len(fake.submitted) == 3)
    fake.fail(GuideError("kind", "score is nan"))
    thread.join(20)
    running.stop()
    left, whole, failed = requests(end())
    assert (left["status"], left["gone"]) == (200, True)
    assert (whole["status"], whole["gone"]) == (499, True)
    assert (failed["status"], failed["error"]) == (200, "guide_error")


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_prompt_no_answer_and_no_key_is_ever_logged(
    fake: Any, start: Any, log: Any, wait_until: Any, capfd: Any, form: str
) -> None:
    end = log(format=form)
    running = start(fake, ServerSettings(max_body_bytes=2000))
    url = running.url + PATH

    def play() -> None:
        wait_until(lambda: len(fake.submitted) == 1)
        fake.say(ANSWER)
        fake.fail(RuntimeError(f"cannot read {ANSWER}"))

    with httpx2.Client(headers=HEADERS, timeout=20) as client:
        thread = threading.Thread(target=play)
        thread.start()
        client.post(url, json={**CHAT, "stream": True})
        thread.join(20)
        for changes in (
            {"model": KEY},
            {"messages": PROMPT},
            {PROMPT: 1},
            {"stop": [PROMPT] * 9},
            {"user": "x" * 3000},
        ):
            client.post(url, json={**CHAT, **changes})
        client.post(url, content=PROMPT, headers={"content-type": "application/json"})
        client.post(url, content=PROMPT, headers={"content-type": KEY})
        client.get(f"{running.url}/{PROMPT}?key={KEY}")
        client.get(f"{running.url}/v1/models/{KEY}")
        for error in (RuntimeError(PROMPT), KeyError(PROMPT), ValueError(ANSWER)):
            error.__cause__ = TypeError(PROMPT)
            fake.refuses = error
            client.post(url, json=CHAT)
    with closing(connect(running.url)) as raw:
        raw.sendall(f"GET /{PROMPT} NONSENSE {KEY}\r\n\r\n".encode())
        raw.recv(1000)
    running.stop()
    lines = end()
    assert len(lines) >= 14
    shown = capfd.readouterr()
    written = "\n".join(map(str, lines)) + shown.out + shown.err
    assert "PLANTED" not in written
    assert "RuntimeError" in written, "failures are told with their type"
    assert "bridge.py:" in written, "and with the place"


def test_debug_tells_the_messages_of_exceptions(fake: Any, start: Any, log: Any) -> None:
    end = log(format="json", level="debug")
    running = start(fake)
    fake.refuses = RuntimeError("out of order")
    httpx2.post(running.url + PATH, json=CHAT)
    running.stop()
    assert any("RuntimeError: out of order" in str(line.get("exception")) for line in end())


def test_nothing_breaks_a_line(fake: Any, start: Any, log: Any) -> None:
    end = log(format="text")
    running = start(fake)
    forged = "x\r\n2026 info trimtab.access request status=200"
    httpx2.get(running.url + "/a%0aforged%0d%1b[2J")
    with closing(connect(running.url)) as client:
        client.sendall(b"GET /version HTTP/1.1\r\nconnection: close\r\nx-request-id: a b\tc\r\n\r\n")
        client.recv(1000)
    logging.getLogger("trimtab.engine").warning("guide %r: %s", "kind", forged)
    running.stop()
    lines = end()
    assert len(lines) == 3
    assert all(line.isprintable() and line.startswith("20") for line in lines)


def test_warnings_of_every_library_share_the_form(log: Any) -> None:
    end = log(format="json")
    logging.getLogger("trimtab.engine.runner").warning("a model decodes without CUDA graphs")
    logging.getLogger("urllib3").warning("retrying")
    logging.getLogger("uvicorn.error").error("trouble")
    logging.getLogger("httpx").info("too chatty")
    assert [(line["level"], line["logger"]) for line in end()] == [
        ("warning", "trimtab.engine.runner"),
        ("warning", "urllib3"),
        ("error", "uvicorn.error"),
    ]


def test_logging_is_put_back(log: Any) -> None:
    before = logging.getLogger().handlers[:]
    log()()
    assert logging.getLogger().handlers == before


def test_nobody_waits_for_a_log_that_is_not_read() -> None:
    """A pipe holds 64 KiB; what does not fit into the queue behind it is counted and dropped."""
    receiving, sending = os.pipe()
    with os.fdopen(sending, "w") as stream, os.fdopen(receiving) as reader:
        writer = Writer(stream)
        record = logging.LogRecord("x", logging.INFO, __file__, 1, "y" * 100, None, None)
        for _ in range(QUEUE + 2000):
            writer.emit(record)
        read: list[str] = []
        thread = threading.Thread(target=lambda: read.extend(reader))
        thread.start()
        writer.close()
        stream.close()
        thread.join(10)
    assert len(read) >= QUEUE
    (notice,) = [line for line in read if "dropped" in line]
    assert int(notice.split()[0]) + len(read) - 1 == QUEUE + 2000
