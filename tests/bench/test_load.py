"""The closed loop, on clients that do what a test wants."""

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from trimtab.bench.load import Asking, Job, Load, ServerLost, ask, request_seed
from trimtab.bench.prompts import Prompt
from trimtab.bench.records import Setting
from trimtab.clients.client import Answer, ClientError, Piece

DECODING = {
    "spec": {"strategy": "sample"},
    "chosen": [0],
    "candidates": [{"tokens": 2, "reward": None, "finish_reason": "stop", "choice": 0}],
    "steering": [None],
    "model_tokens": {"base": 5},
    "forwards": {"base": 2},
    "milliseconds": {"total": 1.0},
    "stopped_by": "finished",
    "seed": 1,
}
CHOICE = {"index": 0, "message": {"content": "Hello"}, "finish_reason": "stop"}
REPLY = {"choices": [CHOICE], "usage": {"prompt_tokens": 3, "completion_tokens": 2}, "decoding": DECODING}


class Client:
    """Says "Hello" in two pieces, after it has raised what is in `failures`."""

    def __init__(self, *failures: Exception, seconds: float = 0.0) -> None:
        self.failures = list(failures)
        self.seconds = seconds
        self.asked: list[dict[str, Any]] = []
        self.most = 0
        self._running = 0
        self._lock = threading.Lock()

    def stream_chat(self, model: str, messages: Any, **fields: Any) -> Iterator[Any]:
        with self._lock:
            self.asked.append({"model": model, "messages": messages, **fields})
            self._running += 1
            self.most = max(self.most, self._running)
        try:
            if self.failures:
                raise self.failures.pop(0)
            time.sleep(self.seconds)
            yield Piece("Hel", 0)
            time.sleep(self.seconds)
            yield Piece("lo", 0)
            yield Answer.of(REPLY, "id")
        finally:
            with self._lock:
                self._running -= 1


def asking(client: Client) -> Asking:
    return Asking(client=client, model="m", seed=3, max_tokens=8, temperature=0.5, part=2, salt="x")  # type: ignore[arg-type]


def jobs(count: int, **decoding: Any) -> list[Job]:
    setting = Setting(name="s", decoding=decoding)
    prompts = [Prompt(id=f"p{number}", category="c", prompt="Hi") for number in range(count)]
    return [Job(setting, 3, prompt, 0) for prompt in prompts]


def test_so_many_requests_run_at_a_time_and_each_job_is_asked_once() -> None:
    client = Client(seconds=0.01)
    looks: list[float] = []
    came = list(Load(asking(client), jobs(10), 3).events(lambda: looks.append(0)))
    assert client.most == 3
    assert sorted(job.prompt.id for job, _ in came) == sorted(f"p{number}" for number in range(10))
    assert not looks, "less than a second"


def test_an_answer_has_its_times_and_what_the_server_tells() -> None:
    client = Client(seconds=0.05)
    answer, drawn = ask(asking(client), jobs(1, strategy="args", w=2)[0])
    assert 0.05 <= (answer.ttft or 0.0) < answer.e2e - 0.04
    assert (answer.text, answer.finish_reason, answer.stopped_by) == ("Hello", "stop", "finished")
    assert (answer.delivered, answer.spent, answer.forwards, answer.kl) == (2, {"base": 5}, {"base": 2}, None)
    assert (answer.concurrency, answer.part, drawn) == (3, 2, ())
    (asked,) = client.asked
    assert asked["decoding"] == {"strategy": "args", "w": 2}
    assert (asked["max_tokens"], asked["temperature"], asked["cache_salt"]) == (8, 0.5, "x/s/3/0")
    assert ask(asking(client), jobs(1)[0])[0].kl == 0.0, "nothing steers plain sampling"
    assert client.asked[1]["decoding"] is None


