"""Log-probabilities of a prompt's tokens: those of a plain forward, whatever else the engine is doing."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_folder
from toy import Toy, random_table
from transformers import AutoModelForCausalLM

from trimtab.engine.errors import InvalidRequest
from trimtab.engine.results import Failure, Result, TokenLogprob
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.settings import EngineSettings
from trimtab.llm import LLM
from trimtab.requests import GenerationRequest

SAMPLING = SamplingParams(max_tokens=3, seed=1)
TABLE = random_table(256)


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, length).tolist()


def expected(rows: torch.Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    """By the definition, from logits (N, V) behind each token."""
    logprobs = rows.double().log_softmax(dim=1)
    best = logprobs.topk(top, dim=1)
    return [
        TokenLogprob(token, row[token].item(), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
        for token, row, ids, values in zip(tokens[1:], logprobs, best.indices, best.values, strict=False)
    ]


def same(got: Sequence[TokenLogprob | None] | None, want: Sequence[TokenLogprob], tolerance: float = 1e-4) -> None:
    assert got is not None
    assert got[0] is None
    assert len(got) == len(want) + 1
    for mine, theirs in zip(got[1:], want, strict=True):
        assert mine is not None
        assert (mine.id, len(mine.top)) == (theirs.id, len(theirs.top))
        assert mine.logprob == pytest.approx(theirs.logprob, abs=tolerance)
        assert [id_ for id_, _ in mine.top] == [id_ for id_, _ in theirs.top]
        assert [value for _, value in mine.top] == pytest.approx([v for _, v in theirs.top], abs=tolerance)


def by_table(tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    rows = np.stack([TABLE(tokens[:count]) for count in range(1, len(tokens) + 1)])
    return expected(torch.from_numpy(rows), tokens, top)[: len(tokens) - 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    settings = EngineSettings(model=str(folder), dtype="float32", device="cpu", threads=1, prefill_tokens=64)
    with LLM(settings=settings) as model:
        yield model


def ask(llm: LLM, prompts: Sequence[Sequence[int]], top: int = 3, **options: object) -> list[Result]:
    requests = [
        GenerationRequest(prompt=each, sampling=SAMPLING, prompt_logprobs=top, **options)  # type: ignore[arg-type]
        for each in prompts
    ]
    return llm._run(requests, progress=False)


def plain(folder: Path, tokens: Sequence[int], top: int = 3) -> list[TokenLogprob]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return expected(model(torch.tensor([tokens])).logits[0, :-1], tokens, top)


@pytest.mark.parametrize("length", [1, 2, 17, 200])
def test_they_are_those_of_a_plain_forward(llm: LLM, folder: Path, length: int) -> None:
    tokens = prompt(length)
    (result,) = ask(llm, [tokens])
    same(result.prompt_logprobs, plain(folder, tokens) if length > 1 else [])
    (again,) = ask(llm, [tokens])  # the prefix cache now has every page of it
    same(again.prompt_logprobs, plain(folder, tokens) if length > 1 else [])
    assert again.usage.cached_tokens == 0


def test_they_do_not_depend_on_the_batch(llm: LLM, folder: Path) -> None:
    prompts = [prompt(length, seed) for seed, length in enumerate((3, 150, 40, 8, 90))]
    for tokens, result in zip(prompts, ask(llm, prompts), strict=True):
        same(result.prompt_logprobs, plain(folder, tokens))


def test_the_answer_is_the_same_with_and_without(llm: LLM) -> None:
    tokens = prompt(60, 9)
    (without,) = llm.generate([tokens], SAMPLING, progress=False)
    (result,) = ask(llm, [tokens])
    assert result.choices == without.choices
    assert without.prompt_logprobs is None
    assert result.usage.model_tokens == without.usage.model_tokens


def test_a_most_likely_token_has_the_number_of_the_first_alternative(llm: LLM) -> None:
    (written,) = llm.generate(
        [prompt(5)], SamplingParams(temperature=0, max_tokens=20, ignore_eos=True), progress=False
    )
    (result,) = ask(llm, [[*prompt(5), *written.choices[0].token_ids]])
    assert result.prompt_logprobs is not None
    assert all(each is not None and each.logprob == each.top[0][1] for each in result.prompt_logprobs[5:])


@pytest.mark.parametrize(
    "decoding",
    [
        {"strategy": "best_of_n", "n": 3, "reward": "brevity"},
        {"strategy": "best_of_n", "n": 3, "reward": "brevity", "steer": [{"method": "cfg", "gamma": 2.0}]},
    ],
)
def test_a_strategy_changes_none(llm: LLM, folder: Path, decoding: dict[str, object]) -> None:
    tokens = prompt(30, 4)
    (result,) = ask(llm, [tokens], decoding=decoding)
    same(result.prompt_logprobs, plain(folder, tokens))


@pytest.mark.parametrize("count", [-1, 21])
def test_a_count_out_of_range_is_refused(llm: LLM, count: int) -> None:
    with pytest.raises(InvalidRequest, match="prompt_logprobs") as refused:
        llm.prepare(GenerationRequest(prompt=[1, 2], prompt_logprobs=count))
    assert refused.value.param == "prompt_logprobs"


def test_a_forward_gives_logits_of_a_bounded_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.engine.prompt_logprobs.READ_ROWS", 8)
    toy = Toy(TABLE, settings=EngineSettings(max_rows=64, guides={}))
    sizes: list[int] = []
    read = toy.runner.read

    def noted(chunks):  # type: ignore[no-untyped-def]
        sizes.append(len(chunks) * max(len(chunk.tokens) for chunk in chunks))
        return read(chunks)

    toy.runner.read = noted  # type: ignore[method-assign]
    prompts = [prompt(length, length) for length in (3, 50, 2, 9, 5)]
    handles = [toy.submit(each, SAMPLING, prompt_logprobs=2) for each in prompts]
    toy.finish()
    assert max(sizes) == 8
    for tokens, handle in zip(prompts, handles, strict=True):
        same(toy.result(handle).prompt_logprobs, by_table(tokens, 2), 1e-5)


def test_a_preempted_prompt_is_read_on() -> None:
    toy = Toy(TABLE, settings=EngineSettings(max_rows=64, guides={}, prefill_tokens=6), pages=25, page_size=4)
    prompts = [prompt(length, length) for length in (40, 40, 40, 20)]
    handles = [toy.submit(each, SamplingParams(seed=1, max_tokens=30), prompt_logprobs=2, n=2) for each in prompts]
    toy.finish()
    assert toy.stats.preemptions > 0
    for tokens, handle in zip(prompts, handles, strict=True):
        same(toy.result(handle).prompt_logprobs, by_table(tokens, 2), 1e-5)


def test_what_is_read_already_may_come_from_the_cache() -> None:
    toy = Toy(TABLE, settings=EngineSettings(max_rows=64, guides={}, prefill_tokens=6))
    tokens = prompt(40)
    handle = toy.submit(tokens, SAMPLING, prompt_logprobs=2)
    for _ in range(3):
        toy.engine.tick()
    (job,) = toy.engine.scheduler.running
    job.prompt.base.table.free()  # as a preemption does
    toy.finish()
    result = toy.result(handle)
    same(result.prompt_logprobs, by_table(tokens, 2), 1e-5)
    begun = 18 % 4  # of the 18 tokens that were read, those in a page that was not full
    assert result.usage.model_tokens["base"] == len(tokens) + 3 - 1 + begun


def test_every_choice_is_told_first_and_once() -> None:
    toy = Toy(TABLE, settings=EngineSettings(max_rows=64, guides={}))
    handle = toy.submit(prompt(12), SAMPLING, prompt_logprobs=0, n=3)
    toy.finish()
    told = [delta for delta in toy.deltas(handle) if delta.prompt_logprobs is not None]
    assert [delta.choice for delta in told] == [0, 1, 2]
    assert toy.deltas(handle)[:3] == told
    assert all(delta.prompt_logprobs == toy.result(handle).prompt_logprobs for delta in told)


def test_what_the_budget_left_unread_is_none() -> None:
    toy = Toy(TABLE, settings=EngineSettings(max_rows=64, guides={}, prefill_tokens=8))
    tokens = prompt(40)
    handle = toy.submit(
        tokens, SAMPLING, prompt_logprobs=1, decoding={"strategy": "sample", "budget": {"max_model_tokens": 10}}
    )
    toy.finish()
    told = toy.result(handle).prompt_logprobs
    assert told is not None
    assert len(told) == len(tokens)
    same(told[:17], by_table(tokens, 1)[:16], 1e-5)
    assert set(told[17:]) == {None}
    assert toy.deltas(handle)[0].prompt_logprobs == told


def test_numbers_that_are_none_end_the_request_and_no_other() -> None:
    def logits(prefix: Sequence[int]) -> np.ndarray:
        return TABLE(prefix) * (np.nan if 7 in prefix else 1.0)

    toy = Toy(logits, settings=EngineSettings(max_rows=64, guides={}))
    bad = toy.submit([1, 7, 2, 3], SAMPLING, prompt_logprobs=1)
    good = toy.submit([1, 2, 3, 4], SAMPLING, prompt_logprobs=1)
    toy.finish()
    assert isinstance(toy.end(bad), Failure)
    same(toy.result(good).prompt_logprobs, by_table([1, 2, 3, 4], 1), 1e-5)


def test_a_control_vector_that_is_measured_leaves_them_alone() -> None:
    toy = Toy(TABLE, settings=EngineSettings(max_rows=64, guides={}))
    toy.add_vector("calm", np.linspace(-3, 3, 256))
    steer = {"method": "control_vector", "vector": "calm", "coeff": 1.0, "measure_kl": True}
    handle = toy.submit(prompt(12), SAMPLING, prompt_logprobs=2, decoding={"strategy": "sample", "steer": [steer]})
    toy.finish()
    same(toy.result(handle).prompt_logprobs, by_table(prompt(12), 2), 1e-5)
