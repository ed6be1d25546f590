"""Guides that come and go while the engine runs: what they answer, what they leave behind, what is refused."""

import gc
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from collector import Collector
from folders import adapter_folder, classifier_folder, head_file, vector_file
from gate import Gate
from pydantic import TypeAdapter
from tiny import tiny_folder

from trimtab import LLM, EngineSettings, SamplingParams
from trimtab.engine.errors import GuideInUse, InvalidRequest, ModelLoadError, Overloaded
from trimtab.engine.guides.base import LanguageGuide, ScorerGuide
from trimtab.engine.guides.config import GuideConfig
from trimtab.engine.results import Failure, Result
from trimtab.engine.rewards import Pair
from trimtab.requests import GenerationRequest

CONFIG: TypeAdapter[GuideConfig] = TypeAdapter(GuideConfig)
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=0)
PROMPT = "a prompt of several pages, so that the cache has something to find"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and beside it every kind of guide, two of each."""
    folder = tmp_path_factory.mktemp("coming")
    base = tiny_folder(folder / "base")
    for number in (1, 2):
        tiny_folder(folder / f"lm{number}", seed=number)
        adapter_folder(folder / f"adapter{number}", base, seed=number)
        adapter_folder(folder / f"taste{number}", base, seed=10 + number, score=True)
        classifier_folder(folder / f"judge{number}", seed=number, scale=0.5 * number)
        vector_file(folder / f"vector{number}.safetensors", seed=number)
        head_file(folder / f"head{number}.safetensors", width=1, seed=number)
    return folder


def settings(folder: Path, **guides: GuideConfig) -> EngineSettings:
    return EngineSettings(
        model=str(folder / "base"), device="cpu", dtype="float32", threads=1, pool_tokens=1024, guides=guides
    )


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    """Begins and ends every test without a guide."""
    with LLM(settings=settings(folder)) as llm:
        yield llm


def config(folder: Path, role: str, name: str) -> GuideConfig:
    return CONFIG.validate_python({"role": role, "model": str(folder / name)})


KINDS: dict[str, tuple[str, str, Mapping[str, Any]]] = {
    "lm": ("lm", "lm", {"strategy": "genarm", "arm": "x", "alpha": 0.7}),
    "adapter": ("lm", "adapter", {"strategy": "genarm", "arm": "x", "alpha": 0.7}),
    "vector": ("vector", "vector", {"strategy": "control_vector", "vector": "x", "coeff": 1.0}),
    "head": ("value", "head", {"strategy": "re_control", "value": "x", "lr": 0.5, "n": 2}),
    "judge": ("reward", "judge", {"strategy": "best_of_n", "n": 3, "reward": "x"}),
    "taste": ("reward", "taste", {"strategy": "args", "reward": "x", "k": 4, "w": 1.0}),
}


def source(folder: Path, kind: str, number: int) -> GuideConfig:
    role, stem, _ = KINDS[kind]
    ending = ".safetensors" if kind in ("vector", "head") else ""
    return config(folder, role, f"{stem}{number}{ending}")


def answer(llm: LLM, decoding: Mapping[str, Any] | None = None) -> tuple[object, list[float]]:
    """What tells guides apart: the tokens, and the rewards or log-probabilities."""
    (result,) = llm.generate([PROMPT], GREEDY, decoding=decoding, progress=False)
    (choice,) = result.choices
    numbers = [each.reward for each in result.candidates if each.reward is not None]
    if choice.steering is not None:
        numbers += [
            each for each in (choice.steering.logprob_steered, choice.steering.logprob_base) if each is not None
        ]
    return choice.token_ids, numbers


def agree(one: tuple[object, list[float]], other: tuple[object, list[float]]) -> bool:
    return one[0] == other[0] and one[1] == pytest.approx(other[1], abs=1e-4)


def check_clean(llm: LLM) -> None:
    """Nothing is loaded, used or listed."""
    assert not llm.guides
    assert not llm.rewards
    assert not llm.cards
    assert not llm.contracts
    assert not llm.settings.guides
    assert list(llm.models) == ["base"]
    for model in llm.models.values():
        model.runner.pool.check([])
    terms = llm.models["base"].runner.terms
    assert list(terms._adapters) == [None]
    assert not terms._vectors
    for _, term in terms._terms.values():
        assert (len(term.stacks.down), len(term.stacks.up), term.stacks.owners, term.stacks.spans) == (0, 0, (), {})


@pytest.mark.parametrize("kind", KINDS)
def test_a_guide_that_came_late_answers_as_one_from_the_start_and_its_namesake_as_itself(
    llm: LLM, folder: Path, kind: str
) -> None:
    decoding = KINDS[kind][2]
    plain, before = answer(llm), None
    for number in (1, 2):  # the second one would find the pages of the first
        with LLM(settings=settings(folder, x=source(folder, kind, number))) as other:
            expected = answer(other, decoding)
        assert before is None or not agree(expected, before)
        before = expected
        llm.load_guide("x", source(folder, kind, number)).result(30)
        assert list(llm.guides) == ["x"]
        assert list(llm.settings.guides) == ["x"]
        assert agree(answer(llm, decoding), expected)
        assert agree(answer(llm, decoding), expected), "from its own pages"
        assert agree(answer(llm), plain)
        llm.unload_guide("x").result(30)
        with pytest.raises(InvalidRequest, match="x"):
            llm.generate([PROMPT], GREEDY, decoding=decoding, progress=False)
        assert agree(answer(llm), plain)
        check_clean(llm)


def test_adapters_that_stay_are_untouched_by_those_that_go(llm: LLM, folder: Path) -> None:
    names = ("adapter1", "adapter2", "taste1")
    for name in names:
        llm.load_guide(name, config(folder, "reward" if name == "taste1" else "lm", name)).result(30)

    def ask(name: str) -> tuple[object, list[float]]:
        return answer(llm, {"strategy": "genarm", "arm": name, "alpha": 1.0})

    second, scores = ask("adapter2"), llm.score("taste1", [Pair((), "an answer")])
    llm.unload_guide("adapter1").result(30)
    assert agree(ask("adapter2"), second)
    assert llm.score("taste1", [Pair((), "an answer"), Pair((), "other")])[0] == pytest.approx(scores[0], abs=1e-4)
    llm.load_guide("late", config(folder, "lm", "adapter1")).result(30)
    mixed = {"strategy": "genarm", "arm": "late", "alpha": 0.5, "steer": [{"method": "genarm", "arm": "adapter2"}]}
    assert not agree(answer(llm, mixed), second)
    for name in ("adapter2", "taste1", "late"):
        llm.unload_guide(name).result(30)
    check_clean(llm)


@pytest.mark.parametrize("kind", ["lm", "judge"])
def test_the_memory_of_an_unloaded_guide_is_free(llm: LLM, folder: Path, kind: str) -> None:
    llm.load_guide("x", source(folder, kind, 1)).result(30)
    answer(llm, KINDS[kind][2])
    guide = llm.guides["x"]
    assert isinstance(guide, LanguageGuide | ScorerGuide)
    runner = guide.model.runner
    watched = [weakref.ref(each) for each in (runner.model, runner, runner.store._kv, guide.model.vocabulary)]
    del guide, runner
    llm.unload_guide("x").result(30)
    gc.collect()
    assert [each() for each in watched] == [None] * 4


def test_a_guide_in_use_stays(llm: LLM, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm.load_guide("x", source(folder, "judge", 1)).result(30)
    gate = Gate()
    runner = llm.models["base"].runner
    with monkeypatch.context() as patch:
        patch.setattr(runner, "decode", gate.before(runner.decode))
        collectors = [Collector(), Collector()]
        for collector in collectors:
            prepared = llm.prepare(GenerationRequest(prompt=PROMPT, sampling=GREEDY, decoding=KINDS["judge"][2]))
            llm.submit(prepared, object(), collector)
        gate.reach(1)
        refused = llm.unload_guide("x")
        gate.open()
        with pytest.raises(GuideInUse, match="'x' is in use by 2 requests") as caught:
            refused.result(30)
        assert (caught.value.guide, caught.value.requests) == ("x", 2)
    assert all(collector.done.wait(30) for collector in collectors)
    assert all(isinstance(collector.events[-1], Result) for collector in collectors)
    llm.unload_guide("x").result(30)
    check_clean(llm)


def test_what_was_prepared_for_a_guide_that_is_gone_ends_with_an_error(llm: LLM, folder: Path) -> None:
    llm.load_guide("x", source(folder, "lm", 1)).result(30)
    prepared = llm.prepare(GenerationRequest(prompt=PROMPT, sampling=GREEDY, decoding=KINDS["lm"][2]))
    assert prepared.guides == {"x"}
    llm.unload_guide("x").result(30)
    for again in (False, True):
        if again:  # another guide of the name: the plan was not made for it
            llm.load_guide("x", source(folder, "adapter", 1)).result(30)
        collector = Collector()
        llm.submit(prepared, object(), collector)
        assert collector.done.wait(30)
        (end,) = collector.events
        assert isinstance(end, Failure)
        assert isinstance(end.error, Overloaded)
        assert "send it again" in str(end.error)
    assert llm._worker.engine.backlog.waiting == (0, 0, 0)
    llm.unload_guide("x").result(30)
    check_clean(llm)


def test_answers_for_a_reward_that_goes_meanwhile_are_refused(llm: LLM, folder: Path) -> None:
    llm.load_guide("x", source(folder, "judge", 1)).result(30)
    with llm._worker.together():
        gone = llm.unload_guide("x")
        late = llm.judge("x", [Pair((), "an answer")])
    assert late.result(30)[0].score == late.result()[0].score, "what came first, came first"
    assert isinstance(gone.exception(30), GuideInUse) or gone.exception() is None
    if gone.exception() is not None:
        llm.unload_guide("x").result(30)
    check_clean(llm)


def test_a_guide_that_cannot_be_loaded_changes_nothing(llm: LLM, folder: Path, tmp_path: Path) -> None:
    plain = answer(llm)
    llm.load_guide(
        "length", CONFIG.validate_python({"role": "program", "kind": "length", "direction": "longer"})
    ).result(30)
    with pytest.raises(ModelLoadError, match="guide 'x'"):
        llm.load_guide("x", CONFIG.validate_python({"role": "lm", "model": str(tmp_path / "nothing")})).result(30)
    unfit = CONFIG.validate_python({"role": "reward", "model": str(folder / "taste1"), "label": "LABEL_7"})
    with pytest.raises(Exception, match="LABEL_7"):  # found after its adapter was taken in
        llm.load_guide("x", unfit).result(30)
    with pytest.raises(InvalidRequest, match="'length' already"):
        llm.load_guide("length", source(folder, "lm", 1)).result(30)
    with pytest.raises(InvalidRequest, match="'base' already"):
        llm.load_guide("base", source(folder, "lm", 1)).result(30)
    with pytest.raises(InvalidRequest, match="no guide is named 'lenght'; loaded: length"):
        llm.unload_guide("lenght").result(30)
    assert list(llm.guides) == ["length"]
    assert agree(answer(llm), plain)
    assert llm.score("length", [Pair((), "four")]) == llm.score("length", [Pair((), "five")])
    llm.unload_guide("length").result(30)
    check_clean(llm)


def test_mappings_are_replaced_not_changed(llm: LLM, folder: Path) -> None:
    before = (llm.guides, llm.rewards, llm.models, llm.contracts, llm.settings.guides)
    llm.load_guide("x", source(folder, "judge", 1)).result(30)
    after = (llm.guides, llm.rewards, llm.models, llm.contracts, llm.settings.guides)
    assert all("x" not in each for each in before)
    assert all("x" in each for each in after)
    llm.unload_guide("x").result(30)
    assert all("x" in each for each in after)
    check_clean(llm)


def test_loading_while_others_decode_changes_no_answer(llm: LLM, folder: Path) -> None:
    alone = answer(llm)
    collectors = [Collector() for _ in range(3)]
    for collector in collectors:
        llm.submit(llm.prepare(GenerationRequest(prompt=PROMPT, sampling=GREEDY)), object(), collector)
        llm.load_guide("x", source(folder, "adapter", 1)).result(30)
        llm.unload_guide("x").result(30)
    for collector in collectors:
        assert collector.done.wait(30)
        end = collector.events[-1]
        assert isinstance(end, Result)
        assert end.choices[0].token_ids == alone[0]
    check_clean(llm)


def test_a_stopped_engine_loads_nothing(folder: Path) -> None:
    llm = LLM(settings=settings(folder))
    llm.close()
    with pytest.raises(Overloaded):
        llm.load_guide("x", source(folder, "lm", 1))
    llm.interrupt_all()
