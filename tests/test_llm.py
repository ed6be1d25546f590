"""The offline API over a tiny random model: validation, batching, determinism, clean ends."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from collector import Collector
from tiny import VOCAB, tiny_folder

from trimtab import LLM, EngineSettings, Grammar, SamplingParams
from trimtab.engine.errors import Cancelled, InvalidRequest, Overloaded
from trimtab.engine.results import Failure
from trimtab.engine.vocabulary import Message
from trimtab.requests import GenerationRequest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(
        str(folder), settings=EngineSettings(pool_tokens=4096, max_rows=16, max_candidates=16, max_waiting=4)
    ) as llm:
        yield llm


def user(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def test_more_prompts_than_may_wait_come_back_in_order(llm: LLM) -> None:
    prompts = [f"prompt number {i}" for i in range(12)]
    sampling = SamplingParams(seed=1, max_tokens=6)
    together = llm.generate(prompts, sampling, progress=False)
    assert [result.usage.prompt_tokens for result in together] == [len(prompt) for prompt in prompts]
    for prompt, result in zip(prompts, together, strict=True):
        assert llm.generate([prompt], sampling, progress=False)[0].choices == result.choices


def test_each_prompt_may_have_its_own_sampling(llm: LLM) -> None:
    each = [SamplingParams(seed=seed, max_tokens=4 + seed) for seed in range(3)]
    results = llm.generate(["same"] * 3, each, progress=False)
    assert [result.seed for result in results] == [0, 1, 2]
    assert [llm.generate(["same"], one, progress=False)[0].choices for one in each] == [r.choices for r in results]
    assert [r.seed for r in llm.chat([user("same")] * 3, each, progress=False)] == [0, 1, 2]
    with pytest.raises(InvalidRequest, match="3 sampling parameters for 2 prompts: give one for each"):
        llm.generate(["same"] * 2, each, progress=False)


def test_what_is_submitted_together_waits_for_the_rest(llm: LLM) -> None:
    before, collectors = llm.stats.steps, [Collector() for _ in range(3)]
    with llm._worker.together():
        for collector in collectors:
            prepared = llm.prepare(GenerationRequest(prompt="wait", sampling=SamplingParams(max_tokens=2, seed=1)))
            llm.submit(prepared, object(), collector)
            assert not collector.started.wait(0.05)
        assert llm.stats.steps == before
    assert all(collector.done.wait(20) for collector in collectors)
    assert llm.stats.steps <= before + 2, "one tick took them all"


def test_chat_uses_the_template_and_best_of_n_reports_its_candidates(llm: LLM) -> None:
    decoding = {"strategy": "best_of_n", "n": 5, "reward": "length"}
    result = llm.chat([user("hello")], SamplingParams(seed=3, max_tokens=9), decoding=decoding, progress=False)[0]
    assert result.usage.prompt_tokens == len("<user>hello\n<assistant>")
    rewards = [candidate.reward for candidate in result.candidates]
    assert len(rewards) == 5
    assert rewards[[candidate.choice for candidate in result.candidates].index(0)] == max(r for r in rewards if r)
    assert result.usage.model_tokens["base"] >= 5 * 9
    assert result.usage.forwards["length"] == 1
    assert set(result.usage.milliseconds) == {"queue", "prefill", "decode", "score", "total"}


def test_an_absent_seed_is_drawn_and_reported(llm: LLM) -> None:
    sampling = SamplingParams(max_tokens=12)
    first, second = (llm.generate(["same"], sampling, progress=False)[0] for _ in range(2))
    assert first.seed != second.seed
    again = llm.generate(["same"], sampling.model_copy(update={"seed": first.seed}), progress=False)[0]
    assert again.choices == first.choices


@pytest.mark.parametrize(
    ("request_", "param", "words"),
    [
        (GenerationRequest(prompt=""), "prompt", "empty"),
        (GenerationRequest(prompt=[VOCAB]), "prompt", "outside the vocabulary"),
        (GenerationRequest(messages=()), "messages", "at least one"),
        (GenerationRequest(prompt="x" * 300), "prompt", "256 tokens, but the prompt has 300"),
        (GenerationRequest(prompt="x", sampling=SamplingParams(max_tokens=300)), "prompt", "max_tokens is 300"),
        (GenerationRequest(prompt="x", n=17), "n", "at most 16"),
        (
            GenerationRequest(prompt="x", decoding={"strategy": "best_of_n", "n": 17, "reward": "length"}),
            "decoding.n",
            "at most 16",
        ),
        (
            GenerationRequest(prompt="x", decoding={"strategy": "tqstar", "k": 17, "reward": "length"}),
            "decoding.k",
            "at most 16",
        ),
        (
            GenerationRequest(prompt="x", decoding={"strategy": "best_of_n", "reward": "lenght"}),
            "decoding.reward",
            "configured: brevity, json, length",
        ),
        (
            GenerationRequest(prompt="x", n=3, decoding={"strategy": "best_of_n", "n": 2, "reward": "length"}),
            "n",
            "search with n=2",
        ),
        (GenerationRequest(prompt="x", sampling=SamplingParams(logit_bias={VOCAB: 1})), "logit_bias", "outside"),
        (GenerationRequest(prompt="x", sampling=SamplingParams(stop_token_ids=(999,))), "stop_token_ids", "outside"),
        (GenerationRequest(prompt="\ud800"), None, "surrogate"),
    ],
)
def test_what_cannot_work_is_refused_before_it_is_queued(
    llm: LLM, request_: GenerationRequest, param: str | None, words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        llm.prepare(request_)
    assert caught.value.param == param


def test_too_long_a_prompt_has_openais_code(llm: LLM) -> None:
    with pytest.raises(InvalidRequest) as caught:
        llm.prepare(GenerationRequest(prompt="x" * 256))
    assert caught.value.code == "context_length_exceeded"
    assert llm.prepare(GenerationRequest(prompt="x" * 255)).max_tokens == 1


def test_cancel_ends_a_running_request_and_frees_its_pages(llm: LLM) -> None:
    collector, handle = Collector(), object()
    llm.submit(llm.prepare(GenerationRequest(prompt="go on", n=3)), handle, collector)
    assert collector.started.wait(20)
    llm.cancel(handle)
    llm.cancel(handle)
    assert collector.done.wait(20)
    last = collector.events[-1]
    assert isinstance(last, Failure)
    assert isinstance(last.error, Cancelled)
    llm.generate(["after"], SamplingParams(max_tokens=1), progress=False)
    assert llm.stats.pages_used == 0


def test_a_full_queue_and_a_drain_are_overloads_and_closing_ends_what_runs(folder: Path) -> None:
    llm = LLM(str(folder), settings=EngineSettings(pool_tokens=4096, max_rows=1, max_waiting=1))
    collectors: list[Collector] = []

    def flood() -> None:
        for _ in range(50):
            collectors.append(Collector())
            llm.submit(llm.prepare(GenerationRequest(prompt="go on")), object(), collectors[-1])

    with pytest.raises(Overloaded, match="waiting already"):
        flood()
    llm.drain()
    with pytest.raises(Overloaded, match="no new requests"):
        llm.submit(llm.prepare(GenerationRequest(prompt="x")), object(), Collector())
    llm.close()
    for collector in collectors[:-1]:
        assert collector.done.wait(20)


def test_repeated_failures_stop_the_engine_and_say_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    with LLM(str(folder), settings=EngineSettings(pool_tokens=4096)) as llm:
        monkeypatch.setattr(llm._worker.engine.runner, "decode", fail)
        for _ in range(3):
            assert llm.failed is None
            with pytest.raises(RuntimeError, match="broken"):
                llm.generate(["go"], progress=False)
        llm._worker._thread.join(20)
        assert isinstance(llm.failed, RuntimeError)
        with pytest.raises(Overloaded, match="restart"):
            llm.generate(["go"], progress=False)


def test_an_invalid_prompt_among_many_raises_and_leaves_nothing_running(llm: LLM) -> None:
    with pytest.raises(InvalidRequest):
        llm.generate(["fine", "", "fine"], progress=False)
    llm.generate(["after"], SamplingParams(max_tokens=1), progress=False)
    assert (llm.stats.pages_used, llm.stats.running) == (0, 0)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"dtype": "bfloat16"}, lambda llm: llm._worker.engine.runner.dtype == torch.bfloat16),
        ({"packed": False}, lambda llm: llm._worker.engine.runner.packing is None),
        ({"context_length": 100}, lambda llm: llm.context_length == 100),
        ({"pool_tokens": 160}, lambda llm: llm.context_length == 160),
        ({"page_size": 8}, lambda llm: llm._worker.engine.runner.pool.page_size == 8),
        ({"threads": 1}, lambda llm: torch.get_num_threads() == 1),
        ({"guides": {"x": {"role": "program", "kind": "json"}}}, lambda llm: list(llm.rewards) == ["x"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_setting_reaches_the_engine(folder: Path, changes: dict[str, object], what: Callable[[LLM], bool]) -> None:
    with LLM(str(folder)) as default, LLM(str(folder), settings=EngineSettings.model_validate(changes)) as llm:
        assert what(llm)
        assert "threads" in changes or not what(default)
        assert llm.generate(["hello"], SamplingParams(max_tokens=3, ignore_eos=True), progress=False)[0].choices


def test_a_grammar_binds_every_answer(llm: LLM) -> None:
    sampling = SamplingParams(seed=1, max_tokens=12)
    results = llm.generate(["a", "b"], sampling, n=4, grammar=Grammar.regex("(yes|no)!"), progress=False)
    results += llm.chat([user("Hi")], sampling, grammar=Grammar.regex("(yes|no)!"), progress=False)
    texts = {choice.text for result in results for choice in result.choices}
    assert texts <= {"yes!", "no!"}
