"""The real demo model: parity with transformers' `generate`, and what sharing batches and prefixes may not change."""

import os
from collections.abc import Iterator

import pytest
import torch
from collector import Collector
from prompts import PROMPTS
from transformers import AutoModelForCausalLM, GenerationConfig

from trimtab import LLM, EngineSettings, SamplingParams
from trimtab.engine.sources import resolve
from trimtab.requests import GenerationRequest

pytestmark = [pytest.mark.demo, pytest.mark.timeout(600)]

TOKENS = 24
GREEDY = SamplingParams(temperature=0, max_tokens=TOKENS)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("demo", settings=EngineSettings(dtype="float32", pool_tokens=8192, threads=os.cpu_count())) as llm:
        yield llm


@pytest.fixture(scope="module")
def prompts(llm: LLM) -> list[list[int]]:
    """Half as chats, half as plain texts."""
    chats = [llm.vocabulary.chat([{"role": "user", "content": text}]) for text in PROMPTS[::2]]
    return [*chats, *(llm.vocabulary.encode(text) for text in PROMPTS[1::2])]


@pytest.fixture(scope="module")
def expected(prompts: list[list[int]]) -> list[tuple[int, ...]]:
    """Greedy answers of the plain model."""
    model = AutoModelForCausalLM.from_pretrained(resolve("demo"), dtype=torch.float32).eval()
    config = GenerationConfig(max_new_tokens=TOKENS, do_sample=False, pad_token_id=2)
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(ids, generation_config=config, attention_mask=torch.ones_like(ids))
        answers.append(tuple(out[0, len(prompt) :].tolist()))
    return answers


def test_greedy_tokens_equal_generate_alone(
    llm: LLM, prompts: list[list[int]], expected: list[tuple[int, ...]]
) -> None:
    answers = [llm.generate([prompt], GREEDY, progress=False)[0].choices[0].token_ids for prompt in prompts]
    assert answers == expected


def test_greedy_tokens_equal_generate_in_mixed_batches_of_eight(
    llm: LLM, prompts: list[list[int]], expected: list[tuple[int, ...]]
) -> None:
    """Greedy rows beside sampled, penalised and best-of-n rows; the prefixes are cached from elsewhere or not."""
    noise = [
        GenerationRequest(prompt="Tell me a story.", sampling=SamplingParams(seed=1, max_tokens=TOKENS)),
        GenerationRequest(
            prompt="Tell me a joke.",
            sampling=SamplingParams(seed=2, max_tokens=TOKENS, top_p=0.9, frequency_penalty=0.5, logprobs=3),
        ),
        GenerationRequest(
            prompt="Say hello.",
            sampling=SamplingParams(seed=3, max_tokens=TOKENS, top_k=20),
            decoding={"strategy": "best_of_n", "n": 2, "reward": "length"},
        ),
    ]
    answers = []
    for start in range(0, len(prompts), 4):
        batch = [GenerationRequest(prompt=prompt, sampling=GREEDY) for prompt in prompts[start : start + 4]]
        collectors = [Collector() for _ in (*batch, *noise)]
        for request, collector in zip((*batch, *noise), collectors, strict=True):
            llm.submit(llm.prepare(request), object(), collector)
        for collector in collectors:
            assert collector.done.wait(300)
        answers += [collector.events[-1].choices[0].token_ids for collector in collectors[:4]]
    assert answers == expected


def test_seeded_answers_are_the_same_alone_and_in_a_batch(llm: LLM, prompts: list[list[int]]) -> None:
    sampling = SamplingParams(seed=11, max_tokens=TOKENS, temperature=0.8, top_p=0.95)
    together = llm.generate(prompts[:8], sampling, progress=False)
    for prompt, result in zip(prompts[:4], together, strict=False):
        assert llm.generate([prompt], sampling, progress=False)[0].choices == result.choices


def test_a_shared_prefix_of_a_thousand_tokens_is_prefilled_once(llm: LLM) -> None:
    prefix = [1000 + i for i in range(1000)]
    before = llm.stats.prompt_tokens
    for tail in range(20):
        result = llm.generate([[*prefix, 2000 + tail]], SamplingParams(temperature=0, max_tokens=2), progress=False)[0]
    assert llm.stats.prompt_tokens - before <= 1000 + 19 * llm.settings.page_size
    assert result.usage.cached_tokens == 1000 // llm.settings.page_size * llm.settings.page_size
