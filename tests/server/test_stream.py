"""What a stream looks like on the wire, and what becomes of requests whose client or engine goes away."""

import json
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from wire import metrics

from trimtab.engine.errors import Cancelled, GuideError, Overloaded
from trimtab.llm import LLM
from trimtab.server.settings import ServerSettings

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
PATH = "/v1/chat/completions"


@pytest.fixture
def ask(fake: Any, start: Any, wait_until: Any) -> Callable[..., tuple[str, int]]:
    """Send a request in a thread, run `play` once it was submitted, return its body and status."""
    running = start(fake, ServerSettings(keep_alive=0.2))

    def ask(body: dict[str, Any], play: Callable[[], None], path: str = PATH) -> tuple[str, int]:
        got: list[httpx2.Response] = []
        thread = threading.Thread(target=lambda: got.append(httpx2.post(running.url + path, json=body, timeout=20)))
        thread.start()
        wait_until(lambda: len(fake.submitted) == 1)
        play()
        thread.join(20)
        wait_until(lambda: running.service.bridge.open == 0)
        return got[0].text, got[0].status_code

    return ask


def test_transcript(fake: Any, ask: Any) -> None:
    def play() -> None:
        time.sleep(0.05)
        fake.say("Hé")
        time.sleep(0.05)
        fake.say('"\n')
        time.sleep(0.05)
        fake.end('Hé"\n')

    body, _ = ask({**CHAT, "stream_options": {"include_usage": True}}, play)
    (head,) = set(re.findall(r'^data: (\{.*?"system_fingerprint":"[^"]*",)', body, re.M))
    fields = json.loads(head[:-1] + "}")
    assert fields["object"] == "chat.completion.chunk"
    assert fields["model"] == "fake"
    decoding = (
        '{"spec":{"strategy":"sample"},"chosen":[0],'
        '"candidates":[{"tokens":1,"reward":null,"finish_reason":"stop","choice":0}],'
        '"steering":[null],"model_tokens":{"base":3},"forwards":{"base":2},"milliseconds":{"total":1.5},'
        '"preemptions":0,"stopped_by":"finished","seed":7}'
    )
    usage = '{"prompt_tokens":2,"completion_tokens":1,"total_tokens":3,"prompt_tokens_details":{"cached_tokens":0}}'
    delta = '"choices":[{"index":0,"delta":%s,"logprobs":null,"finish_reason":%s}],"usage":null}'
    assert body.replace(head, "").split("\n\n") == [
        "data: " + delta % ('{"role":"assistant","content":""}', "null"),
        "data: " + delta % ('{"content":"Hé"}', "null"),
        "data: " + delta % ('{"content":"\\"\\n"}', "null"),
        "data: " + delta % ("{}", '"stop","stop_reason":null'),
        f'data: "choices":[],"usage":{usage},"decoding":{decoding}}}',
        "data: [DONE]",
        "",
    ]


def test_text_never_breaks_a_line(fake: Any, ask: Any) -> None:
    text = "a\u2028b\u2029c\x85d\r\n\x0b"

    def play() -> None:
        fake.say(text)
        time.sleep(0.05)
        fake.end(text)

    body, _ = ask(CHAT, play)
    (line,) = [line for line in body.splitlines() if "b" in line and "d" in line and '"content":"a' in line]
    assert json.loads(line.removeprefix("data: "))["choices"][0]["delta"]["content"] == text


def test_silence_is_filled_with_comments(fake: Any, ask: Any) -> None:
    def play() -> None:
        time.sleep(0.7)
        fake.end("")

    body, _ = ask(CHAT, play)
    assert 2 <= body.count(": keep-alive\n\n") <= 4


def test_an_error_after_the_start_is_an_event(fake: Any, ask: Any) -> None:
    def play() -> None:
        fake.say("a")
        time.sleep(0.05)
        fake.fail(GuideError("kind", "score is nan"))

    body, status = ask(CHAT, play)
    assert status == 200
    *_, error, done, _ = body.split("\n\n")
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "guide_error"
    assert done == "data: [DONE]"


@pytest.mark.parametrize(
    ("error", "status", "code", "words"),
    [
        (GuideError("kind", "score is nan"), 500, "guide_error", "'kind'"),
        (Cancelled("closing"), 500, "internal_error", "x-request-id"),
        (RuntimeError("secret path /srv/models"), 500, "internal_error", "x-request-id"),
    ],
)
def test_a_failed_request_is_told_without_details(
    fake: Any, ask: Any, error: Exception, status: int, code: str, words: str
) -> None:
    body, told = ask({**CHAT, "stream": False}, lambda: fake.fail(error))
    assert told == status
    assert json.loads(body)["error"]["code"] == code
    assert words in body
    assert "secret" not in body


def test_choices_interleave_and_carry_their_index(fake: Any, ask: Any) -> None:
    def play() -> None:
        for text in ("a", "b"):
            fake.say(text, choice=0)
            fake.say(text.upper(), choice=1)
            time.sleep(0.05)
        fake.end("ab", "AB")

    body, _ = ask({**CHAT, "n": 2}, play)
    pieces = re.findall(r'"index":(\d),"delta":\{"content":"(\w)"\}', body)
    assert pieces == [("0", "a"), ("1", "A"), ("0", "b"), ("1", "B")]
    assert body.count('"decoding":') == 1


