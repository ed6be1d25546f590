"""What requests come to when the server that runs the base fails: an answer, or an error that says what to do."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from fake_faults import COMPLETIONS, Fault
from fake_remote import FakeRemote
from running import wait_until
from toy import byte_tokenizer
from transformers import LlamaConfig

from trimtab.engine.errors import ModelLoadError, RemoteError, RemoteUnavailable
from trimtab.engine.results import Delta, Event, Failure, Result
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.settings import EngineSettings
from trimtab.llm import LLM
from trimtab.requests import GenerationRequest

QUICK = {"retries": 2, "backoff": 0.02, "longest_backoff": 0.1, "read_timeout": 5.0, "recheck": 0.2}
BEST = {"strategy": "best_of_n", "n": 3, "reward": "length"}


@pytest.fixture(scope="module")
def spelling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer and the config of the model, and no weights."""
    folder = tmp_path_factory.mktemp("spelling")
    byte_tokenizer().save_pretrained(folder)
    LlamaConfig(vocab_size=257, max_position_embeddings=512, eos_token_id=256).save_pretrained(folder)
    return folder


@pytest.fixture
def fake() -> Iterator[FakeRemote]:
    with FakeRemote("vllm") as server:
        yield server


@pytest.fixture
def llm(fake: FakeRemote, spelling: Path, guides: dict[str, Any]) -> Iterator[LLM]:
    given = {"model": str(spelling), "guides": guides, "remote": {"url": fake.url, **QUICK}}
    with LLM(settings=EngineSettings.model_validate(given)) as engine:
        yield engine


def start(llm: LLM, decoding: Any = None, n: int = 1, **sampling: Any) -> "tuple[object, SimpleQueue[Event]]":
    events: SimpleQueue[Event] = SimpleQueue()
    given = SamplingParams(**{"seed": 1, "max_tokens": 12, "ignore_eos": True, **sampling})
    prepared = llm.prepare(GenerationRequest(prompt="abc", sampling=given, n=n, decoding=decoding))
    handle = object()

    def deliver(batch: list[tuple[object, Event]]) -> None:
        for _, event in batch:
            events.put(event)

    llm.submit(prepared, handle, deliver)
    return handle, events


def run(llm: LLM, decoding: Any = None, **given: Any) -> list[Any]:
    """All events of a request, to its end."""
    _, events = start(llm, decoding, **given)
    found: list[Any] = []
    while not found or not isinstance(found[-1], Result | Failure):
        found.append(events.get(timeout=20))
    return found


def test_weights_are_not_needed_here(llm: LLM) -> None:
    assert len(run(llm)[-1].choices[0].token_ids) == 12


def test_a_dropped_stream_goes_on_where_it_broke_off(llm: LLM, fake: FakeRemote) -> None:
    fake.script = [Fault(drop_after=4)]
    *deltas, result = run(llm)
    (choice,) = result.choices
    assert len(choice.token_ids) == 12
    assert "".join(each.text for each in deltas if isinstance(each, Delta)) == choice.text
    first, second = fake.asked(COMPLETIONS[0])[-2:]
    assert second["prompt"][: len(first["prompt"])] == first["prompt"]
    assert len(second["prompt"]) > len(first["prompt"])
    assert second["max_tokens"] == 12 - (len(second["prompt"]) - len(first["prompt"]))


def test_a_stream_is_not_gone_on_with_where_penalties_count_it(llm: LLM, fake: FakeRemote) -> None:
    fake.script = [Fault(drop_after=4)]
    failure = run(llm, presence_penalty=0.5)[-1]
    assert isinstance(failure.error, RemoteUnavailable)


@pytest.mark.parametrize("decoding", [None, BEST], ids=["sample", "best_of_n"])
def test_a_server_that_is_gone_fails_the_request_and_serves_the_next_one(
    llm: LLM, fake: FakeRemote, decoding: Any
) -> None:
    fake.stop()
    failure = run(llm, decoding)[-1]
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, RemoteUnavailable)
    assert "abc" not in str(failure.error)
    fake.start()
    assert isinstance(run(llm, decoding)[-1], Result)
    assert llm.idle


def test_garbage_ends_one_request_and_not_its_neighbours(llm: LLM, fake: FakeRemote) -> None:
    fake.script = [Fault(body=b"<html>"), None]
    with ThreadPoolExecutor(2) as threads:
        ends = [each.result()[-1] for each in [threads.submit(run, llm, BEST) for _ in range(2)]]
    assert sorted(type(end).__name__ for end in ends) == ["Failure", "Result"]
    (failed,) = (end for end in ends if isinstance(end, Failure))
    assert isinstance(failed.error, RemoteError)


def test_a_deadline_returns_what_has_come(llm: LLM, fake: FakeRemote) -> None:
    fake.always = Fault(pause=0.05)
    began = time.monotonic()
    result = run(llm, {**BEST, "budget": {"deadline_ms": 400}}, max_tokens=200)[-1]
    assert result.stopped_by == "deadline_ms"
    assert time.monotonic() - began < 2.0
    assert 0 < len(result.choices[0].token_ids) < 200
    fake.always = None
    wait_until(lambda: fake.gone > 0)  # the call was given up there, too


def test_cancelling_hangs_up(llm: LLM, fake: FakeRemote) -> None:
    fake.always = Fault(delay=5.0)
    handle, _ = start(llm, BEST)
    wait_until(lambda: fake.running > 0)
    llm.cancel(handle)
    wait_until(lambda: fake.gone == 1)
    wait_until(lambda: llm.idle)


