"""`urial` over HTTP: the prefix is cached for the second request, and metrics tell that its pages are pinned."""

from typing import Any

import httpx2
from wire import ask, metrics

PINNED = "trimtab:prefix_pages_pinned"
RULES = "Answer in one line, and be kind to everybody who asks. " * 3


def urial(rules: str) -> dict[str, Any]:
    return {"strategy": "urial", "examples": 0, "system": rules}


def post(http: httpx2.Client, text: str, rules: str) -> dict[str, Any]:
    answer = http.post("/v1/chat/completions", json=ask(text, max_tokens=4, decoding=urial(rules)))
    answer.raise_for_status()
    told: dict[str, Any] = answer.json()
    return told


def test_the_second_request_finds_the_prefix_and_metrics_tell_of_its_pages(http: httpx2.Client, shared: Any) -> None:
    before = metrics(shared.url)[PINNED]
    told = [post(http, text, RULES) for text in ("Why?", "How?")]
    pages = len(f"# Instructions:\n{RULES}\n\n#") // 16  # one token per byte
    assert pages == 11
    assert metrics(shared.url)[PINNED] - before == pages
    first, second = (each["usage"]["prompt_tokens_details"]["cached_tokens"] for each in told)
    assert first == 0
    assert second >= 16 * pages
    assert [each["decoding"]["report"]["prompt"] for each in told] == [[{"method": "urial", "examples": 0}]] * 2


def test_a_text_prompt_is_read_in_the_same_form(http: httpx2.Client) -> None:
    chat = post(http, "Where?", "Be brief.")
    body = {**ask(max_tokens=4), "prompt": "Where?", "decoding": urial("Be brief.")}
    del body["messages"]
    text = http.post("/v1/completions", json=body).json()
    assert text["choices"][0]["text"] == chat["choices"][0]["message"]["content"]
    assert text["usage"]["prompt_tokens"] == chat["usage"]["prompt_tokens"]