def test_seeds_depend_on_the_run_the_prompt_and_the_repetition_alone() -> None:
    client = Client()
    first, second = jobs(1, strategy="args"), jobs(1)
    for job in (*first, *second):
        ask(asking(client), job)
    assert client.asked[0]["seed"] == client.asked[1]["seed"] == request_seed(3, "p0", 0)
    assert len({request_seed(*each) for each in ((3, "p0", 0), (4, "p0", 0), (3, "p1", 0), (3, "p0", 1))}) == 4


def test_a_request_that_finds_no_room_is_asked_again_under_a_new_clock() -> None:
    full = ClientError("full", status=503, code="overloaded", retry_after=0.2, may_retry=True)
    began = time.monotonic()
    answer, _ = ask(asking(Client(full, full)), jobs(1)[0])
    assert time.monotonic() - began > 0.4
    assert answer.e2e < 0.2


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (ClientError("broke off"), True),
        (ClientError("no answer", may_retry=True), True),
        (ClientError("draining", status=503, code="draining", may_retry=True), True),
        (ClientError("draining, in a stream", code="draining"), True),
        (ClientError("bad gateway", status=502), True),
        (ClientError("the guide is away", status=503, code="guide_unavailable"), False),
        (ClientError("wrong", status=400), False),
        (ClientError("guide failed", status=500, code="guide_error"), False),
        (ClientError("guide failed, in a stream", code="guide_error"), False),
        (ClientError("later", status=429, retry_after=100.0, may_retry=True), False),
    ],
)
def test_a_server_that_is_gone_is_told_from_one_that_refuses(error: ClientError, lost: bool) -> None:
    with pytest.raises(ServerLost if lost else ClientError, match=str(error)):
        ask(asking(Client(error)), jobs(1)[0])


@pytest.mark.parametrize("error", [ClientError("wrong", status=400), ClientError("broke off"), KeyError("a bug")])
def test_after_a_failure_nothing_more_is_asked(error: Exception) -> None:
    client = Client(error, seconds=0.02)
    came = list(Load(asking(client), jobs(20), 2).events())
    failed = [each for _, each in came if isinstance(each, Exception)]
    assert [str(each) for each in failed] == [str(error)]
    assert len(came) <= 3


def test_memory_is_looked_at_while_a_long_request_runs() -> None:
    looks: list[float] = []
    list(Load(asking(Client(seconds=0.6)), jobs(1), 1).events(lambda: looks.append(0)))
    assert len(looks) == 1


def test_an_answer_that_a_shutdown_cut_short_is_not_measured() -> None:
    cut = {**REPLY, "decoding": {**DECODING, "stopped_by": "shutdown"}}
    client: Any = SimpleNamespace(stream_chat=lambda *_, **__: iter([Answer.of(cut, None)]))
    with pytest.raises(ServerLost, match="shutting down"):
        ask(asking(client), jobs(1)[0])


def test_the_bound_of_a_search_among_steered_answers_is_not_from_the_base() -> None:
    report = {**REPLY, "decoding": {**DECODING, "report": {"kl_bound": 0.25}}}
    client: Any = SimpleNamespace(stream_chat=lambda *_, **__: iter([Answer.of(report, None)]))
    answer, _ = ask(asking(client), jobs(1, strategy="best_of_n", steer=[{"method": "genarm", "arm": "a"}])[0])
    assert (answer.kl, answer.bounded) == (None, False)


def test_what_a_search_drew_is_kept() -> None:
    drawn = [{"tokens": 2, "text": text, "rewards": {"r": reward}} for text, reward in (("a", 0.5), ("b", None))]
    report = {**REPLY, "decoding": {**DECODING, "candidates": drawn, "report": {"kl_bound": 0.25}}}
    client: Any = SimpleNamespace(stream_chat=lambda *_, **__: iter([Answer.of(report, None)]))
    answer, found = ask(asking(client), jobs(1, strategy="best_of_n")[0])
    assert [(each.text, each.rewards) for each in found] == [("a", {"r": 0.5}), ("b", {"r": None})]
    assert (answer.kl, answer.bounded, answer.ttft) == (0.25, True, None)