def test_another_tokenizer_is_noticed_and_refused_until_it_is_gone(llm: LLM, fake: FakeRemote) -> None:
    fake.stop()
    fake.shift = 1
    fake.start()
    wait_until(lambda: isinstance(run(llm, BEST)[-1], Failure))  # at the next look, if no call broke
    failure = run(llm, BEST)[-1]
    assert isinstance(failure.error, RemoteUnavailable)
    assert "tokenizer" in str(failure.error)
    fake.shift = 0
    wait_until(lambda: isinstance(run(llm, BEST)[-1], Result))


def test_rate_limits_are_waited_for(llm: LLM, fake: FakeRemote) -> None:
    fake.script = [Fault(status=429), Fault(status=503)]
    assert isinstance(run(llm, BEST)[-1], Result)
    assert llm.stats.remotes["base"].retries == 2


def test_the_engine_sleeps_while_it_waits(llm: LLM, fake: FakeRemote, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = 0
    tick = llm._worker.engine.tick

    def counted() -> None:
        nonlocal ticks
        ticks += 1
        tick()

    monkeypatch.setattr(llm._worker.engine, "tick", counted)
    fake.always = Fault(delay=0.6)
    assert isinstance(run(llm, BEST)[-1], Result)
    assert ticks < 100


def test_tokens_of_a_budget_bound_what_is_asked_for(llm: LLM, fake: FakeRemote) -> None:
    result = run(llm, {**BEST, "budget": {"max_model_tokens": 60}}, max_tokens=400)[-1]
    assert result.stopped_by == "max_model_tokens"
    assert sum(result.usage.model_tokens.values()) <= 60 + 3 * 22, "what the last calls read again"


def test_who_finishes_first_does_not_depend_on_whose_call_does(llm: LLM, fake: FakeRemote) -> None:
    """A vote stops at the first answers; one call at a time is late."""
    base = llm.models["base"].remote
    assert base is not None
    base.capabilities = replace(base.capabilities, many=False)
    decoding = {"strategy": "self_consistency", "n": 4, "extract": "text", "least": 2, "share": 0.1}
    sampling = {"max_tokens": 30, "ignore_eos": False, "logit_bias": {256: 1.0}}
    answers = set()
    for late in range(4):
        fake.script = [Fault(delay=0.2) if place == late else None for place in range(4)]
        result = run(llm, decoding, **sampling)[-1]
        answers.add((result.choices[0].token_ids, tuple(each.tokens for each in result.candidates)))
    assert len(answers) == 1


def test_a_stream_of_two_that_breaks_before_the_second_began(llm: LLM, fake: FakeRemote) -> None:
    fake.script = [Fault(drop_after=1)]
    result = run(llm, n=2)[-1]
    assert [len(choice.token_ids) for choice in result.choices] == [12, 12]


def test_what_a_stream_cost_is_what_the_server_tells(llm: LLM, fake: FakeRemote) -> None:
    fake.always = Fault(pause=0.03)
    run(llm)
    (body,) = fake.asked(COMPLETIONS[0])[-1:]
    assert body["stream_options"] == {"include_usage": True}
    wait_until(lambda: llm.idle)
    assert fake.gone == 0, "the stream was heard to its end"


def test_what_was_told_of_the_cost_stays_as_it_was(llm: LLM, fake: FakeRemote) -> None:
    decoding = {"strategy": "best_of_n", "n": 4, "reward": "length", "budget": {"reward_at_least": 1.0}}
    usage = run(llm, decoding, max_tokens=20)[-1].usage
    before = dict(usage.model_tokens), dict(usage.forwards)
    run(llm)
    assert (usage.model_tokens, usage.forwards) == before


def test_a_guide_that_cannot_be_loaded_says_so(fake: FakeRemote, spelling: Path) -> None:
    given = {"model": str(spelling), "guides": {"x": {"role": "reward", "model": "/no/folder"}}}
    with pytest.raises(ModelLoadError, match="guide 'x'"):
        LLM(settings=EngineSettings.model_validate({**given, "remote": {"url": fake.url, **QUICK}}))


@pytest.mark.parametrize("config", [{"role": "vector", "model": "{}"}, {"role": "preference", "model": "{}"}])
def test_parts_of_the_base_are_refused(fake: FakeRemote, spelling: Path, tmp_path: Path, config: Any) -> None:
    file = tmp_path / "part.gguf"
    file.touch()
    given = {"model": str(spelling), "guides": {"x": {**config, "model": str(file)}}}
    with pytest.raises(ModelLoadError, match=r"engine\.remote"):
        LLM(settings=EngineSettings.model_validate({**given, "remote": {"url": fake.url, **QUICK}}))


def test_a_server_that_cuts_stop_strings_off_is_not_asked_for_them(spelling: Path, guides: dict[str, Any]) -> None:
    """Else the end of a step could not be told from the end of the text."""
    with FakeRemote("other", speaks_ids=False) as fake:
        given = {"model": str(spelling), "guides": guides, "remote": {"url": fake.url, **QUICK}}
        with LLM(settings=EngineSettings.model_validate(given)) as llm:
            assert not llm.models["base"].remote.capabilities.include_stop  # type: ignore[union-attr]
            before = len(fake.asked(COMPLETIONS[0]))
            decoding = {"strategy": "particle_filter", "n": 2, "reward": "length", "separator": "a"}
            result = run(llm, decoding, ignore_eos=False)[-1]
            assert isinstance(result, Result), result
            assert not any(body.get("stop") for body in fake.asked(COMPLETIONS[0])[before:])
