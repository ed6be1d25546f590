"""Every way to be refused: the status, OpenAI's code, and the field that is named."""

import httpx2
import pytest

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
        "not supported",
    ),
    ({"tool_choice": "required"}, 400, UNSUPPORTED, "tool_choice", "not supported"),
    ({"functions": [{"name": "f"}]}, 400, UNSUPPORTED, "functions", "not supported"),
    ({"response_format": {"type": "json_object"}}, 400, UNSUPPORTED, "response_format", "text"),
    ({"modalities": ["text", "audio"]}, 400, UNSUPPORTED, "modalities", "not supported"),
    ({"audio": {"voice": "x", "format": "wav"}}, 400, UNSUPPORTED, "audio", "not supported"),
    ({"prediction": {"type": "content", "content": "x"}}, 400, UNSUPPORTED, "prediction", "not supported"),
    ({"reasoning_effort": "low"}, 400, UNSUPPORTED, "reasoning_effort", "not supported"),
    ({"service_tier": "flex"}, 400, UNSUPPORTED, "service_tier", "not supported"),
    ({"store": True}, 400, UNSUPPORTED, "store", "false"),
    ({"priority": 1}, 400, UNSUPPORTED, "priority", "not supported"),
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
    ({"suffix": "x"}, 400, UNSUPPORTED, "suffix", "not supported"),
    ({"echo": True, "logprobs": 1}, 400, UNSUPPORTED, "echo", "logprobs"),
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
