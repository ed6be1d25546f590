"""Faults put in on purpose: afterwards every page is free, the counts are right, and the next request works."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from collector import Collector
from folders import adapter_folder, classifier_folder, foreign_folder, head_file
from gate import Gate
from tiny import tiny_folder
from torch import Tensor

from trimtab import LLM, EngineSettings, SamplingParams
from trimtab.engine.backlog import Load
from trimtab.engine.errors import GuideError, GuideUnavailable, Overloaded, TrimtabError
from trimtab.engine.guides.base import HeadGuide, LanguageGuide, ScorerGuide
from trimtab.engine.results import Failure, Result
from trimtab.engine.rewards import Judgement, Pair, Reward
from trimtab.engine.runner import Decoded
from trimtab.requests import GenerationRequest

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
PATIENCE = 30.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    base = tiny_folder(folder / "base")
    tiny_folder(folder / "arm", seed=1)
    foreign_folder(folder / "nudger", seed=2)
    classifier_folder(folder / "judge", seed=3)
    adapter_folder(folder / "adapter", base, seed=4)
    head_file(folder / "head.safetensors", width=1, seed=5)
    return folder


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[LLM]:
    """Few rows and pages; its guides are made to fail by the tests."""
    guides = {
        "arm": {"role": "lm", "model": str(folder / "arm")},
        "nudger": {"role": "lm", "model": str(folder / "nudger")},
        "judge": {"role": "reward", "model": str(folder / "judge")},
        "head": {"role": "value", "model": str(folder / "head.safetensors")},
        "long": {"role": "program", "kind": "length", "direction": "longer"},
    }
    settings = EngineSettings.model_validate(
        {
            "model": str(folder / "base"),
            "device": "cpu",
            "dtype": "float32",
            "threads": 1,
            "pool_tokens": 512,
            "max_rows": 8,
            "guides": guides,
        }
    )
    with LLM(settings=settings) as llm:
        yield llm


@pytest.fixture
def llm(shared: LLM) -> Iterator[LLM]:
    """The same with closed circuits; nothing may be left of a test."""
    engine = shared._worker.engine
    yield shared
    shared._worker.ask(lambda: None).result(PATIENCE)
    assert engine.idle
    assert engine.backlog.waiting == Load()
    stats = shared.stats
    assert (stats.running, stats.waiting, stats.rows, stats.pages_used) == (0, 0, 0, 0)
    for model in shared.models.values():
        model.runner.pool.check([])
        assert model.runner.pool.used == 0
    for name in shared.guides:
        engine.circuits.forget(name)
    shared.stats.guide_errors.clear()
    assert isinstance(ended(asked(shared)), Result), "the next request works"


def asked(llm: LLM, decoding: Mapping[str, Any] | None = None, *, prompt: str = "go", tokens: int = 8) -> Collector:
    """A request on its way; raises what submitting raises."""
    sampling = GREEDY.model_copy(update={"max_tokens": tokens})
    collector = Collector()
    llm.submit(llm.prepare(GenerationRequest(prompt=prompt, sampling=sampling, decoding=decoding)), object(), collector)
    return collector


def ended(collector: Collector) -> Result | Failure:
    assert collector.done.wait(PATIENCE), "it never ended"
    last = collector.events[-1]
    assert isinstance(last, Result | Failure)
    return last


def raising(*_: object, **__: object) -> Any:
    raise RuntimeError("out of order")


def no_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with NaN in every tensor that it gives."""

    def broken(*args: Any, **kwargs: Any) -> Any:
        given = function(*args, **kwargs)
        if isinstance(given, Tensor):
            return torch.full_like(given, math.nan)
        assert isinstance(given, Decoded)
        return Decoded(*(torch.full_like(each, math.nan) for each in (given.logits, given.hidden, given.unedited)))

    return broken


class Calls:
    """Stands in for a guide's head or runner call: counts, and does as it is told."""

    def __init__(self, does: Callable[..., Any]) -> None:
        self.does = does
        self.count = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        return self.does(*args, **kwargs)


ARM = {"strategy": "genarm", "arm": "arm", "alpha": 1.0}
ARGS = {"strategy": "args", "reward": "judge", "k": 4, "w": 1.0}
NUDGED = {"strategy": "nudging", "aligned": "nudger", "gamma": 0.9}
JUDGED = {"strategy": "best_of_n", "n": 3, "reward": "judge"}
BY_HEAD = {"strategy": "best_of_n", "n": 3, "reward": "head"}
DRAFTED = {"strategy": "rsd", "draft": "arm", "value": "long", "delta": 1.0}
"""a language model that the search calls by name"""


def break_guide(llm: LLM, patch: pytest.MonkeyPatch, guide: str, call: str, fault: str) -> Calls:
    """Let a call of a guide raise, or give NaN."""
    loaded = llm.guides[guide]
    if isinstance(loaded, HeadGuide):
        target: Any = type(loaded.head)
        call = "__call__"
    else:
        assert isinstance(loaded, LanguageGuide | ScorerGuide)
        target = loaded.model.runner
    calls = Calls(raising if fault == "raises" else no_numbers(getattr(target, call)))
    if isinstance(loaded, HeadGuide):
        patch.setattr(target, call, lambda self, hidden: calls(self, hidden))
    else:
        patch.setattr(target, call, calls)
    return calls


