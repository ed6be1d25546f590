"""Echoed prompts with log-probabilities, as evaluation harnesses ask for them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from openai import OpenAI
from transformers import AutoModelForCausalLM, AutoTokenizer

from trimtab.engine.results import TokenLogprob
from trimtab.engine.vocabulary import Vocabulary
from trimtab.server.echo import Echo

TEXT = "The café is open."
ASK = {"model": "tiny", "max_tokens": 0, "echo": True, "logprobs": 2, "temperature": 0, "seed": 1234}


def complete(http: httpx2.Client, **changes: object) -> Any:
    response = http.post("/v1/completions", json={**ASK, **changes})
    assert response.status_code == 200, response.text
    return response.json()


def streamed(http: httpx2.Client, **changes: object) -> list[dict[str, Any]]:
    """The choices of all chunks."""
    response = http.post("/v1/completions", json={**ASK, "stream": True, **changes})
    assert response.status_code == 200, response.text
    chunks = [json.loads(line[6:]) for line in response.text.split("\n\n") if line.startswith("data: {")]
    return [choice for chunk in chunks for choice in chunk["choices"]]


def plain(model_folder: Path, ids: Sequence[int]) -> list[list[float]]:
    """Log-probabilities (N - 1, V) of what follows each token but the last, by transformers."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.tensor([list(ids)])).logits[0, :-1].double().log_softmax(dim=1).tolist()