def test_a_full_queue_is_503(fake: Any, start: Any) -> None:
    fake.refuses = Overloaded("the queue is full", retry_after=3)
    response = httpx2.post(start(fake).url + PATH, json=CHAT)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "3"
    assert response.json()["error"]["code"] == "overloaded"


def test_all_prompts_are_withdrawn_if_one_is_refused(fake: Any, start: Any) -> None:
    submit = fake.submit

    def submit_one(*args: Any) -> None:
        submit(*args)
        fake.refuses = Overloaded("full")

    fake.submit = submit_one
    running = start(fake)
    response = httpx2.post(running.url + "/v1/completions", json={"model": "fake", "prompt": ["a", "b"]})
    assert response.status_code == 503
    assert fake.cancelled == [fake.submitted[0][1]]
    assert running.service.bridge.open == 0


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("spoken", [0, 2])
def test_a_client_that_leaves_cancels(fake: Any, start: Any, wait_until: Any, stream: bool, spoken: int) -> None:
    running = start(fake)
    body = json.dumps({**CHAT, "stream": stream}).encode()
    with socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2]))) as client:
        head = (
            f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        client.sendall(head.encode() + body)
        wait_until(lambda: len(fake.submitted) == 1)
        for _ in range(spoken):
            fake.say("word")
    wait_until(lambda: fake.cancelled == [fake.submitted[0][1]])
    wait_until(lambda: running.service.bridge.open == 0)
    fake.say("late")
    fake.end("late")
    assert httpx2.get(running.url + "/health").status_code == 200


@pytest.mark.parametrize("decoding", [None, {"strategy": "best_of_n", "n": 4, "reward": "brevity"}])
def test_leaving_frees_every_page(llm: LLM, start: Any, wait_until: Any, decoding: object) -> None:
    running = start(llm)
    ask = {**CHAT, "model": "tiny", "max_tokens": 480, "ignore_eos": True, "decoding": decoding}
    with httpx2.stream("POST", running.url + PATH, json=ask) as response:
        received = response.iter_bytes()  # kept: collecting the iterator closes the connection
        next(received)
        wait_until(lambda: llm.stats.pages_used > 0)
    wait_until(lambda: llm.stats.running == llm.stats.pages_used == 0)
    strategy = "sample" if decoding is None else "best_of_n"
    assert metrics(running.url)[f'trimtab:request_failure_total{{reason="cancelled",strategy="{strategy}"}}'] == 1


def test_a_reader_that_stalls_blocks_nobody(fake: Any, start: Any, wait_until: Any) -> None:
    running = start(fake)
    body = json.dumps(CHAT).encode()
    with socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2]))) as client:
        head = (
            f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        client.sendall(head.encode() + body)
        wait_until(lambda: len(fake.submitted) == 1)
        text = "x" * 100_000
        for _ in range(200):
            fake.say(text)
        assert httpx2.get(running.url + "/health", timeout=5).status_code == 200
        fake.end(text * 200)
        received = b""
        while b"[DONE]" not in received[-100:]:
            received += client.recv(1 << 20)
    assert received.count(b"x") >= len(text) * 200
    assert received.count(b"data: ") < 200
    wait_until(lambda: running.service.bridge.open == 0)
    assert fake.cancelled == []


def test_draining_refuses_and_finishes(fake: Any, start: Any, wait_until: Any) -> None:
    running = start(fake, ServerSettings(shutdown_timeout=10))
    got: list[httpx2.Response] = []
    thread = threading.Thread(target=lambda: got.append(httpx2.post(running.url + PATH, json=CHAT, timeout=20)))
    thread.start()
    wait_until(lambda: len(fake.submitted) == 1)
    running.server.handle_exit(15, None)
    assert httpx2.get(running.url + "/ready").status_code == 503
    assert httpx2.get(running.url + "/health").status_code == 200
    assert httpx2.post(running.url + PATH, json=CHAT).status_code == 503
    fake.say("bye")
    fake.end("bye")
    thread.join(10)
    assert "bye" in got[0].text
    assert "[DONE]" in got[0].text
    running.thread.join(5)
    assert not running.thread.is_alive()


def test_draining_ends_after_its_time(fake: Any, start: Any, wait_until: Any) -> None:
    running = start(fake, ServerSettings(shutdown_timeout=0.2))
    with httpx2.stream("POST", running.url + PATH, json=CHAT, timeout=20):
        wait_until(lambda: len(fake.submitted) == 1)
        running.server.handle_exit(15, None)
        running.thread.join(10)
        assert not running.thread.is_alive()
    assert fake.cancelled == [fake.submitted[0][1]]


def test_a_dead_engine_is_unhealthy(fake: Any, start: Any) -> None:
    fake.failed = RuntimeError("secret")
    response = httpx2.get(start(fake).url + "/health")
    assert response.status_code == 503
    assert "secret" not in response.text


def test_an_exception_in_a_route_is_a_bare_500(fake: Any, start: Any) -> None:
    fake.refuses = RuntimeError("secret")
    response = httpx2.post(start(fake).url + PATH, json=CHAT)
    assert response.status_code == 500
    assert response.headers["x-should-retry"] == "false"
    assert response.headers["x-request-id"]
    assert "secret" not in response.text
