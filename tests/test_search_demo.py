"""Every search on the real demo model: with a reward that it may see, it beats plain sampling on the same prompts."""

import math
import os
from collections.abc import Iterator, Mapping
from statistics import mean, stdev
from typing import Any

import pytest

from trimtab import LLM, EngineSettings, SamplingParams
from trimtab.decoders.registry import strategies

pytestmark = [pytest.mark.demo, pytest.mark.timeout(900)]

TOKENS = 20
SAMPLED = SamplingParams(max_tokens=TOKENS, seed=11, temperature=1.0)
CONVERSATIONS = [
    [{"role": "user", "content": f"{task} {subject}."}]
    for task in ("Write a sentence about", "Say something kind of", "Explain in one line")
    for subject in ("the sea", "a dog", "bread", "winter", "music", "a train", "the moon", "salt", "rain", "a city")
]
LONG = {"reward": "long"}
STEPS = {"separator": "never", "step_tokens": 5}
SEARCHES: dict[str, dict[str, Any]] = {
    "beam_search": {"n": 4, "m": 2, "value": "long", **STEPS},
    "best_of_n": {"n": 4, **LONG},
    "cards": {"target": 110.0, "length": TOKENS, "beta": 3.0, "attempts": 4, "max_segment": 6, **LONG},
    "cbs": {"w": 2, "k": 2, "chunk": 5, "value": "long"},
    "cd_blockwise": {"k": 4, "block": 5, "value": "long"},
    "darwin": {"mutations": 1, "m": 5, "elite": 1, "mutation_tokens": 12, **LONG},
    "deal": {"beams": 2, "k": 4, "lookahead": 3, "lam": 0.5, **LONG},
    "dts": {"simulations": 8, "block": 5, "parallel": 4, "beta": 3.0, **LONG},
    "dts_star": {"simulations": 8, "block": 5, "parallel": 4, "beta": 3.0, **LONG},
    "dvts": {"n": 4, "m": 2, "value": "long", **STEPS},
    "gsi": {"draft": "twin", "value": "long", "n": 4, "beta": 0.3, **STEPS},
    "particle_filter": {"n": 4, "block": 5, "beta": 0.3, **LONG},
    "ppo_mcts": {"value": "long", "simulations": 8, "k": 4, "c": 40.0},
    "qalign": {"steps": 4, "beta": 3.0, **LONG},
    "refine": {"n": 2, **LONG},
    "rps": {"directions": 4, "preference": {"long": 1.0, "brief": 0.2}},
    "rsd": {"draft": "twin", "value": "long", "step_tokens": TOKENS},  # delta: what a plain answer is worth
    "self_consistency": {"n": 4, "extract": "text", "vote_temperature": 1.0, "least": 4, **LONG},
    "speculative_rejection": {"n": 6, "schedule": [5, 10], **LONG},
    "treebon": {"n": 4, "children": 2, "layers": 3, "value": "long", **LONG},
    "ts_llm": {"value": "long", "simulations": 4, "width": 3, "step_tokens": 5},
    "tqstar": {"k": 3, "rollout": 3, "w": 0.5, **LONG},
}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    guides: dict[str, Any] = {
        "long": {"role": "program", "kind": "length", "direction": "longer", "unit": "characters"},
        "brief": {"role": "program", "kind": "length", "direction": "shorter", "unit": "characters"},
        "twin": {"role": "lm", "model": "demo", "dtype": "float32", "pool_tokens": 16_384},
    }
    settings = EngineSettings(dtype="float32", threads=os.cpu_count(), guides=guides)
    with LLM("demo", settings=settings) as llm:
        yield llm


def lengths(llm: LLM, decoding: Mapping[str, Any] | None, n: int = 1) -> list[float]:
    """The reward of each prompt's answers, characters, their mean."""
    results = llm.chat(CONVERSATIONS, SAMPLED, n=n, decoding=decoding, progress=False)  # type: ignore[arg-type]
    return [mean(len(choice.text) for choice in result.choices) for result in results]


@pytest.fixture(scope="module")
def plain(llm: LLM) -> list[float]:
    return lengths(llm, None, n=6)


def test_no_search_is_left_out() -> None:
    assert {name for name, each in strategies().items() if each.kind == "search"} == {*SEARCHES, "sample"}


@pytest.mark.parametrize("name", SEARCHES)
def test_the_search_beats_plain_sampling(name: str, llm: LLM, plain: list[float]) -> None:
    """Mean gain over 30 prompts; the 95 % interval of the paired differences excludes 0."""
    decoding, n = {"strategy": name, **SEARCHES[name]}, 1
    if name == "rsd":  # it filters one draft of each answer, so that one answer says little
        decoding, n = {**decoding, "delta": mean(plain)}, 6
    gains = [got - base for got, base in zip(lengths(llm, decoding, n), plain, strict=True)]
    error = stdev(gains) / math.sqrt(len(gains))
    assert mean(gains) > 2.05 * error, f"mean gain {mean(gains):.1f} characters, standard error {error:.1f}"  # t, 29