@pytest.mark.parametrize("as_ids", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 1])
def test_the_shape_that_harnesses_read(http: httpx2.Client, model_folder: Path, as_ids: bool, max_tokens: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    texts = [TEXT, "ab", TEXT + " So is the bar."]
    ids = [tokenizer.encode(text) for text in texts]
    answer = complete(http, prompt=ids if as_ids else texts, max_tokens=max_tokens)
    for choice, own, text in zip(answer["choices"], ids, texts, strict=True):
        told, want = choice["logprobs"], plain(model_folder, own)
        written = len(told["tokens"]) - len(own)
        assert written <= max_tokens
        assert choice["text"].startswith(text)
        assert told["token_logprobs"][0] is told["top_logprobs"][0] is None
        got = told["token_logprobs"][1 : len(own)]
        assert got == pytest.approx([row[id_] for row, id_ in zip(want, own[1:], strict=True)], abs=1e-4)
        best = [max(top.values()) for top in told["top_logprobs"][1 : len(own)]]
        assert best == pytest.approx([max(row) for row in want], abs=1e-4)
        assert all(len(top) <= 2 for top in told["top_logprobs"][1:])
        assert len(told["text_offset"]) == len(told["tokens"]) == len(told["top_logprobs"])
    assert answer["usage"]["prompt_tokens"] == sum(map(len, ids))


def test_whether_an_answer_is_greedy_can_be_read(http: httpx2.Client) -> None:
    """lm-eval compares a token's number with the largest of its alternatives."""
    written = complete(http, prompt="ab", max_tokens=12, ignore_eos=True, return_token_ids=True)["choices"][0]
    ids = [*written["prompt_token_ids"], *written["token_ids"]]
    told = complete(http, prompt=[ids, [*ids[:-1], 7]], logprobs=1)["choices"]
    scored = [
        [own == max(top.values()) for own, top in zip(each["token_logprobs"], each["top_logprobs"], strict=True) if top]
        for each in (choice["logprobs"] for choice in told)
    ]
    assert all(scored[0][1:])
    assert not scored[1][-1]
    again = written["logprobs"]["token_logprobs"][2:]
    assert told[0]["logprobs"]["token_logprobs"][2:] == pytest.approx(again, abs=1e-4)


def test_offsets_count_characters_of_the_text(http: httpx2.Client) -> None:
    choice = complete(http, prompt="a€" + TEXT, max_tokens=3, ignore_eos=True)["choices"][0]
    told = choice["logprobs"]
    assert told["text_offset"][:6] == [0, 1, 1, 1, 2, 3]  # one token per byte, and three bytes of one character
    for token, offset in zip(told["tokens"], told["text_offset"], strict=True):
        if token.isascii():
            assert choice["text"][offset : offset + len(token)] == token
    assert told["text_offset"][-3] == len("a€" + TEXT)


def test_special_tokens_count_where_they_are_text(http: httpx2.Client) -> None:
    spelled = complete(http, prompt="a<|end|>b")["choices"][0]
    assert spelled["text"] == "a<|end|>b"
    assert spelled["logprobs"]["text_offset"] == [0, 1, 8]
    ids = http.post("/tokenize", json={"prompt": "a<|end|>b"}).json()["tokens"]
    hidden = complete(http, prompt=ids)["choices"][0]
    assert (hidden["text"], hidden["logprobs"]["text_offset"]) == ("ab", [0, 1, 1])
    shown = complete(http, prompt=ids, skip_special_tokens=False)["choices"][0]
    assert (shown["text"], shown["logprobs"]["text_offset"]) == ("a<|end|>b", [0, 1, 8])
    for each in (hidden, shown):
        assert each["logprobs"]["token_logprobs"] == spelled["logprobs"]["token_logprobs"]


def test_a_token_that_the_tokenizer_puts_first_is_no_text(model_folder: Path) -> None:
    vocabulary = Vocabulary(AutoTokenizer.from_pretrained(model_folder))
    first = vocabulary.tokens["<|system|>"]
    ids = [first, *vocabulary.encode("ab")]
    told = [None, TokenLogprob(ids[1], -1.0), TokenLogprob(ids[2], -2.0)]
    echo = Echo.of("ab", ids, vocabulary, skip_special=True)
    assert echo.logprobs(told, vocabulary) == {
        "tokens": ["<|system|>", "a", "b"],
        "token_logprobs": [None, -1.0, -2.0],
        "top_logprobs": [None, {}, {}],
        "text_offset": [0, 0, 1],
    }
    own = Echo.of("<|system|>ab", ids, vocabulary, skip_special=True)
    assert own.logprobs(told, vocabulary)["text_offset"] == [0, 10, 11]


@pytest.mark.parametrize("max_tokens", [0, 4])
def test_a_stream_begins_each_choice_with_the_echo(http: httpx2.Client, max_tokens: int) -> None:
    changes = {"prompt": ["a€", TEXT], "n": 2, "max_tokens": max_tokens, "ignore_eos": True, "temperature": 1}
    whole = complete(http, **changes)
    choices = streamed(http, **changes)
    for expected in whole["choices"]:
        mine = [choice for choice in choices if choice["index"] == expected["index"]]
        assert mine[0]["text"] == ("a€", TEXT)[expected["index"] // 2]
        assert "".join(choice["text"] for choice in mine) == expected["text"]
        assert [choice["finish_reason"] for choice in mine if choice["finish_reason"]] == ["length"]
        for name, values in expected["logprobs"].items():
            got = [value for choice in mine if choice["logprobs"] for value in choice["logprobs"][name]]
            assert got == pytest.approx(values) if name == "token_logprobs" else got == values


def test_a_search_is_told_of_the_prompt_too(http: httpx2.Client) -> None:
    decoding = {"strategy": "best_of_n", "n": 4, "reward": "brevity"}
    (simple,) = complete(http, prompt=TEXT)["choices"]
    (choice,) = complete(http, prompt=TEXT, max_tokens=4, decoding=decoding, temperature=1)["choices"]
    length = len(simple["logprobs"]["tokens"])
    assert choice["logprobs"]["token_logprobs"][:length] == simple["logprobs"]["token_logprobs"]
    assert len(choice["logprobs"]["tokens"]) > length
    first = streamed(http, prompt=TEXT, max_tokens=4, decoding=decoding, temperature=1)[0]
    assert first["text"] == TEXT
    assert first["logprobs"]["token_logprobs"] == simple["logprobs"]["token_logprobs"]


def test_a_cached_prompt_is_read_again(http: httpx2.Client) -> None:
    prompt = "No page of this prompt may be taken over unread. " * 3
    complete(http, prompt=prompt, logprobs=None)
    first = complete(http, prompt=prompt)
    again = complete(http, prompt=prompt)
    assert first["choices"] == again["choices"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert complete(http, prompt=prompt, logprobs=None)["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_the_client_reads_it(openai: OpenAI) -> None:
    # The client's types want a number for the first token; OpenAI's own servers send null, as we do.
    with OpenAI(base_url=openai.base_url, api_key="none") as lenient:
        answer = lenient.completions.create(**ASK, prompt=TEXT)
        chunks = list(lenient.completions.create(**ASK, prompt=TEXT, stream=True))
    assert answer.choices[0].text == chunks[0].choices[0].text == TEXT
    assert answer.choices[0].logprobs.token_logprobs == chunks[0].choices[0].logprobs.token_logprobs
    assert answer.choices[0].logprobs.token_logprobs[0] is None
