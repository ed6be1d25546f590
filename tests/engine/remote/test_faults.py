"""A remote base that is slow, gone, back again, changed, or answers garbage: what is raised, and how soon."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from fake_faults import Fault
from fake_remote import VOCABULARY, FakeRemote
from running import wait_until

from trimtab.engine.errors import RemoteError, RemoteUnavailable
from trimtab.engine.remote.base import RemoteBase
from trimtab.engine.remote.settings import RemoteSettings
from trimtab.engine.remote.stats import RemoteStats
from trimtab.engine.remote.wire import Ask, Token
from trimtab.engine.sampling import SamplingParams

ASK = Ask(VOCABULARY.encode("some words "), 8, SamplingParams(), seed=3, n=2)
SLOW = 4.0
"""seconds within which every failure must be known here"""


@pytest.fixture
def fake() -> Iterator[FakeRemote]:
    with FakeRemote("vllm") as fake:
        yield fake


@pytest.fixture
def reach(fake: FakeRemote) -> Iterator[Any]:
    bases: list[RemoteBase] = []

    def reach(**changes: Any) -> RemoteBase:
        settings = {"url": fake.url, "retries": 2, "backoff": 0.02, "recheck": 60.0, "read_timeout": 10.0, **changes}
        bases.append(RemoteBase(RemoteSettings(**settings), VOCABULARY, RemoteStats()))
        fake.calls.clear()
        return bases[-1]

    yield reach
    for base in bases:
        base.close()
    assert not any(thread.name == "trimtab-remote" for thread in threading.enumerate())


def fails(
    base: RemoteBase,
    kind: type[Exception] | tuple[type[Exception], ...],
    match: str | None = None,
    *,
    stream: bool = False,
    ask: Ask = ASK,
) -> Exception:
    begun = time.monotonic()
    call = base.ask(ask, (lambda number, token: None) if stream else None)
    with pytest.raises(kind, match=match) as caught:
        call.result(30)
    assert time.monotonic() - begun < SLOW
    return caught.value


def works(base: RemoteBase, ask: Ask = ASK) -> None:
    assert len(base.ask(ask).result(30).continuations) == ask.n


@pytest.mark.parametrize("stream", [False, True])
def test_slow(fake: FakeRemote, reach: Any, stream: bool) -> None:
    base = reach(read_timeout=0.3)
    fake.always = Fault(delay=5.0)
    fails(base, RemoteUnavailable, "silent for 0.3 s", stream=stream)
    assert len(fake.asked("/v1/completions")) == 1
    assert base.lost
    fake.always = None
    works(base)
    assert not base.lost


@pytest.mark.parametrize("stream", [False, True])
def test_gone_and_back(fake: FakeRemote, reach: Any, stream: bool) -> None:
    base = reach()
    works(base)
    fake.stop()
    error = fails(base, RemoteUnavailable, "cannot be reached|closed the connection", stream=stream)
    assert isinstance(error, RemoteUnavailable)
    assert error.retry_after > 0
    assert base.lost
    assert base.stats.lost
    fails(base, RemoteUnavailable, "cannot be reached")
    fake.start()
    works(base)
    assert not base.lost


def test_a_server_that_is_back_is_seen_without_a_call(fake: FakeRemote, reach: Any) -> None:
    base = reach(recheck=0.1)
    fake.stop()
    wait_until(lambda: base.lost)
    fake.start()
    wait_until(lambda: not base.lost)


def test_restarted_between_two_calls_is_no_failure(fake: FakeRemote, reach: Any) -> None:
    base = reach()
    works(base)
    fake.stop()
    fake.start()
    works(base)


def test_restarted_within_a_call(fake: FakeRemote, reach: Any) -> None:
    """The answer is lost and asked for again; it is given once the server was looked at."""
    base = reach()
    before = base.ask(ASK).result(30)
    fake.calls.clear()
    fake.script = [Fault(drop_after=1)]
    assert base.ask(ASK).result(30) == before
    paths = [path for path, _, _ in fake.calls]
    assert paths[:2] == ["/v1/completions"] * 2
    assert paths[2] == "/v1/models"
    assert "/tokenize" in paths[3:]
    assert not base.lost


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("change", ["tokenizer", "model", "room"])
def test_changed_while_a_call_was_lost(fake: FakeRemote, reach: Any, change: str, stream: bool) -> None:
    """Another model at the same address is refused before anything of it is told, until the old one is back."""
    base = reach(recheck=0.2)
    told: list[Token] = []
    fake.script = [Fault(drop_after=0)]
    _change(fake, change)
    call = base.ask(ASK, (lambda number, token: told.append(token)) if stream else None)
    with pytest.raises(RemoteUnavailable, match=_SAID[change]):
        call.result(30)
    assert told == []
    sent = len(fake.asked("/v1/completions"))
    error = fails(base, RemoteUnavailable, "restart trimtab")
    assert isinstance(error, RemoteUnavailable)
    assert error.retry_after == 0.2
    assert len(fake.asked("/v1/completions")) == sent
    assert base.lost
    _change(fake, "back")
    wait_until(lambda: not base.lost)
    works(base)


@pytest.mark.parametrize("change", ["tokenizer", "model", "room"])
def test_changed_while_it_was_gone(fake: FakeRemote, reach: Any, change: str) -> None:
    base = reach()
    fake.stop()
    fails(base, RemoteUnavailable, "cannot be reached|closed")
    _change(fake, change)
    fake.start()
    fails(base, RemoteUnavailable, _SAID[change])
    assert fake.asked("/v1/completions") == []


_SAID = {
    "tokenizer": "has another tokenizer than before: 'The quick",
    "model": r"does not serve 'toy', only \['other'\]",
    "room": "has room for 100 tokens instead of 4096",
}


def _change(fake: FakeRemote, what: str) -> None:
    fake.shift = int(what == "tokenizer")
    fake.model = "other" if what == "model" else "toy"
    fake.room = 100 if what == "room" else 4096


def test_more_room_is_no_change(fake: FakeRemote, reach: Any) -> None:
    base = reach()
    fake.script = [Fault(drop_after=0)]
    fake.room = 10_000
    works(base)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("stream", [False, True])
def test_rate_limits(fake: FakeRemote, reach: Any, status: int, stream: bool) -> None:
    base = reach()
    fake.always = Fault(status=status, headers={"retry-after": "0.05"})
    error = fails(base, RemoteUnavailable, str(status), stream=stream)
    assert isinstance(error, RemoteUnavailable)
    assert error.retry_after == 0.05
    assert len(fake.asked("/v1/completions")) == 3
    assert not base.lost  # it answers, after all
    fake.always = None
    works(base)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fault",
    [
        Fault(body=b"<html>"),
        Fault(body=b'{"choices": ['),
        Fault(body=b"{}"),
        Fault(body=b"data: {}\n\ndata: [DONE]\n\n"),
        Fault(mangle=lambda answer: {**answer, "choices": [{**answer["choices"][0], "token_ids": [257]}]}),
        Fault(mangle=lambda answer: {**answer, "choices": [{**answer["choices"][0], "token_ids": ["3"]}]}),
        Fault(mangle=lambda answer: {**answer, "choices": answer["choices"] * 2}),
        Fault(mangle=lambda answer: {**answer, "choices": [{**answer["choices"][0], "index": 7}]}),
        Fault(status=500),
    ],
    ids=["html", "cut", "empty", "events", "outside", "retyped", "many", "index", "500"],
)
def test_garbage(fake: FakeRemote, reach: Any, fault: Fault, stream: bool) -> None:
    base = reach()
    fake.always = fault
    fails(base, (RemoteError, RemoteUnavailable), stream=stream)
    assert len(fake.asked("/v1/completions")) <= 3
    fake.always = None
    works(base)


def test_not_a_number_in_log_probabilities(fake: FakeRemote, reach: Any) -> None:
    base = reach()
    asked = replace(ASK, logprobs=1, n=1)
    for value in (float("nan"), float("inf"), 3.0, "x", None):

        def mangle(answer: Any, value: Any = value) -> Any:
            logprobs = {**answer["choices"][0]["logprobs"]}
            logprobs["token_logprobs"] = [value] * len(logprobs["token_logprobs"])
            return {**answer, "choices": [{**answer["choices"][0], "logprobs": logprobs}]}

        fake.always = Fault(mangle=mangle)
        fails(base, RemoteError, ask=asked)
    assert base.stats.failures["garbage"] == 5


def test_a_dropped_stream_tells_no_more_and_fails(fake: FakeRemote, reach: Any) -> None:
    base = reach()
    fake.script = [Fault(drop_after=3)]
    told: list[tuple[int, int]] = []
    call = base.ask(ASK, lambda number, token: told.append((number, token.id)))
    with pytest.raises(RemoteUnavailable):
        call.result(30)
    assert len(told) <= 3
    assert len(fake.asked("/v1/completions")) == 1
    whole = base.ask(ASK).result(30)
    assert {number for number, _ in told} <= {0, 1}
    for number, continuation in enumerate(whole.continuations):
        begun = [id_ for place, id_ in told if place == number]
        assert begun == [token.id for token in continuation.tokens[: len(begun)]]


@pytest.mark.parametrize("stream", [False, True])
def test_a_cancelled_call_is_noticed_there(fake: FakeRemote, reach: Any, stream: bool) -> None:
    base = reach()
    fake.always = Fault(delay=0.0 if stream else 10.0, pause=10.0)
    call = base.ask(ASK, (lambda number, token: None) if stream else None)
    wait_until(lambda: fake.running == 1)
    call.cancel()
    wait_until(lambda: fake.gone == 1 and base.stats.in_flight == 0)
    assert not base.lost


def test_a_call_of_several_is_cancelled_as_one() -> None:
    with FakeRemote("llama.cpp") as fake:
        base = RemoteBase(RemoteSettings(url=fake.url, retries=0), VOCABULARY, RemoteStats())
        try:
            fake.always = Fault(delay=10.0)
            call = base.ask(replace(ASK, n=3))
            wait_until(lambda: fake.running == 3)
            call.cancel()
            wait_until(lambda: fake.gone == 3)
            fake.always, fake.script = Fault(delay=0.2), [Fault(status=400)]
            fails(base, RemoteError, "400", ask=replace(ASK, n=3))
            wait_until(lambda: fake.running == 0)
        finally:
            base.close()


def test_many_calls_survive_a_restart(fake: FakeRemote, reach: Any) -> None:
    base = reach(retries=6, backoff=0.05, connections=8)
    calls = [base.ask(replace(ASK, seed=seed)) for seed in range(60)]
    wait_until(lambda: len(fake.calls) > 5)
    fake.stop()
    time.sleep(0.1)
    fake.start()
    want = [call.result(30) for call in calls]
    assert want == [base.ask(replace(ASK, seed=seed)).result(30) for seed in range(60)]
    assert not base.lost


def test_closing_in_the_middle_leaves_nothing(fake: FakeRemote, reach: Any) -> None:
    base = reach(recheck=0.01)
    fake.always = Fault(delay=10.0, only=("/v1/completions", "/v1/models"))
    calls = [base.ask(ASK) for _ in range(4)]
    wait_until(lambda: fake.running >= 5)
    begun = time.monotonic()
    base.close()
    assert time.monotonic() - begun < 2
    assert all(call.done() for call in calls)
    with pytest.raises(RemoteUnavailable, match="closed"):
        base.ask(ASK)
