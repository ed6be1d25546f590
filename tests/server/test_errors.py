"""Every way to be refused: the status, OpenAI's code, the field that is named, and the exception of OpenAI's client."""

import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from openai import (
    APIError,
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    OpenAI,
    PermissionDeniedError,
    RateLimitError,
)

from trimtab.engine.errors import Draining, GuideError, GuideUnavailable, Overloaded
from trimtab.llm import LLM
from trimtab.server.settings import Settings

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
TEXT = {"model": "tiny", "prompt": "Hi", "max_tokens": 2}
UNSUPPORTED = "unsupported_parameter"
UNKNOWN = "unknown_parameter"
INVALID = "invalid_value"

CHAT_TABLE = [
    ({"temprature": 1}, 400, UNKNOWN, "temprature", "temperature"),
    (
        {"stream_options": {"include_usages": True}},
        400,
        UNKNOWN,
        "stream_options.include_usages",
        "include_usage",
    ),
    ({"stream_options": {"include_usage": True}}, 400, None, "stream_options", "stream: true"),
    ({"temperature": 2.5}, 400, INVALID, "temperature", "2"),
    ({"temperature": "hot"}, 400, INVALID, "temperature", "number"),
    ({"top_p": 0}, 400, INVALID, "top_p", "0"),
    ({"n": 0}, 400, INVALID, "n", "at least 1"),
    ({"n": 33}, 400, INVALID, "n", "32"),
    ({"n": "2"}, 400, INVALID, "n", "integer"),
    ({"n": True}, 400, INVALID, "n", "integer"),
    ({"max_tokens": -1}, 400, INVALID, "max_tokens", "0"),
    ({"max_completion_tokens": 10**6}, 400, "context_length_exceeded", "messages", "512"),
    ({"stop": ["a", "b", "c", "d", "e"]}, 400, INVALID, "stop", "4"),
    ({"stop": ""}, 400, None, "stop", "empty"),
    ({"logit_bias": {"x": 1}}, 400, INVALID, "logit_bias", "token ids"),
    ({"logit_bias": {"1": 101}}, 400, INVALID, "logit_bias[1]", "100"),
    ({"logit_bias": {"99999": 1}}, 400, None, "logit_bias", "vocabulary"),
    ({"top_logprobs": 2}, 400, None, "top_logprobs", "logprobs: true"),
    ({"logprobs": True, "top_logprobs": 21}, 400, INVALID, "top_logprobs", "20"),
    ({"seed": 2**63}, 400, INVALID, "seed", "9223372036854775808"),
    ({"seed": 10**30}, 400, INVALID, "seed", ""),
    (
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        400,
        UNSUPPORTED,
        "tools",
        "chat template",
    ),
    ({"tool_choice": "required"}, 400, None, "tool_choice", "needs tools"),
    ({"functions": [{"name": "f"}]}, 400, UNSUPPORTED, "functions", "not supported"),
    ({"response_format": {"type": "json"}}, 400, INVALID, "response_format.type", "json_object"),
    ({"modalities": ["text", "audio"]}, 400, UNSUPPORTED, "modalities", "not supported"),
    ({"audio": {"voice": "x", "format": "wav"}}, 400, UNSUPPORTED, "audio", "not supported"),
    ({"prediction": {"type": "content", "content": "x"}}, 400, UNSUPPORTED, "prediction", "not supported"),
    ({"reasoning_effort": "low"}, 400, UNSUPPORTED, "reasoning_effort", "not supported"),
    ({"service_tier": "flex"}, 400, UNSUPPORTED, "service_tier", "not supported"),
    ({"store": True}, 400, UNSUPPORTED, "store", "false"),
    ({"priority": 2**31}, 400, INVALID, "priority", "2147483647"),
    ({"messages": []}, 400, INVALID, "messages", "at least 1"),
    ({"messages": [{"role": "user"}]}, 400, "missing_required_parameter", "messages[0].content", "required"),
    ({"messages": [{"role": "robot", "content": "x"}]}, 400, INVALID, "messages[0].role", "assistant"),
    ({"messages": [{"role": "user", "content": None}]}, 400, INVALID, "messages[0].content", ""),
    ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, 400, UNSUPPORTED, "messages[0].name", ""),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        400,
        UNSUPPORTED,
        "messages[0].content[0].image_url",
        "not supported",
    ),
    (
        {"messages": [{"role": "user", "content": "x" * 600}]},
        400,
        "context_length_exceeded",
        "messages",
        "512",
    ),
    ({"stream_options": {"include_progress": True}}, 400, None, "stream_options", "stream: true"),
    ({"stream_options": {"include_progress": 1}, "stream": True}, 400, INVALID, "stream_options.include_progress", ""),
    ({"model": "gpt-4"}, 404, "model_not_found", "model", "tiny"),
    ({"model": None}, 400, INVALID, "model", "string"),
    ({"decoding": {"strategy": "best_of_m"}}, 400, None, "decoding.strategy", "best_of_n"),
    ({"decoding": {"strategy": "best_of_n", "rewards": "x"}}, 400, None, "decoding.rewards", "'reward'"),
    (
        {"decoding": {"strategy": "best_of_n", "reward": "kindness"}},
        400,
        None,
        "decoding.reward",
        "lexicon",
    ),
    ({"decoding": {"strategy": "best_of_n", "n": 999, "reward": "brevity"}}, 400, None, "decoding.n", "256"),
    ({"decoding": "best_of_n"}, 400, INVALID, "decoding", "dictionary"),
    (
        {"continue_final_message": True, "add_generation_prompt": True},
        400,
        None,
        "continue_final_message",
        "",
    ),
]

