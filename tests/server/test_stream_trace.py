"""Traces that come with the tokens: chunk by chunk they are the trace of the whole answer."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from folders import foreign_folder, teach_letters
from steered import furnish, guides, load
from wire import CHAT, TEXT

from trimtab.engine.results import Delta, TokenTrace
from trimtab.llm import LLM
from trimtab.server.bridge import _joined
from trimtab.server.settings import Settings

TRACE = {"trace": "tokens"}
GENARM = {"strategy": "genarm", "arm": "arm", "alpha": 0.8}
BEST = {"strategy": "best_of_n", "n": 3, "reward": "taste"}
REFUSAL = {"rule": "abstain", "tau": 1e3, "message": "No."}
TOOL = {
    "type": "function",
    "function": {"name": "time", "parameters": {"type": "object", "additionalProperties": False}},
}
TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}<tool_call>"
    '{"name": <function-name>, "arguments": <args-json-object>}</tool_call>{% endfor %}'
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}<assistant>"
)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain sampling": ({}, {}),
    "genarm": (GENARM, {}),
    "args": ({"strategy": "args", "reward": "taste", "k": 3}, {}),
    "two tokenizers": ({"strategy": "nudging", "aligned": "foreign", "gamma": 0.05}, {"max_tokens": 24}),
    "drawn by the program": ({"strategy": "tqstar", "reward": "taste", "k": 2, "rollout": 2}, {}),
    "a tree": ({"strategy": "ppo_mcts", "value": "state", "simulations": 4, "k": 3}, {}),
    "best_of_n": (BEST, {}),
    "blocks": ({"strategy": "cd_blockwise", "value": "taste", "k": 3, "block": 4}, {}),
    "particle_filter": ({"strategy": "particle_filter", "reward": "taste", "n": 3, "block": 4}, {}),
    "another instruction's words": (
        {"strategy": "darwin", "reward": "taste", "mutations": 2, "mutation_tokens": 8, "m": 4, "elite": 1}, {},
    ),
    "two choices": (GENARM, {"n": 2}),
    "two choices of a search": ({**BEST, "steer": [{"method": "genarm", "arm": "arm"}]}, {"n": 2}),
    "a refusal": ({**BEST, "select": REFUSAL}, {"n": 2}),
    "a refusal of what was drawn": (
        {"strategy": "cd_blockwise", "value": "taste", "k": 3, "block": 4, "select": REFUSAL}, {},
    ),
    "a budget": (GENARM, {"budget": {"max_model_tokens": 40}}),
    "a budget within blocks": (
        {"strategy": "cd_blockwise", "value": "taste", "k": 3, "block": 4}, {"budget": {"max_model_tokens": 60}},
    ),
    "a budget of KL": (GENARM, {"budget": {"max_kl": 1.0}}),
    "characters of several tokens": (GENARM, {"logit_bias": {str(token): 9.0 for token in range(127, 256)}}),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = furnish(tmp_path_factory.mktemp("traced"))
    teach_letters(foreign_folder(place / "foreign", seed=12), "abcdehilnorstuwy ", loudness=2.0)
    for model in ("base", "arm"):  # room for conversations that a search writes itself
        config = place / model / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 2048}))
    (place / "template.jinja").write_text(TEMPLATE)
    return place


@pytest.fixture(scope="module")
def traced(place: Path) -> Iterator[LLM]:
    configured = {**guides(place), "foreign": {"role": "lm", "model": str(place / "foreign")}}
    # Without a prefix cache: prompts that are computed and prompts that are found differ in the last bits.
    settings = {"threads": 1, "prefix_cache": False, "chat_template": str(place / "template.jinja")}
    with load(place / "base", configured, **settings) as llm:
        yield llm


@pytest.fixture(scope="module")
def url(traced: LLM, start_shared: Callable[..., Any]) -> str:
    policy = {"floor": {"steer": [{"method": "genarm", "arm": "arm"}]}}
    presets = {"shown": {"decoding": {**GENARM, **TRACE}}}
    return str(start_shared(traced, Settings.model_validate({"presets": presets, "policies": {"closed": policy}})).url)


def body(decoding: dict[str, Any], **changes: Any) -> dict[str, Any]:
    told = {**decoding, **TRACE, **({"budget": changes.pop("budget")} if "budget" in changes else {})}
    return {"model": "base", "max_tokens": 12, "seed": 1, "decoding": told, "return_token_ids": True, **changes}


def chunks(url: str, sent: dict[str, Any], *, usage: bool = False) -> list[dict[str, Any]]:
    options = {"include_trace": True, "include_usage": usage}
    path = CHAT if "messages" in sent else TEXT
    response = httpx2.post(url + path, json={**sent, "stream": True, "stream_options": options}, timeout=60)
    assert response.status_code == 200, response.text
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events if event[0] != ":"]


def compare(url: str, sent: dict[str, Any], *, usage: bool = False) -> list[list[dict[str, Any]]]:
    """Ask with and without a stream; the records of each choice, which are the same."""
    response = httpx2.post(url + (CHAT if "messages" in sent else TEXT), json=sent, timeout=60)
    assert response.status_code == 200, response.text
    whole, told = response.json(), chunks(url, sent, usage=usage)
    records: list[list[dict[str, Any]]] = [[] for _ in whole["choices"]]
    ids: list[list[int]] = [[] for _ in whole["choices"]]
    texts = [""] * len(ids)
    for choice in (choice for chunk in told for choice in chunk["choices"]):
        index = choice["index"]
        if "trace" in choice and "token_ids" in choice:
            assert [each["id"] for each in choice["trace"]] == choice["token_ids"] != []
        records[index] += choice.get("trace", [])
        ids[index] += choice.get("token_ids", [])
        texts[index] += choice.get("text") or choice.get("delta", {}).get("content") or ""
    decodings = whole["decoding"] if isinstance(whole["decoding"], list) else [whole["decoding"]]
    assert records == [trace for decoding in decodings for trace in decoding["trace"]]
    assert ids == [choice.get("token_ids", []) for choice in whole["choices"]]
    if not sent.get("tools"):
        assert texts == [choice.get("text") or choice["message"]["content"] for choice in whole["choices"]]
    last = told[-1]["decoding"] if isinstance(told[-1]["decoding"], list) else [told[-1]["decoding"]]
    assert all("trace" not in each for each in last)
    assert [each["spec"] for each in last] == [each["spec"] for each in decodings]
    assert [each["stopped_by"] for each in last] == [each["stopped_by"] for each in decodings]
    return records


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("case", CASES)
def test_the_records_of_a_stream_are_the_trace_of_the_answer(url: str, case: str, path: str, bare: bool) -> None:
    decoding, changes = CASES[case]
    changes = {**changes, "return_token_ids": not bare}  # nothing else is told of tokens without text
    asked = {"messages": [{"role": "user", "content": "Hi"}]} if path == CHAT else {"prompt": "Hi, you"}
    records = compare(url, body(decoding, **asked, **changes), usage=bare)
    assert len(records) == changes.get("n", 1)
    assert any(records) == ("refusal" not in case)
    if case == "two tokenizers":
        assert {each["source"] for each in records[0]} == {"base", "nudge"}


def test_a_stop_string_cuts_text_and_not_the_records(url: str) -> None:
    sent = body(GENARM, messages=[{"role": "user", "content": "Hi"}], max_tokens=16)
    text = httpx2.post(url + CHAT, json=sent, timeout=60).json()["choices"][0]["message"]["content"]
    stop = text[-6:-3]
    (records,) = compare(url, {**sent, "stop": stop})
    (found,) = httpx2.post(url + CHAT, json={**sent, "stop": stop}, timeout=60).json()["choices"]
    assert found["stop_reason"] == stop
    assert len(found["message"]["content"].encode()) < len(records)


def test_every_prompt_has_records_of_its_own(url: str) -> None:
    records = compare(url, body(GENARM, prompt=["Hi", "Ho"], n=2))
    assert len(records) == 4
    assert records[0] != records[2]


@pytest.mark.parametrize("logprobs", [None, 1])
def test_an_echo_has_no_records(url: str, logprobs: int | None) -> None:
    sent = body(GENARM, prompt="Hi", echo=True, logprobs=logprobs)
    (records,) = compare(url, sent)
    assert len(records) == 12


@pytest.mark.parametrize("ids", [False, True])
def test_records_stand_beside_calls(url: str, ids: bool) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    sent = body(GENARM, messages=messages, tools=[TOOL], tool_choice="required", max_tokens=200, return_token_ids=ids)
    (records,) = compare(url, sent)
    assert "".join(each["text"] for each in records).startswith("<tool_call>")


def test_a_preset_may_keep_the_trace(url: str) -> None:
    sent = body({}, messages=[{"role": "user", "content": "Hi"}], model="base:shown")
    del sent["decoding"]
    (records,) = compare(url, sent)
    assert {each["source"] for each in records} == {"steered"}


def test_without_the_option_the_trace_is_told_at_the_end(url: str) -> None:
    sent = body(GENARM, messages=[{"role": "user", "content": "Hi"}], stream=True)
    text = httpx2.post(url + CHAT, json=sent, timeout=60).text
    assert text.count('"trace":[') == 1
    assert '"trace":[[{"id":' in text.split("\n\n")[-3]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("decoding", [None, {}, GENARM])
def test_a_trace_that_nobody_keeps_is_refused(url: str, path: str, decoding: dict[str, Any] | None) -> None:
    sent = {"model": "base", "stream": True, "stream_options": {"include_trace": True}, "decoding": decoding}
    sent |= {"messages": [{"role": "user", "content": "Hi"}]} if path == CHAT else {"prompt": "Hi"}
    response = httpx2.post(url + path, json=sent)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "stream_options.include_trace"), error
    assert "decoding.trace" in error["message"]


def test_the_option_needs_a_stream(url: str) -> None:
    sent = body({}, prompt="Hi", stream_options={"include_trace": True})
    error = httpx2.post(url + TEXT, json=sent).json()["error"]
    assert (error["param"], error["code"]) == ("stream_options", None)


def test_a_policy_that_forbids_traces_forbids_them_in_streams(traced: LLM, start: Callable[..., Any]) -> None:
    settings = {"policies": {"closed": {"forbidden": ["trace"]}}, "default_policy": "closed"}
    closed = start(traced, Settings.model_validate(settings)).url
    sent = body(GENARM, prompt="Hi", stream=True, stream_options={"include_trace": True})
    response = httpx2.post(closed + TEXT, json=sent)
    assert (response.status_code, response.json()["error"]["param"]) == (403, "decoding.trace")


def test_unread_records_are_joined_in_order() -> None:
    def record(token: int) -> TokenTrace:
        return TokenTrace(token, "base", -1.0, -1.0, 1.0, 1.0, 0.0)

    said = [Delta(0, "a", (1,), None, trace=(record(1),)), Delta(0, "", (), None)]
    last = Delta(0, "bc", (2, 3), None, trace=(record(2), record(3)))
    assert _joined([*said, last]).trace == (record(1), record(2), record(3))
    assert _joined([Delta(0, "a", (1,), None), Delta(0, "b", (2,), None)]).trace is None
