"""What a server must survive, over HTTP and a real engine: clients that leave, full memory, ugly input, no network."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest
from gate import PATIENCE, Gate
from tiny import tiny_folder

from trimtab import LLM, EngineSettings
from trimtab.engine.job import Job
from trimtab.engine.program import Extend, Score
from trimtab.engine.rewards import Reward

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
USED = "trimtab:kv_pages_used"
RUNNING = "trimtab:num_requests_running"
WAITING = "trimtab:num_requests_waiting"
PREEMPTIONS = "trimtab:num_preemptions_total"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("withstand") / "tiny")


def load(folder: Path, **changes: object) -> LLM:
    settings = {"model": str(folder), "dtype": "float32", "device": "cpu", "threads": 1, **changes}
    return LLM(settings=EngineSettings.model_validate(settings))


@pytest.fixture(scope="module")
def narrow(folder: Path) -> Iterator[LLM]:
    """Four rows, sixteen prompt tokens a tick, one score a tick: every phase of a request takes many ticks."""
    with load(folder, max_rows=4, prefill_tokens=16, score_pairs=1, pool_tokens=4096) as llm:
        yield llm


@pytest.fixture(scope="module")
def roomy(folder: Path) -> Iterator[LLM]:
    """Pages for everything at once."""
    with load(folder, max_rows=128, pool_tokens=32_768) as llm:
        yield llm


@pytest.fixture(scope="module")
def cramped(folder: Path) -> Iterator[LLM]:
    """Many rows, but pages for about three long answers."""
    with load(folder, max_rows=128, pool_tokens=320) as llm:
        yield llm


def ask(text: str = "Hi", **changes: object) -> dict[str, Any]:
    """A chat request that runs to its last token."""
    message = {"role": "user", "content": text}
    return {"model": "tiny", "messages": [message], "seed": 1, "ignore_eos": True, "max_tokens": 40, **changes}


def connect(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=PATIENCE)


def leaving(url: str, body: Mapping[str, Any], path: str = CHAT) -> socket.socket:
    """Send a request over a connection that the test can drop."""
    client = connect(url)
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    client.sendall(head.encode() + content)
    return client


def metrics(url: str) -> dict[str, float]:
    lines = httpx2.get(url + "/metrics").text.splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def empty(url: str) -> bool:
    now = metrics(url)
    return now[USED] == now[RUNNING] == now[WAITING] == 0


Told = list[tuple[str, tuple[int, ...], str]]
"""per choice: text, token ids, finish reason"""


def answers(url: str, body: Mapping[str, Any]) -> Told:
    """What the server answers, read from a whole response or put together from a stream."""
    response = httpx2.post(url + CHAT, json={**body, "return_token_ids": True}, timeout=60)
    assert response.status_code == 200, response.text
    if not body.get("stream"):
        choices = response.json()["choices"]
        return [(c["message"]["content"], tuple(c["token_ids"]), c["finish_reason"]) for c in choices]
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    texts, ids, reasons = [[""] * body.get("n", 1) for _ in range(3)]
    tokens: list[tuple[int, ...]] = [()] * len(ids)
    for chunk in (json.loads(line.removeprefix("data: ")) for line in events if line[0] != ":"):
        for choice in chunk["choices"]:
            index = choice["index"]
            texts[index] += choice["delta"].get("content") or ""
            tokens[index] += tuple(choice.get("token_ids") or ())
            reasons[index] += choice["finish_reason"] or ""
    return list(zip(texts, tokens, reasons, strict=True))


def jobs(llm: LLM) -> list[Job]:
    """The requests that hold rows."""
    return llm._worker.engine.scheduler.running


def check_pages(llm: LLM) -> None:
    """No page is lost or listed twice; to be called while nothing runs."""
    llm._worker.engine.runner.pool.check([])


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


def in_prefill(job: Job) -> bool:
    return job.run is None and 0 < job.prompt.table.length < len(job.request.prompt) - 1


def in_decode(job: Job) -> bool:
    return isinstance(job.op, Extend) and len(job.targets) == 3 and all(s.generated == 3 for s in job.targets)


def in_scoring(job: Job) -> bool:
    return isinstance(job.op, Score) and len(job.rewards) == 1 and not job.targets


BEST_OF_4 = {"strategy": "best_of_n", "n": 4, "reward": "brevity"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("place", "call", "body", "reached"),
    [
        ("prefill", 3, ask("x" * 150), in_prefill),
        ("decode", 4, ask(n=3), in_decode),
        ("score", 2, ask(max_tokens=5, decoding=BEST_OF_4), in_scoring),
    ],
)
def test_leaving_in_a_phase_stops_it_there(
    narrow: LLM,
    start: Any,
    wait_until: Any,
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    call: int,
    body: dict[str, Any],
    reached: Callable[[Job], bool],
    stream: bool,
) -> None:
    running = start(narrow)
    before = answers(running.url, ask("before"))
    target = narrow.rewards["brevity"] if place == "score" else narrow._worker.engine.runner
    body = {**body, "stream": stream, "cache_salt": f"{place} {stream}"}
    with monkeypatch.context() as patch:
        patch.setattr(target, place, gate.before(getattr(target, place)))
        with leaving(running.url, body) as client:
            gate.reach(call)
            (job,) = jobs(narrow)
            assert reached(job), f"the request is not in {place}: {job}"
            if stream:
                assert client.recv(12) == b"HTTP/1.1 200"
        wait_until(lambda: running.service.bridge.open == 0)
        assert jobs(narrow) == [job], "the request ended on its own"
        gate.open()
        wait_until(lambda: empty(running.url), 5)
        assert gate.calls == call, "the engine went on for a client that is gone"
    check_pages(narrow)
    strategy = body.get("decoding", {"strategy": "sample"})["strategy"]
    assert metrics(running.url)[f'trimtab:request_failure_total{{reason="cancelled",strategy="{strategy}"}}'] == 1
    assert answers(running.url, ask("before")) == before


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("taken_in", [False, True])
def test_leaving_the_queue_disturbs_nobody(
    narrow: LLM,
    start: Any,
    wait_until: Any,
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
    taken_in: bool,
    stream: bool,
) -> None:
    """Queued in the engine (`taken_in`), or sent to it while a tick runs and not seen by it yet."""
    running = start(narrow)
    blocker = ask("blocker", n=4)
    expected = answers(running.url, blocker)
    runner, worker = narrow._worker.engine.runner, narrow._worker
    waiting = worker.engine.scheduler.waiting
    with ThreadPoolExecutor(1) as pool, monkeypatch.context() as patch, ExitStack() as ending:
        ending.callback(gate.open)  # before the pool waits for the blocker, should an assertion fail
        patch.setattr(runner, "decode", gate.before(runner.decode))
        first = pool.submit(answers, running.url, blocker)
        gate.reach(1)
        with leaving(running.url, ask(stream=stream, n=2)) as client:
            wait_until(lambda: len(worker._inbox) == 1)
            if taken_in:
                gate.reach(2)
                assert len(waiting) == 1
                gate.reach(3)
                assert metrics(running.url)[WAITING] == 1
            assert [job.request.choices for job in jobs(narrow)] == [4]
            if stream:
                assert client.recv(12) == b"HTTP/1.1 200"
        wait_until(lambda: running.service.bridge.open == 1)
        gate.reach(gate.calls + 1)
        assert not waiting
        assert not worker._inbox
        gate.reach(gate.calls + 1)
        assert metrics(running.url)[WAITING] == 0
        gate.open()
        assert first.result(PATIENCE) == expected
    wait_until(lambda: empty(running.url), 5)
    check_pages(narrow)
    assert metrics(running.url)['trimtab:request_failure_total{reason="cancelled",strategy="sample"}'] == 1


def test_leaving_cancels_every_prompt_of_a_request(
    narrow: LLM, start: Any, wait_until: Any, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start(narrow)
    runner = narrow._worker.engine.runner
    monkeypatch.setattr(runner, "decode", gate.before(runner.decode))
    body = {"model": "tiny", "prompt": ["a", "b", "c"], "n": 2, "max_tokens": 40, "ignore_eos": True}
    with leaving(running.url, body, TEXT):
        gate.reach(3)
        assert len(jobs(narrow)) == 2
        assert len(narrow._worker.engine.scheduler.waiting) == 1
    wait_until(lambda: running.service.bridge.open == 0)
    gate.open()
    wait_until(lambda: empty(running.url), 5)
    assert gate.calls == 3
    check_pages(narrow)


def crowd(seed: int) -> list[dict[str, Any]]:
    """Thirty long requests of three kinds, every other one streamed."""
    kinds: list[dict[str, Any]] = [{}, {"n": 3}, {"decoding": {**BEST_OF_4, "reward": "checksum"}}]
    return [
        ask(
            f"{i} " + "long " * (i % 7),
            seed=seed + i,
            stream=i % 2 == 1,
            max_tokens=50 + 5 * (i % 5),
            **kinds[i % 3],
        )
        for i in range(30)
    ]


class Checksum:
    """A reward without ties that any change of an answer changes."""

    name = "checksum"

    def score(self, pairs: Any) -> list[float]:
        return [float(int.from_bytes(pair.answer.encode()) % 1_000_003) for pair in pairs]


@pytest.fixture
def both(cramped: LLM, roomy: LLM) -> Iterator[tuple[LLM, LLM]]:
    with pytest.MonkeyPatch.context() as patch:
        for llm in (cramped, roomy):
            patch.setitem(cast(dict[str, Reward], llm.rewards), "checksum", Checksum())
        yield cramped, roomy


def test_a_crowd_in_a_small_pool_is_answered_as_in_a_large_one(
    both: tuple[LLM, LLM], start: Any, wait_until: Any
) -> None:
    cramped, roomy = (start(llm) for llm in both)
    with ThreadPoolExecutor(30) as pool:
        expected = list(pool.map(lambda body: answers(roomy.url, body), crowd(0)))
        got = list(pool.map(lambda body: answers(cramped.url, body), crowd(0)))
    for body, told, reference in zip(crowd(0), got, expected, strict=True):
        assert [(len(ids), reason) for _, ids, reason in told] == [(body["max_tokens"], "length")] * body.get("n", 1)
        assert told == reference
    assert metrics(roomy.url)[PREEMPTIONS] == 0
    assert metrics(cramped.url)[PREEMPTIONS] > 10
    wait_until(lambda: empty(cramped.url) and empty(roomy.url), 5)
    check_pages(both[0])


def test_leaving_a_crowd_disturbs_nobody(both: tuple[LLM, LLM], start: Any, wait_until: Any) -> None:
    """Half of the clients leave once pages ran out: some are decoding then, some preempted, some queued."""
    cramped, roomy = (start(llm) for llm in both)
    before = metrics(cramped.url)[PREEMPTIONS]
    staying, going = crowd(100)[:8], crowd(200)[:12]
    with ThreadPoolExecutor(8) as pool, ExitStack() as leavers:
        expected = list(pool.map(lambda body: answers(roomy.url, body), staying))
        clients = [leavers.enter_context(leaving(cramped.url, body)) for body in going]
        wait_until(lambda: metrics(cramped.url)[RUNNING] > 0)
        got = [pool.submit(answers, cramped.url, body) for body in staying]
        wait_until(lambda: metrics(cramped.url)[PREEMPTIONS] > before)
        wait_until(lambda: cramped.service.bridge.open == len(staying) + len(going))
        for client in clients:
            client.close()
        assert [each.result(60) for each in got] == expected
    wait_until(lambda: empty(cramped.url), 5)
    check_pages(both[0])
    failed = [value for name, value in metrics(cramped.url).items() if name.startswith("trimtab:request_failure_total")]
    assert sum(failed) == len(going)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["x" * 256, "é" * 200, [65] * 256, [65] * 10_000], ids=lambda p: str(len(p)))
def test_a_prompt_as_long_as_the_context_is_refused(
    narrow: LLM, start: Any, prompt: str | list[int], stream: bool
) -> None:
    running = start(narrow)
    response = httpx2.post(running.url + TEXT, json={"model": "tiny", "prompt": prompt, "stream": stream})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "prompt")
    assert "256" in error["message"]


def test_a_prompt_one_short_of_the_context_is_answered(narrow: LLM, start: Any, wait_until: Any) -> None:
    url = start(narrow).url
    body = {"model": "tiny", "prompt": [65] * 255, "max_tokens": 1, "ignore_eos": True}
    told = httpx2.post(url + TEXT, json=body).json()
    assert told["usage"]["total_tokens"] == 256
    assert told["choices"][0]["finish_reason"] == "length"
    wait_until(lambda: empty(url), 5)
    check_pages(narrow)


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        (CHAT, ask(n=5), "n", "engine.max_rows"),
        (TEXT, {"model": "tiny", "prompt": "x", "n": 5}, "n", "engine.max_rows"),
        (TEXT, {"model": "tiny", "prompt": ["x"] * 11, "n": 3}, "n", "32"),
        (TEXT, {"model": "tiny", "prompt": "x", "decoding": {"strategy": "sample", "n": 2}}, "decoding.n", "strategy"),
        (TEXT, {"model": "tiny", "prompt": "x", "decoding": {**BEST_OF_4, "rewrd": 1}}, "decoding.rewrd", "'reward'"),
    ],
)
def test_more_than_this_server_decodes_is_refused(
    narrow: LLM, start: Any, path: str, body: dict[str, Any], param: str, words: str
) -> None:
    response = httpx2.post(start(narrow).url + path, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert words in error["message"]


UGLY = (
    b'"\\udc00"',  # a low surrogate
    b'"\\udc00\\ud800"',
    b'"\\ud83d x"',
    b'"\xed\xa0\x80"',  # a surrogate as UTF-8
    b'"\xc0\xaf"',  # overlong
    b'"\xe2\x82"',  # cut short
    b'"caf\xe9"',  # Latin-1
    b'"\xf5\x80\x80\x80"',  # beyond Unicode
)


def test_text_that_is_none_is_refused_wherever_it_stands(narrow: LLM, start: Any) -> None:
    url = start(narrow).url
    places = [
        (CHAT, b'{"model": "tiny", "messages": [{"role": "user", "content": %s}]}'),
        (CHAT, b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stop": [%s]}'),
        (CHAT, b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], %s: 1}'),
        (CHAT, b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"x": %s}}'),
        (CHAT, b'{"model": %s, "messages": [{"role": "user", "content": "x"}]}'),
        (TEXT, b'{"model": "tiny", "prompt": ["x", %s], "stream": true}'),
        (TEXT, b'{"model": "tiny", "prompt": "x", "cache_salt": %s}'),
        ("/tokenize", b'{"prompt": %s}'),
    ]
    bodies = [(path, body % text) for path, body in places for text in UGLY] + [(CHAT, json.dumps(ask()).encode("u16"))]
    for path, content in bodies:
        response = httpx2.post(url + path, content=content, headers={"content-type": "application/json"})
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json"), content
    assert empty(url)


def test_text_that_looks_odd_is_text(narrow: LLM, start: Any) -> None:
    url = start(narrow).url
    for text in ("\0", "\uffff", "\U0010ffff", "e\u0301\u200d\ufeff", "\r\n\u2028", "<eos>", "{% raw %}", ""):
        assert [reason for _, _, reason in answers(url, ask(text, max_tokens=2))] == ["length"], repr(text)


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without what would configure trimtab or its hub client."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TRIMTAB_", "HF_"))}
    return {**kept, "OMP_NUM_THREADS": "1", **changes}


TRIMTAB = [sys.executable, "-c", "from trimtab.server.cli import app; app()", "serve", "--port", "0"]


@pytest.fixture(scope="module")
def long_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a context so long that an answer takes seconds."""
    folder = tiny_folder(tmp_path_factory.mktemp("long") / "tiny")
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 16_384}))
    return folder