TEXT_TABLE = [
    ({"prompt": []}, 400, INVALID, "prompt", "not empty"),
    ({"prompt": ""}, 400, None, "prompt", "empty"),
    ({"prompt": [1, "a"]}, 400, INVALID, "prompt", "token ids"),
    ({"prompt": [[1], []]}, 400, INVALID, "prompt", "not empty"),
    ({"prompt": [99999]}, 400, None, "prompt", "vocabulary"),
    ({"prompt": ["a"] * 33}, 400, INVALID, "n", "32"),
    ({"best_of": 3}, 400, UNSUPPORTED, "best_of", "best_of_n"),
    ({"response_format": {"type": "text"}}, 400, UNKNOWN, "response_format", "unknown key"),
    ({"prompt_logprobs": 1}, 400, UNKNOWN, "prompt_logprobs", "unknown key"),
    ({"suffix": "x"}, 400, UNSUPPORTED, "suffix", "not supported"),
    ({"logprobs": 21}, 400, INVALID, "logprobs", "20"),
    ({"messages": []}, 400, UNKNOWN, "messages", "unknown key"),
]


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param", "words"),
    [("/v1/chat/completions", {**CHAT, **change}, *rest) for change, *rest in CHAT_TABLE]
    + [("/v1/completions", {**TEXT, **change}, *rest) for change, *rest in TEXT_TABLE]
    + [
        ("/tokenize", {}, 400, INVALID, None, "prompt or messages"),
        ("/tokenize", {"prompt": "a", "model": "x"}, 404, "model_not_found", "model", "tiny"),
        ("/detokenize", {"tokens": [0, 99999]}, 400, INVALID, "tokens[1]", "vocabulary"),
        ("/detokenize", {"tokens": [-1]}, 400, INVALID, "tokens[0]", "0"),
    ],
)
def test_refused(
    http: httpx2.Client,
    path: str,
    body: dict[str, object],
    status: int,
    code: str | None,
    param: str,
    words: str,
) -> None:
    response = http.post(path, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    assert words in error["message"]
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "idle",
    [
        {"tools": []},
        {"tools": None, "tool_choice": "auto", "parallel_tool_calls": True},
        {"response_format": {"type": "text"}},
        {"store": False, "service_tier": "auto", "modalities": ["text"]},
        {"user": "me", "metadata": {"a": "b"}, "priority": 0, "top_k": -1},
        {"temperature": None, "stop": None, "n": None, "seed": None, "logit_bias": None, "decoding": None},
        {"stream": False, "stream_options": None, "logprobs": False},
    ],
)
def test_fields_that_ask_for_nothing_are_accepted(http: httpx2.Client, idle: dict[str, object]) -> None:
    assert http.post("/v1/chat/completions", json={**CHAT, **idle}).status_code == 200


JSON = {"content-type": "application/json"}
SURROGATE = b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}'


