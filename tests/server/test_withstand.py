"""What a server must survive, over HTTP and a real engine: clients that leave, full memory, ugly input, no network."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import pytest
from gate import PATIENCE, Gate
from tiny import tiny_folder
from wire import CHAT, PREEMPTIONS, RUNNING, TEXT, USED, WAITING, answers, ask, empty, leaving, load, metrics

from trimtab import LLM
from trimtab.engine.job import Job
from trimtab.engine.program import Extend, Score
from trimtab.engine.runner import Chunk


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("withstand") / "tiny")


@pytest.fixture(scope="module")
def narrow(folder: Path) -> Iterator[LLM]:
    """Four rows, sixteen prompt tokens a tick, one score a tick: every phase of a request takes many ticks."""
    with load(folder, max_rows=4, max_candidates=8, prefill_tokens=16, score_pairs=1, pool_tokens=4096) as llm:
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


BEST_OF_4 = {"strategy": "best_of_n", "n": 4, "reward": "checksum"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("place", "call", "body", "reached"),
    [
        ("prefill", 3, ask("x" * 150), in_prefill),
        ("decode", 4, ask(n=3), in_decode),
        ("judge", 2, ask(max_tokens=5, decoding=BEST_OF_4), in_scoring),
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
    target = narrow.rewards["checksum"] if place == "judge" else narrow._worker.engine.runner
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
    kinds: list[dict[str, Any]] = [{}, {"n": 3}, {"decoding": BEST_OF_4}]
    return [
        ask(
            f"{i} " + "long " * (i % 7),
            seed=seed + i,
            stream=i % 2 == 1,
            max_tokens=40 + 5 * (i % 5),
            **kinds[i % 3],
        )
        for i in range(30)
    ]


def test_a_crowd_in_a_small_pool_is_answered_as_in_a_large_one(
    cramped: LLM, roomy: LLM, start: Any, wait_until: Any
) -> None:
    small, large = start(cramped), start(roomy)
    with ThreadPoolExecutor(30) as pool:
        expected = list(pool.map(lambda body: answers(large.url, body), crowd(0)))
        got = list(pool.map(lambda body: answers(small.url, body), crowd(0)))
    for body, told, reference in zip(crowd(0), got, expected, strict=True):
        assert [(len(ids), reason) for _, ids, reason in told] == [(body["max_tokens"], "length")] * body.get("n", 1)
        assert told == reference
    assert metrics(large.url)[PREEMPTIONS] == 0
    assert metrics(small.url)[PREEMPTIONS] > 10
    wait_until(lambda: empty(small.url) and empty(large.url), 5)
    check_pages(cramped)


def test_leaving_a_crowd_disturbs_nobody(cramped: LLM, roomy: LLM, start: Any, wait_until: Any) -> None:
    """Half of the clients leave once pages ran out: some are decoding then, some preempted, some queued."""
    small, large = start(cramped), start(roomy)
    before = metrics(small.url)[PREEMPTIONS]
    staying, going = crowd(100)[:8], crowd(200)[:12]
    with ThreadPoolExecutor(8) as pool, ExitStack() as leavers:
        expected = list(pool.map(lambda body: answers(large.url, body), staying))
        clients = [leavers.enter_context(leaving(small.url, body)) for body in going]
        wait_until(lambda: metrics(small.url)[RUNNING] > 0)
        got = [pool.submit(answers, small.url, body) for body in staying]
        wait_until(lambda: metrics(small.url)[PREEMPTIONS] > before)
        wait_until(lambda: small.service.bridge.open == len(staying) + len(going))
        for client in clients:
            client.close()
        assert [each.result(60) for each in got] == expected
    wait_until(lambda: empty(small.url), 5)
    check_pages(cramped)
    failed = [value for name, value in metrics(small.url).items() if name.startswith("trimtab:request_failure_total")]
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
        (CHAT, ask(n=9), "n", "engine.max_candidates"),
        (TEXT, {"model": "tiny", "prompt": "x", "n": 9}, "n", "engine.max_candidates"),
        (CHAT, ask(decoding={**BEST_OF_4, "n": 9}), "decoding.n", "engine.max_candidates"),
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


@pytest.mark.parametrize(
    "change",
    [
        {"logit_bias": {"1" * 5000: 1}},
        {"top_k": 2**63},
        {"min_tokens": 2**63, "ignore_eos": False},
        {"temperature": 1e-40},  # its inverse is infinite in float32
    ],
    ids=lambda change: next(iter(change)),
)
def test_numbers_that_no_machine_holds_harm_nobody(
    narrow: LLM,
    start: Any,
    wait_until: Any,
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
) -> None:
    """A tick is shared: what one request asks for must not end those that run beside it."""
    url = start(narrow).url
    expected = answers(url, ask("beside"))
    runner = narrow._worker.engine.runner
    with ThreadPoolExecutor(2) as pool, monkeypatch.context() as patch, ExitStack() as ending:
        ending.callback(gate.open)
        patch.setattr(runner, "decode", gate.before(runner.decode))
        beside = pool.submit(answers, url, ask("beside"))
        gate.reach(2)
        odd = pool.submit(httpx2.post, url + CHAT, json=ask(max_tokens=2, **change), timeout=PATIENCE)
        wait_until(lambda: odd.done() or narrow._worker._inbox)
        gate.open()
        response = odd.result(PATIENCE)
        beside.exception(PATIENCE)
        assert answers(url, ask("beside")) == expected
        assert beside.result() == expected
    assert response.status_code in (200, 400), response.text


def test_a_failed_tick_leaves_nothing_behind(
    narrow: LLM, start: Any, wait_until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = start(narrow).url
    expected = answers(url, ask("again"))

    runner, steps = narrow._worker.engine.runner, count(1)

    def failing(chunks: Sequence[Chunk]) -> Any:
        if next(steps) % 3 == 0:
            raise RuntimeError("every third step fails")
        return decode(chunks)

    decode = runner.decode
    with monkeypatch.context() as patch:
        patch.setattr(runner, "decode", failing)
        whole = httpx2.post(url + CHAT, json=ask())
        streamed = httpx2.post(url + CHAT, json=ask(stream=True))
    assert (whole.status_code, whole.json()["error"]["code"]) == (500, "internal_error")
    assert streamed.text.endswith('"code":"internal_error"}}\n\ndata: [DONE]\n\n')
    left = metrics(url)
    assert answers(url, ask("again")) == expected
    check_pages(narrow)
    assert left[USED] == left[RUNNING] == left[WAITING] == 0


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
    environ = environment(TRIMTAB_SERVER__LOG__FORMAT="json")
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environ, **pipes) as process, ThreadPoolExecutor(2) as pool:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().split()[-1]
            bodies = [ask(n=2, max_tokens=600, stream=stream) for stream in (False, True)]
            asked = [pool.submit(answers, url, body) for body in bodies]
            wait_until(lambda: metrics(url)["trimtab:rows"] == 4)
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: httpx2.get(url + "/ready").status_code == 503)
            for stream in (False, True):
                refused = httpx2.post(url + CHAT, json=ask(stream=stream))
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
                assert int(refused.headers["retry-after"]) >= 1
            assert metrics(url)["trimtab:rows"] == 4, "the answers ended before the signal could disturb them"
            whole, streamed = (each.result(PATIENCE) for each in asked)
            assert [(len(ids), reason) for _, ids, reason in whole] == [(600, "length")] * 2
            assert streamed == whole
            _, complaints = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
        lines = [json.loads(line) for line in complaints.splitlines()]
        assert process.returncode == 0
        assert {line["logger"] for line in lines} == {"trimtab.access"}
        assert sorted(line["status"] for line in lines if line["route"] == CHAT) == [200, 200, 503, 503]


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
