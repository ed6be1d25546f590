"""A tiny base with a guide for every role, loaded through `LLM`, and questions to it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from folders import adapter_folder, classifier_folder, head_file, merged_folder, vector_file
from tiny import VOCAB, tiny_folder

from trimtab import LLM, EngineSettings, SamplingParams
from trimtab.engine.results import Result
from trimtab.engine.vocabulary import Message

TOKENS = 12
GREEDY = SamplingParams(temperature=0.0, max_tokens=TOKENS, seed=1)
DRAWN = SamplingParams(temperature=1.0, max_tokens=TOKENS, seed=1)


def furnish(place: Path) -> Path:
    """Put the base and everything that steers it into a folder."""
    base = tiny_folder(place / "base")
    tiny_folder(place / "arm", seed=1)
    tiny_folder(place / "anti", seed=2)
    adapter_folder(place / "tune", base, seed=3)
    merged_folder(place / "merged", base, place / "tune")
    classifier_folder(place / "taste", seed=4)
    adapter_folder(place / "judge", base, seed=5, score=True)
    merged_folder(place / "merged_judge", base, place / "judge")
    classifier_folder(place / "worth", seed=6, labels=2)
    head_file(place / "state.safetensors", width=1, seed=7)
    head_file(place / "tokens.safetensors", width=VOCAB, seed=8, scale=3.0)
    vector_file(place / "calm.safetensors", seed=9)
    return place


def guides(place: Path) -> dict[str, Any]:
    """One guide for every role, and a program beside."""
    return {
        "arm": {"role": "lm", "model": str(place / "arm")},
        "anti": {"role": "lm", "model": str(place / "anti")},
        "tune": {"role": "lm", "model": str(place / "tune")},
        "taste": {"role": "reward", "model": str(place / "taste")},
        "judge": {"role": "reward", "model": str(place / "judge")},
        "worth": {"role": "value", "model": str(place / "worth"), "label": "LABEL_1"},
        "state": {"role": "value", "model": str(place / "state.safetensors")},
        "tokens": {"role": "value", "model": str(place / "tokens.safetensors")},
        "calm": {"role": "vector", "model": str(place / "calm.safetensors")},
        "brief": {"role": "program", "kind": "length", "direction": "shorter", "unit": "characters"},
    }


def load(base: Path, guides: Mapping[str, Any], **changes: object) -> LLM:
    """An engine in float32 on the CPU."""
    settings = {"model": str(base), "device": "cpu", "pool_tokens": 4096, "page_size": 8, "guides": guides, **changes}
    return LLM(settings=EngineSettings.model_validate(settings))


def user(text: str = "Hi", system: str | None = None) -> list[Message]:
    before = [] if system is None else [Message(role="system", content=system)]
    return [*before, Message(role="user", content=text)]


def chat(
    llm: LLM,
    decoding: Mapping[str, Any] | None,
    sampling: SamplingParams = GREEDY,
    messages: Sequence[Message] | None = None,
    *,
    n: int = 1,
) -> Result:
    """The answer to one conversation."""
    return llm.chat([messages or user()], sampling, n=n, decoding=decoding, progress=False)[0]


def ids(result: Result, choice: int = 0) -> list[int]:
    return list(result.choices[choice].token_ids)