@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "status", "code", "words"),
    [
        ("POST", "/v1/chat/completions", b'{"model": "tiny"', JSON, 400, "invalid_json", "line 1"),
        ("POST", "/v1/chat/completions", b'{"model": "\xff\xfe"}', JSON, 400, "invalid_json", "JSON"),
        ("POST", "/v1/chat/completions", b'{"temperature": NaN}', JSON, 400, "invalid_json", "JSON"),
        ("POST", "/v1/chat/completions", b"[" * 5000, JSON, 400, "invalid_json", "recursion"),
        ("POST", "/v1/chat/completions", SURROGATE, JSON, 400, "invalid_json", "JSON"),
        ("POST", "/v1/chat/completions", b"", JSON, 400, "missing_required_parameter", "JSON object"),
        ("POST", "/v1/chat/completions", b"[]", JSON, 400, "invalid_value", "dictionary"),
        ("POST", "/v1/chat/completions", b"{}", JSON, 400, "missing_required_parameter", "model"),
        (
            "POST",
            "/v1/chat/completions",
            b"x=1",
            {"content-type": "text/plain"},
            415,
            "unsupported_media_type",
            "json",
        ),
        ("POST", "/v1/chat/completions", b"{}", {}, 415, "unsupported_media_type", "json"),
        ("POST", "/v1/chat/completions", b" " * 100_001, JSON, 413, "body_too_large", "100000"),
        ("POST", "/v1/chat/completion", b"{}", JSON, 404, "not_found", "/v1/chat/completions"),
        ("GET", "/v1/chat/completions", b"", {}, 405, "method_not_allowed", "POST"),
        ("GET", "/v1/models/none", b"", {}, 404, "model_not_found", "tiny"),
    ],
)
def test_refused_before_any_schema(
    http: httpx2.Client,
    method: str,
    path: str,
    content: bytes,
    headers: dict[str, str],
    status: int,
    code: str,
    words: str,
) -> None:
    response = http.request(method, path, content=content, headers=headers)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert words in error["message"]
    assert response.headers["x-request-id"]


def test_a_body_without_length_is_bounded_too(http: httpx2.Client) -> None:
    response = http.post("/tokenize", content=(b" " * 50_000 for _ in range(3)), headers=JSON)
    assert response.status_code == 413


def test_request_id_is_echoed_or_made(http: httpx2.Client) -> None:
    assert http.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = [http.get("/health").headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]
    assert len(http.get("/health", headers={"x-request-id": "x" * 500}).headers["x-request-id"]) < 129


def test_a_trailing_slash_is_told_the_path_that_was_meant(http: httpx2.Client) -> None:
    response = http.post("/v1/chat/completions/", json={})
    assert response.status_code == 404
    assert "did you mean /v1/chat/completions?" in response.json()["error"]["message"]


PRESETS = {"short": {"description": "The shortest of three.", "sampling": {"max_tokens": 4}}, "cold": {}}
POLICIES: dict[str, Any] = {
    "bounded": {"sampling": {"temperature": [0.2, 0.9]}, "presets": ["short"], "endpoints": ["chat"]},
    "rationed": {"limits": {"requests_per_minute": 1}},
}


@pytest.fixture(scope="module")
def opened(llm: LLM, start_shared: Callable[..., Any]) -> Iterator[Callable[[str], OpenAI]]:
    """OpenAI's client, strict, with a key of a server that has presets and a policy per key."""
    keys = {name: {"sha256": hashlib.sha256(name.encode()).hexdigest()} for name in ("anyone", *POLICIES)}
    held = {name: {**key, **({"policy": name} if name in POLICIES else {})} for name, key in keys.items()}
    settings = Settings.model_validate({"policies": POLICIES, "presets": PRESETS, "keys": held})
    url = start_shared(llm, settings).url + "/v1"
    made: list[OpenAI] = []

    def opened(key: str) -> OpenAI:
        made.append(OpenAI(base_url=url, api_key=key, max_retries=0, timeout=30, _strict_response_validation=True))
        return made[-1]

    yield opened
    for each in made:
        each.close()