@pytest.mark.parametrize(
    ("guide", "call", "fault", "decoding"),
    [
        ("arm", "decode", "raises", ARM),
        ("arm", "decode", "NaN", ARM),
        ("arm", "prefill", "raises", ARM),
        ("judge", "score", "raises", ARGS),
        ("judge", "score", "NaN", ARGS),
        ("nudger", "decode", "raises", NUDGED),
        ("judge", "prefill", "raises", JUDGED),
        ("judge", "prefill", "NaN", JUDGED),
        ("head", "", "raises", BY_HEAD),
        ("head", "", "NaN", BY_HEAD),
        ("arm", "decode", "raises", DRAFTED),
    ],
    ids=lambda each: each if isinstance(each, str) else each["strategy"],
)
def test_a_guide_that_fails_ends_its_own_requests_alone(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, guide: str, call: str, fault: str, decoding: dict[str, Any]
) -> None:
    expected = ended(asked(llm, prompt="others", tokens=20))
    assert isinstance(expected, Result)
    with monkeypatch.context() as patch:
        calls = break_guide(llm, patch, guide, call, fault)
        other = asked(llm, prompt="others", tokens=20)
        for _ in range(3):
            end = ended(asked(llm, decoding, prompt=f"a new prompt {calls.count}"))
            assert isinstance(end, Failure), end
            assert isinstance(end.error, GuideError), repr(end.error)
            assert end.error.guide == guide
        assert calls.count >= 3
        with pytest.raises(GuideUnavailable, match=guide):
            asked(llm, decoding)
        undisturbed = ended(other)
        assert isinstance(undisturbed, Result)
        assert undisturbed.choices == expected.choices
        assert llm.stats.guide_errors == {guide: 3}
        assert llm.failed is None
    llm._worker.engine.circuits.forget(guide)
    assert isinstance(ended(asked(llm, decoding)), Result), "it works again"


def test_one_guide_with_two_answers_of_a_request_fails_it_once(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        break_guide(llm, patch, "nudger", "decode", "NaN")
        collector = Collector()
        request = GenerationRequest(prompt="go", sampling=GREEDY, n=3, decoding=NUDGED)
        llm.submit(llm.prepare(request), object(), collector)
        end = ended(collector)
    assert isinstance(end, Failure)
    assert isinstance(end.error, GuideError)
    assert llm.stats.guide_errors == {"nudger": 1}


def test_a_base_without_numbers_fails_requests_and_not_the_engine(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = llm.models["base"].runner
    with monkeypatch.context() as patch:
        patch.setattr(runner, "decode", no_numbers(runner.decode))
        for _ in range(4):
            end = ended(asked(llm))
            assert isinstance(end, Failure)
            assert isinstance(end.error, TrimtabError)
    assert llm.failed is None
    assert llm.stats.guide_errors == {}


def test_full_pages_under_load_lose_nothing(llm: LLM) -> None:
    """512 tokens of pages for 12 requests that would fill them several times over, a third of them searches."""
    alone = {}
    for i in range(3):
        end = ended(asked(llm, prompt=f"request {i} " + "x" * 60, tokens=60))
        assert isinstance(end, Result)
        alone[i] = end.choices
    before = llm.stats.preemptions
    asks = []
    for i in range(12):
        decoding = {"strategy": "best_of_n", "n": 4, "reward": "long"} if i % 3 == 2 else None
        asks.append((i, decoding, asked(llm, decoding, prompt=f"request {i % 3} " + "x" * 60, tokens=60)))
    for i, decoding, collector in asks:
        end = ended(collector)
        assert isinstance(end, Result), end
        if decoding is None:
            assert end.choices == alone[i % 3]
    assert llm.stats.preemptions > before


class Slow:
    """A reward that waits for the test."""

    name = "slow"
    labels = ("LABEL_0",)

    def __init__(self, gate: Gate) -> None:
        self._wait = gate.before(lambda: None)

    def judge(self, pairs: Sequence[Pair]) -> list[Judgement]:
        self._wait()
        return [Judgement(1.0, (1.0,)) for _ in pairs]

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        return [each.score for each in self.judge(pairs)]


def test_a_slow_reward_holds_others_up_no_longer_than_a_batch_and_the_queue_is_bounded(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    cast(dict[str, Reward], llm.rewards)["slow"] = Slow(gate)
    monkeypatch.setattr(llm._worker.engine.backlog, "_limits", Load(6, 1000, 100_000))
    try:
        searches = [asked(llm, {"strategy": "best_of_n", "n": 2, "reward": "slow"}, tokens=2 + 2 * i) for i in range(3)]
        gate.reach(1)
        waiting: list[Collector] = []
        began = time.monotonic()
        while llm.fits(llm.prepare(GenerationRequest(prompt="go", sampling=GREEDY))):
            waiting.append(asked(llm, tokens=4))
        with pytest.raises(Overloaded, match="6 requests are waiting") as refused:
            asked(llm, tokens=4)
        assert time.monotonic() - began < 5, "submitting waits for nobody"
        assert len(waiting) == 6
        assert 1.0 <= refused.value.retry_after <= 60.0
        gate.reach(2)  # one batch later, at the longest, those without the reward have gone on
        assert any(collector.events for collector in waiting[:1])
    finally:
        gate.open()
    assert all(isinstance(ended(each), Result) for each in (*searches, *waiting))
    del cast(dict[str, Reward], llm.rewards)["slow"]


def test_a_tick_that_raises_ends_what_runs_and_the_next_request_works(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = llm.models["base"].runner
    for call in ("decode", "prefill"):
        with monkeypatch.context() as patch:
            patch.setattr(runner, call, raising)
            with llm._worker.together():
                broken = [asked(llm, each, prompt=f"{call} a long prompt") for each in (None, ARM, JUDGED)]
                rating = llm.judge("judge", [Pair((), "x")])
            for each in broken:
                end = ended(each)
                assert isinstance(end, Failure)
                assert isinstance(end.error, RuntimeError)
        assert isinstance(rating.exception(PATIENCE), RuntimeError | None)
        assert llm.failed is None
        assert isinstance(ended(asked(llm, JUDGED)), Result)
