"""What lm-eval's `local-completions` sends, and what it reads from the answers, against transformers.

Source: EleutherAI lm-evaluation-harness 0.4.13, `lm_eval/models/openai_completions.py` and `api_models.py`: the payload
of a log-likelihood request, and `parse_logprobs`.
"""

from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

CONTEXT_LENGTH = 512
Pair = tuple[list[int], list[int]]
"""token ids: a context, and the continuation that is scored"""


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_folder)


@pytest.fixture(scope="module")
def model(model_folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def pairs(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[Pair]:
    """Text of one byte and of several per character, special tokens on both sides, likely and unlikely endings."""
    texts = [
        ("Question: is it open?\nAnswer:", " yes"),
        ("Question: is it open?\nAnswer:", " no"),
        ("Liberté, égalité,", " fraternité"),
        ("有朋自远方来, ", "不亦乐乎?"),
        ("a\U0001f642", "\U0001f642b"),
        ("<|system|>Be kind.<|end|><|user|>Hi<|end|><|assistant|>", "Hello<|end|>"),
        ("<|end|>", "All of a text, as rolling log-likelihoods ask for it."),
        ("y" * (CONTEXT_LENGTH - 2), "z"),
    ]
    pairs = [(tokenizer.encode(context), tokenizer.encode(continuation)) for context, continuation in texts]
    for context, _ in pairs[:3]:
        pairs.append((context, greedy(model, context, 6)))
    return pairs


def greedy(model: PreTrainedModel, context: Sequence[int], length: int) -> list[int]:
    ids = list(context)
    for _ in range(length):
        ids.append(int(logprobs(model, ids)[-1].argmax()))
    return ids[len(context) :]


def logprobs(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    """(N, V): of what follows each token."""
    with torch.inference_mode():
        return model(torch.tensor([list(ids)])).logits[0].double().log_softmax(dim=1)


def expected(model: PreTrainedModel, pair: Pair) -> tuple[float, bool]:
    context, continuation = pair
    rows = logprobs(model, context + continuation)[len(context) - 1 : -1]
    chosen = torch.tensor(continuation)
    return float(rows.gather(1, chosen[:, None]).sum()), bool((rows.argmax(dim=1) == chosen).all())


def payload(prompts: list[list[int]]) -> dict[str, Any]:
    return {
        "model": "tiny",
        "prompt": prompts,
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }


def parsed(answer: dict[str, Any], context_lengths: Sequence[int]) -> list[tuple[float, bool]]:
    """As the harness does it: the last entry belongs to the one new token, whatever token that is."""
    told = []
    for choice, length in zip(sorted(answer["choices"], key=itemgetter("index")), context_lengths, strict=True):
        tokens = choice["logprobs"]["token_logprobs"][length:-1]
        tops = choice["logprobs"]["top_logprobs"][length:-1]
        told.append((sum(tokens), all(own == max(top.values()) for own, top in zip(tokens, tops, strict=True))))
    return told


def ask(http: httpx2.Client, batch: Sequence[Pair]) -> list[tuple[float, bool]]:
    answer = http.post("/v1/completions", json=payload([context + continuation for context, continuation in batch]))
    assert answer.status_code == 200, answer.text
    return parsed(answer.json(), [len(context) for context, _ in batch])


@pytest.mark.parametrize("size", [1, 4])
def test_loglikelihoods(http: httpx2.Client, model: PreTrainedModel, pairs: list[Pair], size: int) -> None:
    told = [each for start in range(0, len(pairs), size) for each in ask(http, pairs[start : start + size])]
    want = [expected(model, pair) for pair in pairs]
    assert [is_greedy for _, is_greedy in want].count(True) >= 3
    assert [is_greedy for _, is_greedy in told] == [is_greedy for _, is_greedy in want]
    assert [total for total, _ in told] == pytest.approx([total for total, _ in want], abs=1e-4, rel=0)


def test_one_entry_per_token_where_the_new_token_ends_the_answer(
    http: httpx2.Client, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    ids: list[int] = []
    end = tokenizer.eos_token_id
    for seed in range(100):
        drawn = torch.randint(0, 256, (400,), generator=torch.Generator().manual_seed(seed)).tolist()
        ends = (logprobs(model, drawn).argmax(dim=1)[2:] == end).nonzero().flatten().tolist()
        if ends:
            ids = drawn[: ends[0] + 3]
            break
    assert int(logprobs(model, ids)[-1].argmax()) == end
    pair = (ids[:1], ids[1:])
    answer = http.post("/v1/completions", json=payload([ids])).json()
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop"
    assert len(choice["logprobs"]["token_logprobs"]) == len(ids) + 1
    (total, _), (want, _) = parsed(answer, [1])[0], expected(model, pair)
    assert total == pytest.approx(want, abs=1e-4, rel=0)


def test_the_prompt_is_echoed_token_by_token(
    http: httpx2.Client, tokenizer: PreTrainedTokenizerBase, pairs: list[Pair]
) -> None:
    prompts = [context + continuation for context, continuation in pairs[:4]]
    answer = http.post("/v1/completions", json=payload(prompts)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    for choice, ids in zip(answer["choices"], prompts, strict=True):
        assert choice["text"].startswith(tokenizer.decode(ids, skip_special_tokens=True))
        assert {len(choice["logprobs"][name]) for name in ("tokens", "token_logprobs", "top_logprobs")} == {
            len(ids) + 1
        }
        assert choice["logprobs"]["token_logprobs"][0] is None
    assert answer["usage"]["prompt_tokens"] == sum(map(len, prompts))


def test_generations(http: httpx2.Client, tokenizer: PreTrainedTokenizerBase, pairs: list[Pair]) -> None:
    """`generate_until`: greedy text for each prompt of a batch, up to the first of the stop strings."""
    prompts = [context for context, _ in pairs[:3]]
    body = {"model": "tiny", "prompt": prompts, "max_tokens": 6, "temperature": 0, "seed": 1234}
    free = http.post("/v1/completions", json={**body, "stop": ["<|end|>"]}).json()["choices"]
    stop = free[0]["text"][1:3]
    cut = http.post("/v1/completions", json={**body, "stop": [stop, "<|end|>"]}).json()["choices"]
    assert cut[0]["text"] == free[0]["text"].partition(stop)[0]
    for choice, (_, continuation) in zip(free, pairs[8:], strict=True):
        assert choice["text"] == tokenizer.decode(continuation, skip_special_tokens=True)
