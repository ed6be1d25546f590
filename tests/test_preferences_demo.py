"""Preferences on the real demo model: what its guide infers, and that wishes and weights are followed."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from preferences import OTHER, SETTINGS, TARGET, WISHES

from trimtab import LLM, EngineSettings, SamplingParams
from trimtab.engine.guides.config import default_guides
from trimtab.engine.results import Result
from trimtab.engine.vocabulary import Message
from trimtab.training.demo.wishes import WISHES as FITTED

pytestmark = [pytest.mark.demo, pytest.mark.timeout(600)]

PROMPTS = Path(__file__).resolve().parents[1] / "benchmarks" / "prompts.jsonl"
ASKED = [json.loads(line)["prompt"] for line in PROMPTS.read_text().splitlines()][:6]

ADAPTER = "preferences"


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    guides = {name: each for name, each in default_guides("demo").items() if name in (TARGET, OTHER, "pro", ADAPTER)}
    with LLM(settings=EngineSettings(model="demo", guides=guides)) as llm:
        yield llm


def ask(llm: LLM, texts: list[str], decoding: dict[str, object], tokens: int) -> list[Result]:
    sampling = SamplingParams(seed=1, temperature=1.0, max_tokens=tokens)
    return llm.chat([[Message(role="user", content=text)] for text in texts], sampling, decoding=decoding)


def test_wishes_of_the_benchmark_are_new() -> None:
    assert not {wish for grade in WISHES for wish in grade} & {wish for _, grade in FITTED for wish in grade}
    assert tuple(weight for weight, _ in FITTED) == SETTINGS


def test_the_guide_tells_five_degrees_of_a_wish_apart(llm: LLM) -> None:
    """In words that it was not fitted to, on prompts that it was not fitted to."""
    told = []
    for grade in WISHES:
        texts = [f"{text} {wish}" for text in ASKED for wish in grade]
        decoding = {"strategy": "best_of_n", "n": 1, "preference": {"infer": "pro"}}
        weights = [each.report["preference"][TARGET] for each in ask(llm, texts, decoding, 1)]
        told.append(sum(weights) / len(weights))
    assert told == sorted(told)
    assert told[-1] - told[0] > 0.25


def test_an_answer_follows_its_weights(llm: LLM) -> None:
    means = []
    for weight in (0.0, 1.0):
        decoding = {"strategy": "best_of_n", "n": 4, "preference": {"weights": {TARGET: weight, OTHER: 1.0 - weight}}}
        results = ask(llm, ASKED, decoding, 24)
        chosen = [next(each for each in result.candidates if each.choice == 0) for result in results]
        name = TARGET if weight else OTHER
        pools = [[each.rewards[name] for each in result.candidates] for result in results]
        assert [each.rewards[name] for each in chosen] == [max(pool) for pool in pools]
        means.append(sum(len(each.text.split()) for each in chosen))
    assert means[0] < means[1]


def test_the_shipped_adapter_runs_and_its_weights_count(llm: LLM) -> None:
    """How far they count is for the benchmark to say."""
    part = {"strategy": "panacea", "guide": ADAPTER}
    found = {tuple(each.choices[0].text for each in ask(llm, ASKED[:2], {}, 16))}
    for weight in (0.0, 1.0):
        weights = {TARGET: weight, OTHER: 1.0 - weight}
        results = ask(llm, ASKED[:2], {**part, "preference": {"weights": weights}}, 16)
        assert all(each.choices[0].text.strip() for each in results)
        found.add(tuple(each.choices[0].text for each in results))
    assert len(found) == 3
