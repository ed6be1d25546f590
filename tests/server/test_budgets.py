"""Budgets over the wire: whatever runs out, there is an answer, and the response says what ended the search."""

import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletion
from steered import furnish, guides, load
from wire import CHAT, empty, metrics

from trimtab.llm import LLM

ASK = [{"role": "user", "content": "Hi"}]
BEST = {"strategy": "best_of_n", "n": 6, "reward": "taste"}
BLOCKS = {"strategy": "cd_blockwise", "k": 3, "block": 4, "value": "taste"}
CARDS = {"strategy": "cards", "reward": "taste", "target": 50.0, "max_segment": 8, "attempts": 8}


@pytest.fixture(scope="module")
def budgeted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    place: Path = furnish(tmp_path_factory.mktemp("budgeted"))
    with load(place / "base", guides(place), threads=1) as llm:
        yield llm


@pytest.fixture(scope="module")
def url(budgeted: LLM, start_shared: Callable[..., Any]) -> str:
    return str(start_shared(budgeted).url)


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    """OpenAI's client, which validates every response strictly."""
    with OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=30, _strict_response_validation=True) as c:
        yield c


def body(decoding: dict[str, Any], budget: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    extra = {"decoding": decoding if budget is None else {**decoding, "budget": budget}, "ignore_eos": True}
    return {"model": "base", "messages": ASK, "max_tokens": 24, "seed": 1, "extra_body": extra, **changes}


def counted(url: str, by: str, strategy: str) -> float:
    return metrics(url).get(f'trimtab:request_stopped_total{{by="{by}",strategy="{strategy}"}}', 0.0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("decoding", [{"strategy": "sample"}, BEST, BLOCKS, CARDS], ids=lambda each: each["strategy"])
def test_a_deadline_of_a_millisecond_is_answered(
    client: OpenAI, url: str, wait_until: Any, decoding: dict[str, Any], n: int, stream: bool
) -> None:
    before = counted(url, "deadline_ms", decoding["strategy"])
    answer = client.chat.completions.create(**body(decoding, {"deadline_ms": 1}, n=n, stream=stream))
    if stream:
        chunks = list(answer)
        reasons = {c.choices[0].index: c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason}
        told = chunks[-1].decoding
    else:
        reasons = {choice.index: choice.finish_reason for choice in answer.choices}
        told = answer.decoding
    assert told["stopped_by"] == "deadline_ms"
    assert told["spec"]["budget"] == {"deadline_ms": 1}
    assert reasons == dict.fromkeys(range(n), "length")
    assert counted(url, "deadline_ms", decoding["strategy"]) == before + 1
    wait_until(lambda: empty(url))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("decoding", [{"strategy": "sample"}, BEST, BLOCKS, CARDS], ids=lambda each: each["strategy"])
def test_a_deadline_ends_a_search_with_what_it_has(
    client: OpenAI, budgeted: LLM, monkeypatch: pytest.MonkeyPatch, decoding: dict[str, Any], stream: bool
) -> None:
    late, calls = 0.0, count(1)
    runner = budgeted._worker.engine.runner
    decode = runner.decode

    def decode_till_late(*arguments: Any) -> Any:
        nonlocal late
        if next(calls) == 7:
            late = 3600.0
        return decode(*arguments)

    monkeypatch.setattr(runner, "decode", decode_till_late)
    monkeypatch.setattr("trimtab.engine.job.monotonic", lambda: time.monotonic() + late)
    text, told = read(client.chat.completions.create(**body(decoding, {"deadline_ms": 3_000_000}, stream=stream)))
    assert told["stopped_by"] == "deadline_ms"
    assert text
    chosen = told["candidates"][told["chosen"][0]]
    assert chosen.get("text", text) == text
    assert chosen["tokens"] <= 7


@pytest.mark.parametrize("decoding", [{"strategy": "sample"}, BEST, BLOCKS, CARDS], ids=lambda each: each["strategy"])
def test_tokens_of_all_models_run_out(client: OpenAI, decoding: dict[str, Any]) -> None:
    text, told = read(client.chat.completions.create(**body(decoding, {"max_model_tokens": 40}, max_tokens=60)))
    assert told["stopped_by"] == "max_model_tokens"
    assert told["candidates"][told["chosen"][0]]["finish_reason"] == "length"
    assert text
    chunks = client.chat.completions.create(**body(decoding, {"max_model_tokens": 40}, max_tokens=60, stream=True))
    assert read(chunks)[0] == text
    _, whole = read(client.chat.completions.create(**body(decoding, max_tokens=60)))
    assert 40 <= sum(told["model_tokens"].values()) < sum(whole["model_tokens"].values())


def test_a_search_ends_with_the_first_answer_that_is_good_enough(client: OpenAI) -> None:
    whole = client.chat.completions.create(**body(BEST)).decoding
    rewards = [each["reward"] for each in whole["candidates"]]
    enough = sorted(rewards)[-2]
    answer = client.chat.completions.create(**body(BEST, {"reward_at_least": enough}))
    told = answer.decoding
    assert told["stopped_by"] == "reward_at_least"
    chosen = told["candidates"][told["chosen"][0]]
    assert chosen["reward"] >= enough - 1e-5
    assert chosen["text"] == answer.choices[0].message.content
    more = client.chat.completions.create(**body(BEST, {"reward_at_least": max(rewards) + 1.0})).decoding
    assert more["stopped_by"] == "finished"


def test_rows_beyond_the_limit_take_turns(client: OpenAI, budgeted: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = client.chat.completions.create(**body(BEST))
    widths: list[int] = []
    runner = budgeted._worker.engine.runner
    decode = runner.decode

    def watched(chunks: list[Any], *rest: Any) -> Any:
        widths.append(len(chunks))
        return decode(chunks, *rest)

    monkeypatch.setattr(runner, "decode", watched)
    narrow = client.chat.completions.create(**body(BEST, {"max_rows": 2}))
    assert max(widths) == 2
    assert [each["text"] for each in narrow.decoding["candidates"]] == [
        each["text"] for each in wide.decoding["candidates"]
    ]
    assert narrow.choices[0].message.content == wide.choices[0].message.content


def test_more_answers_than_rows_are_drawn_in_turn(tmp_path: Path, start: Callable[..., Any]) -> None:
    place = furnish(tmp_path / "four")
    with load(place / "base", guides(place), threads=1, max_rows=4, max_candidates=8) as llm:
        url = start(llm).url
        sent = {"model": "base", "messages": ASK, "max_tokens": 12, "decoding": BEST}
        told = httpx2.post(url + CHAT, json=sent).json()["decoding"]
        refused = httpx2.post(url + CHAT, json={**sent, "decoding": {**BEST, "n": 9}})
    assert len(told["candidates"]) == 6
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, "decoding.n")
    assert "engine.max_candidates" in error["message"]


def read(answer: Any) -> tuple[str, dict[str, Any]]:
    """Text and report of an answer, whole or streamed."""
    if isinstance(answer, ChatCompletion):
        return str(answer.choices[0].message.content), answer.decoding
    *chunks, last = answer
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks), last.decoding
