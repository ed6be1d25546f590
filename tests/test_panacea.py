"""Adapters that a preference scales, through `LLM`: merged weights, mixed batches, prefixes, and the demo guide."""

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from folders import RANK, adapter_folder, merged_folder
from plain import Plain, base_prompt
from safetensors.torch import load_file, save_file
from steered import GREEDY, chat, ids, load, user
from tiny import tiny_folder

from trimtab import LLM, EngineSettings, SamplingParams
from trimtab.engine.errors import InvalidRequest, ModelLoadError
from trimtab.engine.guides.base import LanguageGuide
from trimtab.engine.results import Result
from trimtab.engine.rewards import Pair
from trimtab.requests import GenerationRequest

ROOT = Path(__file__).resolve().parents[1]
LONG = "a prompt of several pages, so that there is something to share between two requests"
SPREAD = {"general": RANK - 2, "blocks": {"brevity": 1, "warmth": 1}}
MOSTLY = {"brevity": 0.2, "warmth": 0.8}


def panacea(preference: dict[str, float], **more: Any) -> dict[str, Any]:
    return {"strategy": "panacea", "guide": "wishes", "preference": preference, **more}


def divided(folder: Path) -> Path:
    (folder / "preference_blocks.json").write_text(json.dumps(SPREAD))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("panacea")
    base = tiny_folder(place / "base")
    divided(adapter_folder(place / "wishes", base, seed=3))
    return place


@pytest.fixture(scope="module")
def merged(place: Path) -> Path:
    """The base with the adapter in its weights, scaled for MOSTLY."""
    scaled = adapter_folder(place / "scaled", place / "base", seed=3)
    factors = load_file(scaled / "adapter_model.safetensors")
    spread = torch.tensor([*[1.0] * (RANK - 2), MOSTLY["brevity"], MOSTLY["warmth"]])
    for name, value in factors.items():
        if "lora_A" in name:
            factors[name] = value * spread[:, None]
    save_file(factors, scaled / "adapter_model.safetensors")
    return merged_folder(place / "merged", place / "base", scaled)


@pytest.fixture(scope="module")
def llm(place: Path) -> Iterator[LLM]:
    guides = {"wishes": {"role": "lm", "model": str(place / "wishes")}}
    with load(place / "base", guides) as llm:
        yield llm


def together(llm: LLM, decodings: list[dict[str, Any] | None]) -> list[Result]:
    """Answers of one batch, each request under its own decoding."""
    requests = [
        GenerationRequest(messages=tuple(user("Hi")), sampling=GREEDY, decoding=decoding) for decoding in decodings
    ]
    return llm._run(requests, progress=False)


def test_it_answers_as_the_model_with_scaled_weights(llm: LLM, merged: Path) -> None:
    found = chat(llm, panacea(MOSTLY))
    with load(merged, {}) as other:
        assert ids(found) == ids(chat(other, None))
    assert ids(found) != ids(chat(llm, None))


def test_a_mixed_batch_equals_each_request_alone(llm: LLM) -> None:
    decodings = [None, panacea(MOSTLY), panacea({"brevity": 1.0}), panacea({"warmth": 1.0}, strength=2.0), None]
    alone = [chat(llm, decoding) for decoding in decodings]
    assert [ids(each) for each in together(llm, decodings)] == [ids(each) for each in alone]
    assert len({tuple(ids(each)) for each in alone}) == 4


def test_no_strength_is_the_base_and_prefixes_are_shared_among_equals_only(llm: LLM) -> None:
    def asked(decoding: dict[str, Any] | None) -> Result:
        return chat(llm, decoding, messages=user(LONG))

    plain = asked(None)
    none = asked(panacea(MOSTLY, strength=0.0))
    assert none.choices == plain.choices
    assert none.usage.cached_tokens >= 80
    assert asked(panacea(MOSTLY)).usage.cached_tokens == 0
    assert asked(panacea({"warmth": 1.0})).usage.cached_tokens == 0
    assert asked(panacea({"warmth": 4.0, "brevity": 1.0})).usage.cached_tokens >= 80  # the same, normalised


def test_kl_is_that_of_the_scaled_model_from_the_base(llm: LLM, place: Path, merged: Path) -> None:
    found = chat(llm, panacea(MOSTLY))
    assert found.choices[0].steering is not None
    assert found.choices[0].steering.kl is None  # the base itself did not run
    measured = chat(llm, panacea(MOSTLY, measure_kl=True))
    assert ids(measured) == ids(found)
    steering, tokens = measured.choices[0].steering, ids(found)
    assert steering is not None
    base, adapted, kl = Plain(place / "base"), Plain(merged), 0.0
    for at in range(len(tokens)):
        prefix = [*base_prompt("Hi"), *tokens[:at]]
        lp = adapted.logprobs(prefix)
        kl += float((lp.exp() * (lp - base.logprobs(prefix))).sum())
    assert steering.kl == pytest.approx(kl, rel=1e-3)


def test_unknown_attributes_and_guides_without_any_are_refused(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match=r"no attribute 'candour'; it knows brevity, warmth"):
        chat(llm, panacea({"candour": 1.0}))
    guide = llm.guides["wishes"]
    assert isinstance(guide, LanguageGuide)
    assert guide.attributes == ("brevity", "warmth")


def test_a_scorer_has_no_blocks(place: Path, tmp_path: Path) -> None:
    judge = divided(adapter_folder(tmp_path / "judge", place / "base", seed=5, score=True))
    with pytest.raises(ModelLoadError, match="has blocks that a preference scales: use it with role lm"):
        load(place / "base", {"judge": {"role": "reward", "model": str(judge)}})


@pytest.mark.demo
@pytest.mark.timeout(600)
def test_positivity_rises_with_its_weight_on_the_demo() -> None:
    lines = (ROOT / "benchmarks" / "prompts.jsonl").read_text().splitlines()
    asked = [tuple(user(json.loads(line)["prompt"])) for line in lines[::4]]
    sampling = SamplingParams(max_tokens=32, temperature=1.0, seed=3)

    def told(llm: LLM, weight: float) -> tuple[float, float]:
        """Mean reward and mean length of the answers."""
        preference = {"positivity": weight, "brevity": 1.0 - weight}
        decoding = {"strategy": "panacea", "guide": "preferences", "preference": preference}
        results = llm.chat(asked, sampling, decoding=decoding, progress=False)
        texts = [result.choices[0].text for result in results]
        rewards = llm.score("positivity", [Pair(each, text) for each, text in zip(asked, texts, strict=True)])
        return mean(rewards), mean(map(len, texts))

    with LLM(settings=EngineSettings(model="demo")) as llm:
        rewards, lengths = zip(*(told(llm, weight) for weight in (0.0, 0.5, 1.0)), strict=True)
    assert rewards[0] < rewards[1] < rewards[2], rewards
    assert lengths[0] < lengths[1] < lengths[2], lengths