@pytest.mark.parametrize(
    ("key", "change", "kind", "code", "param"),
    [
        ("anyone", {"temperature": 2.5}, BadRequestError, INVALID, "temperature"),
        ("anyone", {"extra_body": {"temprature": 1}}, BadRequestError, UNKNOWN, "temprature"),
        ("anyone", {"modalities": ["text", "audio"]}, BadRequestError, UNSUPPORTED, "modalities"),
        ("nobody", {}, AuthenticationError, "invalid_api_key", None),
        ("bounded", {"temperature": 1.5}, PermissionDeniedError, "policy_violation", "temperature"),
        ("bounded", {"model": "tiny:cold"}, PermissionDeniedError, "policy_violation", "model"),
        ("anyone", {"model": "gpt-4"}, NotFoundError, "model_not_found", "model"),
        ("anyone", {"model": "tiny:shrt"}, NotFoundError, "model_not_found", "model"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_are_the_clients_exceptions(
    opened: Callable[[str], OpenAI],
    key: str,
    change: dict[str, Any],
    kind: type[APIStatusError],
    code: str,
    param: str | None,
    stream: bool,
) -> None:
    with pytest.raises(APIStatusError) as refused:
        opened(key).chat.completions.create(**{**CHAT, **change}, stream=stream)
    error = refused.value
    assert type(error) is kind
    assert (error.code, error.param) == (code, param)
    assert isinstance(error.body, dict)
    assert error.body.keys() == {"message", "type", "param", "code"}
    assert error.body["message"] in error.message
    assert error.request_id == error.response.headers["x-request-id"]


def test_an_endpoint_that_a_policy_closes(opened: Callable[[str], OpenAI]) -> None:
    assert opened("bounded").chat.completions.create(**CHAT).choices
    with pytest.raises(PermissionDeniedError) as refused:
        opened("bounded").completions.create(**TEXT)
    assert refused.value.code == "policy_violation"


def test_a_spent_ration_says_when_to_come_again(opened: Callable[[str], OpenAI]) -> None:
    rationed = opened("rationed")
    assert rationed.chat.completions.create(**CHAT).choices
    with pytest.raises(RateLimitError) as refused:
        rationed.chat.completions.create(**CHAT)
    assert refused.value.code == "rate_limit_exceeded"
    assert refused.value.type == "rate_limit_error"
    assert 55 <= int(refused.value.response.headers["retry-after"]) <= 60
    assert opened("anyone").chat.completions.create(**CHAT).choices


def test_models_and_presets_are_listed(opened: Callable[[str], OpenAI]) -> None:
    anyone = opened("anyone")
    listed = anyone.models.list()
    assert [card.id for card in listed] == ["tiny", "tiny:short", "tiny:cold"]
    for card in listed:
        assert anyone.models.retrieve(card.id) == card
        assert (card.object, card.max_model_len) == ("model", 512)
    assert listed.data[1].parent == "tiny"
    assert anyone.chat.completions.create(**{**CHAT, "model": "tiny:short"}).model == "tiny:short"
    for unknown in ("gpt-4", "tiny:shrt"):
        with pytest.raises(NotFoundError):
            anyone.models.retrieve(unknown)
    with pytest.raises(AuthenticationError):
        opened("nobody").models.list()


@pytest.mark.parametrize(
    ("error", "code", "wait"),
    [
        (Overloaded("the queue is full", retry_after=2.5), "overloaded", "3"),
        (Draining(), "draining", "5"),
        (GuideUnavailable("taste", 3, retry_after=9.0), "guide_unavailable", "9"),
    ],
)
def test_what_passes_is_a_503(fake: Any, start: Any, error: Exception, code: str, wait: str) -> None:
    fake.refuses = error
    openai = OpenAI(base_url=start(fake).url + "/v1", api_key="none", max_retries=0)
    with openai, pytest.raises(InternalServerError) as refused:
        openai.chat.completions.create(**{**CHAT, "model": "fake"})
    assert (refused.value.status_code, refused.value.code) == (503, code)
    assert refused.value.response.headers["retry-after"] == wait


def test_the_client_comes_again_after_a_503(fake: Any, start: Any, wait_until: Any) -> None:
    submit, asked = fake.submit, []

    def full_at_first(*args: Any) -> None:
        asked.append(time.monotonic())
        if len(asked) == 1:
            raise Overloaded("the queue is full", retry_after=0.2)
        submit(*args)

    fake.submit = full_at_first
    openai = OpenAI(base_url=start(fake).url + "/v1", api_key="none", max_retries=1, timeout=20)
    with openai, ThreadPoolExecutor(1) as it:
        answer = it.submit(openai.chat.completions.create, **{**CHAT, "model": "fake"})
        wait_until(lambda: fake.submitted)
        fake.end("a")
        assert answer.result(20).choices[0].message.content == "a"
    assert asked[1] - asked[0] >= 1.0  # Retry-After counts whole seconds; by itself the client waits half of one


@pytest.mark.parametrize(
    ("error", "code"), [(GuideError("taste", "it broke"), "guide_error"), (RuntimeError("broken"), "internal_error")]
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_broken_is_not_asked_for_again(
    fake: Any, start: Any, wait_until: Any, error: Exception, code: str, stream: bool
) -> None:
    def ask(openai: OpenAI) -> list[Any]:
        answer: Any = openai.chat.completions.create(**{**CHAT, "model": "fake"}, stream=stream)
        return list(answer)

    openai = OpenAI(base_url=start(fake).url + "/v1", api_key="none", max_retries=2, timeout=20)
    with openai, ThreadPoolExecutor(1) as it:
        answer = it.submit(ask, openai)
        wait_until(lambda: fake.submitted)
        if stream:
            fake.say("a")
        fake.fail(error)
        with pytest.raises(APIError) as told:
            answer.result(20)
    assert told.value.code == code
    assert type(told.value) is (APIError if stream else InternalServerError)
    assert len(fake.submitted) == 1
