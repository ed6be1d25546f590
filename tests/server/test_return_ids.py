"""Tokens of log-probabilities named by their ids, so that those whose texts look alike can be told apart."""

import json
from typing import Any

import httpx2
import pytest

ASK = {
    "model": "tiny", "prompt": [7, 8, 9], "max_tokens": 6, "logprobs": 3, "seed": 5, "ignore_eos": True,
    "return_token_ids": True, "return_tokens_as_token_ids": True,
}  # fmt: skip


def post(http: httpx2.Client, **changes: object) -> httpx2.Response:
    response = http.post("/v1/completions", json={**ASK, **changes})
    assert response.status_code == 200, response.text
    return response


def whole(http: httpx2.Client, **changes: object) -> dict[str, Any]:
    choice: dict[str, Any] = post(http, **changes).json()["choices"][0]
    return choice


def named(ids: list[int]) -> list[str]:
    return [f"token_id:{id_}" for id_ in ids]


@pytest.mark.parametrize("echo", [False, True])
def test_a_whole_answer_names_tokens_by_id(http: httpx2.Client, echo: bool) -> None:
    choice = whole(http, echo=echo)
    prompt = choice["prompt_token_ids"] if echo else []
    assert choice["logprobs"]["tokens"] == named([*prompt, *choice["token_ids"]])


def test_an_echoed_prompt_alone_names_tokens_by_id(http: httpx2.Client) -> None:
    choice = whole(http, echo=True, max_tokens=0)
    assert choice["logprobs"]["tokens"] == named(choice["prompt_token_ids"])
    assert choice["token_ids"] == []


@pytest.mark.parametrize("echo", [False, True])
def test_a_stream_names_tokens_by_id(http: httpx2.Client, echo: bool) -> None:
    lines = post(http, echo=echo, stream=True).text.split("\n\n")
    choices = [c for line in lines if line.startswith("data: {") for c in json.loads(line[6:])["choices"]]
    ids = [id_ for each in choices for id_ in each.get("token_ids") or ()]
    tokens = [token for each in choices if each["logprobs"] for token in each["logprobs"]["tokens"]]
    assert tokens == named([*([7, 8, 9] if echo else []), *ids])


def test_alternatives_keep_their_numbers_under_their_ids(http: httpx2.Client) -> None:
    """Texts of single bytes look alike, ids do not: no alternative is lost."""
    by_id, by_text = whole(http)["logprobs"], whole(http, return_tokens_as_token_ids=False)["logprobs"]
    assert by_id["token_logprobs"] == by_text["token_logprobs"]
    assert [len(top) for top in by_id["top_logprobs"]] == [3] * 6
    for told, alike in zip(by_id["top_logprobs"], by_text["top_logprobs"], strict=True):
        assert all(name.removeprefix("token_id:").isdigit() for name in told)
        assert set(alike.values()) <= set(told.values())
        assert max(alike.values()) == max(told.values())