def test_sigterm_finishes_what_runs_and_refuses_the_rest(long_folder: Path, wait_until: Any) -> None:
    command = [*TRIMTAB, "--model", str(long_folder), "--threads", "1"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().split()[-1]
            told: list[Told] = []
            streamed, whole = ask(n=2, max_tokens=600, stream=True), ask(n=2, max_tokens=600)
            threads = [
                threading.Thread(target=lambda body=body: told.append(answers(url, body)))  # type: ignore[misc]
                for body in (streamed, whole)
            ]
            for thread in threads:
                thread.start()
            wait_until(lambda: metrics(url)["trimtab:rows"] == 4)
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: httpx2.get(url + "/ready").status_code == 503)
            for stream in (False, True):
                refused = httpx2.post(url + CHAT, json=ask(stream=stream))
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
                assert int(refused.headers["retry-after"]) >= 1
            assert metrics(url)["trimtab:rows"] == 4, "the answers ended before the signal could disturb them"
            for thread in threads:
                thread.join(PATIENCE)
            assert [[(len(ids), reason) for _, ids, reason in each] for each in told] == [[(600, "length")] * 2] * 2
            assert told[0] == told[1]
            rest = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
        assert process.returncode == 0
        assert rest[1] == ""


def test_a_hub_that_cannot_be_reached_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    failed = subprocess.run(
        [*TRIMTAB, "--model", "nobody/nothing"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(HF_ENDPOINT=f"http://127.0.0.1:{port}", HF_HOME=str(tmp_path)),
    )
    assert failed.returncode == 1
    (line,) = failed.stderr.strip().splitlines()
    assert line.startswith("trimtab: hub model 'nobody/nothing'")
    assert "pass the path of a local folder" in line
