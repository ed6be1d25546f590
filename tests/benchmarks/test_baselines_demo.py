"""The hand-written strategies against the engine on the demo model and its guides, whose adapters they merge."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from baselines.best_of_n import BestOfN
from baselines.models import Conversation, Language
from handwritten import STRATEGIES, make
from prompts import PROMPTS

from trimtab import LLM, EngineSettings, SamplingParams
from trimtab.engine.results import Result
from trimtab.engine.sources import resolve

pytestmark = [
    pytest.mark.demo,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT asks for it
]

TOKENS = 16
TALK = [[{"role": "user", "content": text}] for text in PROMPTS[:3]]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("demo", settings=EngineSettings(dtype="float32", pool_tokens=8192, threads=os.cpu_count())) as llm:
        yield llm


@pytest.fixture(scope="module")
def base() -> Language:
    return Language.load(resolve("demo"), torch.float32)


def results(llm: LLM, name: str, temperature: float) -> list[Result]:
    sampling = SamplingParams(temperature=temperature, max_tokens=TOKENS, seed=1, ignore_eos=True)
    return llm.chat(TALK, sampling, decoding={"strategy": name, **STRATEGIES[name]}, progress=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", STRATEGIES)
def test_greedy_tokens_are_the_same(llm: LLM, base: Language, name: str) -> None:
    strategy: Any = make(name, STRATEGIES[name], base, torch.float32, sample=False)
    expected = [list(result.choices[0].token_ids) for result in results(llm, name, 0.0)]
    assert strategy.answer(TALK, TOKENS, ignore_eos=True) == expected


def test_best_of_n_scores_and_chooses_as_the_engine_does(llm: LLM, base: Language) -> None:
    strategy = make("best_of_n", STRATEGIES["best_of_n"], base, torch.float32)
    assert isinstance(strategy, BestOfN)
    found = results(llm, "best_of_n", 1.0)
    drawn: list[tuple[Conversation, str, float | None]] = [
        (conversation, each.text, each.reward)
        for conversation, result in zip(TALK, found, strict=True)
        for each in result.candidates
    ]
    conversations, texts, rewards = map(list, zip(*drawn, strict=True))
    assert strategy.reward.score(conversations, texts).tolist() == pytest.approx(rewards, abs=1e-3)
    best = [[each.choice for each in result.candidates].index(0) for result in found]
    assert strategy.best(TALK, texts) == best
