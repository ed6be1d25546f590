"""Requests as a GPU runs them, in the interpreter: Triton everywhere, decode forwards replayed over static buffers."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from again import Again
from steered import furnish, guides, ids, load, user

from trimtab import LLM, SamplingParams
from trimtab.engine.guides import build
from trimtab.engine.results import Result
from trimtab.engine.runner import ModelRunner
from trimtab.engine.sampler import Sampler
from trimtab.requests import GenerationRequest

STRATEGIES: list[dict[str, Any] | None] = [
    None,
    {"strategy": "genarm", "arm": "arm"},
    {"strategy": "genarm", "arm": "tune"},
    {"strategy": "args", "reward": "taste", "k": 3},
    {"strategy": "control_vector", "vector": "calm"},
    {"strategy": "best_of_n", "n": 2, "reward": "judge"},
]
NAMES = ("arm", "tune", "taste", "judge", "calm")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnish(tmp_path_factory.mktemp("device"))


def answers(llm: LLM) -> list[Result]:
    """One of each strategy, decoded in one batch."""
    sampling = SamplingParams(temperature=1.0, max_tokens=5, seed=2)
    requests = [
        GenerationRequest(messages=tuple(user("Tell me")), sampling=sampling, decoding=each) for each in STRATEGIES
    ]
    return llm._run(requests, progress=False)


@pytest.fixture
def capture() -> Again:
    return Again()


@pytest.fixture
def device(place: Path, capture: Again, monkeypatch: pytest.MonkeyPatch) -> Iterator[LLM]:
    monkeypatch.setattr(build, "ModelRunner", partial(ModelRunner, backend="triton", capture=capture))
    with load(place / "base", {name: guides(place)[name] for name in NAMES}, packed=False, max_rows=4) as llm:
        llm._worker.engine._sampler = Sampler(llm.guides, "triton")
        yield llm


def test_answers_are_those_of_the_cpu(place: Path, device: LLM, capture: Again) -> None:
    with load(place / "base", {name: guides(place)[name] for name in NAMES}) as llm:
        expected = answers(llm)
    found = answers(device)
    assert [ids(each) for each in found] == [ids(each) for each in expected]
    for mine, theirs in zip(found, expected, strict=True):
        for choice, other in zip(mine.choices, theirs.choices, strict=True):
            if other.steering is not None and other.steering.kl is not None:
                assert choice.steering is not None
                assert choice.steering.kl == pytest.approx(other.steering.kl, abs=1e-3)
    assert capture.captured >= 4
    assert capture.replayed > 10
