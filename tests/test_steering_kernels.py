"""Requests whose tokens are drawn by the Triton kernels, or by compiled loops, beside the same ones drawn in torch."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rows import traced
from steered import chat, furnish, guides, ids, load, user
from torch import Tensor

from trimtab import LLM, SamplingParams
from trimtab.engine import sampler
from trimtab.engine.errors import ModelLoadError
from trimtab.engine.results import Result
from trimtab.engine.sampler import Sampler
from trimtab.kernels import compiled as compiled_loops
from trimtab.kernels.backend import Backend
from trimtab.kernels.philox import Keys
from trimtab.kernels.survivors import RowParams
from trimtab.requests import GenerationRequest

REQUESTS: dict[str, tuple[Mapping[str, Any] | None, dict[str, Any]]] = {
    "plain": (None, {}),
    "greedy": (None, {"temperature": 0.0}),
    "filtered": (None, {"top_k": 7, "min_p": 0.05}),
    "nucleus, logprobs": (None, {"top_p": 0.7, "logprobs": 3}),
    "penalties": (None, {"repetition_penalty": 1.3, "presence_penalty": 0.5, "logit_bias": {5: 4.0}}),
    "genarm": ({"strategy": "genarm", "arm": "arm"}, {}),
    "dexperts, plausibility": ({"strategy": "dexperts", "expert": "arm", "antiexpert": "anti"}, {"top_p": 0.9}),
    "contrastive": ({"strategy": "contrastive", "amateur": "anti"}, {}),
    "args": ({"strategy": "args", "reward": "taste", "k": 5}, {}),
    "cd over the vocabulary": ({"strategy": "cd", "value": "tokens"}, {}),
    "control vector": ({"strategy": "control_vector", "vector": "calm"}, {"temperature": 0.7}),
    "power mean": ({"strategy": "mod", "weights": {"arm": 0.5, "base": 0.5}, "alpha": 0.5}, {}),
}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    place = furnish(tmp_path_factory.mktemp("kernels"))
    with load(place / "base", guides(place)) as llm:
        yield llm


def answer(llm: LLM, backend: Backend, name: str) -> Result:
    llm._worker.engine._sampler = Sampler(llm.guides, backend)
    decoding, sampling = REQUESTS[name]
    return chat(llm, decoding, SamplingParams.model_validate({"max_tokens": 4, "seed": 3} | sampling))


@pytest.mark.parametrize("name", REQUESTS)
def test_kernels_draw_what_torch_draws(llm: LLM, name: str) -> None:
    expected, found = (answer(llm, backend, name) for backend in ("torch", "triton"))
    assert ids(found) == ids(expected)
    for mine, theirs in zip(found.choices, expected.choices, strict=True):
        if theirs.steering is not None:
            assert mine.steering is not None
            assert mine.steering.kl == pytest.approx(theirs.steering.kl, abs=1e-4)
            assert mine.steering.logprob_steered == pytest.approx(theirs.steering.logprob_steered, abs=1e-4)
        for mine_token, their_token in zip(mine.logprobs or (), theirs.logprobs or (), strict=True):
            assert mine_token.logprob == pytest.approx(their_token.logprob, abs=1e-5)


def test_a_compiled_sampler_gives_the_same_answers(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_loops, "_compiled", traced)
    place = furnish(tmp_path)
    names = ("plain", "filtered", "genarm", "control vector")
    expected = [ids(answer(llm, "torch", name)) for name in names]
    with load(place / "base", guides(place), compile=True) as compiled:
        assert compiled._worker.engine._sampler._backend == "compiled"
        found = [
            ids(chat(compiled, decoding, SamplingParams.model_validate({"max_tokens": 4, "seed": 3} | sampling)))
            for decoding, sampling in map(REQUESTS.__getitem__, names)
        ]
    assert found == expected


def test_the_kernels_of_common_draws_are_compiled_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = set()

    def record(logits: Tensor, params: RowParams, keys: Keys, measured: Tensor | None) -> None:
        flags.add((logits.dtype, logits.shape[1], params.any_ranked, measured is not None))

    monkeypatch.setattr(sampler, "steer_sample", record)
    sampler.warm_sampler(300, torch.bfloat16, torch.device("cpu"))
    assert flags == {(torch.bfloat16, 300, ranked, full) for ranked in (False, True) for full in (False, True)}


def test_a_machine_that_cannot_compile_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(vocab_size: int) -> None:
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr(sampler, "compile_loops", fail)
    with pytest.raises(ModelLoadError, match=r"\(no C\+\+ compiler\): install a C\+\+ compiler, or set engine.compile"):
        sampler.compile_sampler(10)


def test_lists_and_other_rows_of_one_batch_keep_their_tokens(llm: LLM) -> None:
    llm._worker.engine._sampler = Sampler(llm.guides)
    names = ("args", "plain", "args", "genarm", "args", "plain")
    requests = [
        GenerationRequest(
            messages=tuple(user()),
            sampling=SamplingParams(temperature=1.5, max_tokens=8, seed=seed),
            decoding=REQUESTS[name][0],
        )
        for seed, name in enumerate(names)
    ]
    alone = [ids(llm._run([request], progress=False)[0]) for request in requests]
    assert len(set(map(tuple, alone))) > 3
    assert [ids(each) for each in llm._run(requests, progress=False)] == alone
