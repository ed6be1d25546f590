"""Steering that cannot work, and guides that break: what is refused by name, and what its neighbours notice."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from collector import Collector
from folders import foreign_folder
from steered import DRAWN, GREEDY, chat, furnish, guides, ids, load, user

from trimtab import LLM
from trimtab.engine.errors import Cancelled, GuideError, InvalidRequest
from trimtab.engine.guides.base import HeadGuide, ScorerGuide
from trimtab.engine.results import Failure, Result
from trimtab.requests import GenerationRequest

STEER: list[dict[str, Any]] = [
    {"strategy": "genarm", "arm": "arm"},
    {"strategy": "args", "reward": "taste"},
    {"strategy": "nudging", "aligned": "foreign", "gamma": 0.9},
    {"strategy": "wsd", "aligned": "foreign", "threshold": 1.0},
    {"strategy": "dera", "aligned": "tune", "lam": 1.2},
    {"strategy": "vas", "value": "judge"},
    {"strategy": "best_of_n", "n": 3, "reward": "taste", "steer": [{"method": "genarm", "arm": "arm"}]},
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = furnish(tmp_path_factory.mktemp("withstand"))
    foreign_folder(place / "foreign", seed=1)
    return place


def every(place: Path) -> dict[str, Any]:
    foreign = {"role": "lm", "model": str(place / "foreign")}
    short = {"role": "lm", "model": str(place / "anti"), "context_length": 40}
    return {**guides(place), "foreign": foreign, "short": short}


@pytest.fixture(scope="module")
def llm(place: Path) -> Iterator[LLM]:
    with load(place / "base", every(place)) as llm:
        yield llm


@pytest.fixture
def fragile(place: Path) -> Iterator[LLM]:
    """An engine of its own, to break."""
    with load(place / "base", every(place)) as llm:
        yield llm


def all_free(llm: LLM) -> None:
    for model in llm.models.values():
        model.runner.pool.check([])


@pytest.mark.parametrize(
    ("decoding", "param", "words"),
    [
        (
            {"strategy": "genarm", "arm": "arn"},
            "decoding.arm",
            "no guide is named 'arn'; this needs a language model .*configured: anti, arm, foreign, short, tune",
        ),
        ({"strategy": "genarm", "arm": "taste"}, "decoding.arm", "guide 'taste' has the role 'reward'"),
        ({"strategy": "args", "reward": "arm"}, "decoding.reward", "guide 'arm' has the role 'lm'"),
        ({"strategy": "args", "reward": "brief"}, "decoding.reward", "'brief' .*scores whole answers alone"),
        ({"strategy": "args", "reward": "state"}, "decoding.reward", "'state' gives one value for the text so far"),
        ({"strategy": "re_control", "value": "tokens"}, "decoding.value", "'tokens' gives 272 values"),
        ({"strategy": "control_vector", "vector": "arm"}, "decoding.vector", "guide 'arm' has the role 'lm'"),
        ({"strategy": "genarm", "arm": "arm", "alpha": 10_001.0}, "decoding.alpha", "less than or equal to 10000"),
        ({"strategy": "genarm", "arm": "arm", "alpha": -10_001.0}, "decoding.alpha", "greater than or equal to -10000"),
        ({"strategy": "args", "reward": "taste", "k": 1000}, "decoding.k", "'taste' scores at most 256 candidates"),
        (
            {"steer": [{"method": "value", "guide": "taste"}]},
            "decoding.steer.0.guide",
            "'taste' scores one candidate after another",
        ),
        (
            {"steer": [{"method": "genarm", "arm": "arm"}, {"method": "dera", "aligned": "gone"}]},
            "decoding.steer.1.aligned",
            "no guide is named 'gone'",
        ),
    ],
)
def test_what_cannot_steer_is_refused_by_name(llm: LLM, decoding: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        llm.prepare(GenerationRequest(prompt="x", decoding=decoding))
    assert caught.value.param == param


def test_models_of_other_tokens_do_not_mix_and_are_told_apart(place: Path) -> None:
    """The base's merged words are no tokens of a guide that knows bytes."""
    bytewise = {
        "arm": {"role": "lm", "model": str(place / "arm")},
        "taste": {"role": "reward", "model": str(place / "taste")},
    }
    with load(place / "foreign", bytewise) as llm:
        for decoding, field, fix in (
            ({"strategy": "genarm", "arm": "arm"}, "arm", "use strategy nudging or wsd, which align by text"),
            ({"strategy": "args", "reward": "taste"}, "reward", "use it as the reward of a search"),
        ):
            words = f"guide '{decoding[field]}' has vocabulary 257, base 320, and their tokens differ: {fix}"
            with pytest.raises(InvalidRequest, match=words) as caught:
                llm.prepare(GenerationRequest(prompt="x", decoding=decoding))
            assert caught.value.param == f"decoding.{field}"
        assert chat(llm, {"strategy": "nudging", "aligned": "arm"}).choices[0].token_ids
        assert chat(llm, {"strategy": "best_of_n", "n": 2, "reward": "taste"}).candidates[0].reward is not None


def test_a_weight_of_zero_is_the_base(llm: LLM) -> None:
    plain = ids(chat(llm, None, DRAWN))
    for decoding in (
        {"strategy": "genarm", "arm": "arm", "alpha": 0.0},
        {"strategy": "dera", "aligned": "arm", "lam": 0.0},
        {"strategy": "vas", "value": "worth", "beta": 0.0},
        {"strategy": "cd", "value": "tokens", "lam": 0.0},
        {"strategy": "proxy_tuning", "expert": "arm", "antiexpert": "arm"},
    ):
        assert ids(chat(llm, decoding, DRAWN)) == plain, decoding


@pytest.mark.parametrize("weight", [-2.0, 10_000.0, -10_000.0])
def test_weights_up_to_their_limits_give_answers(llm: LLM, weight: float) -> None:
    for decoding in (
        {"strategy": "genarm", "arm": "arm", "alpha": weight},
        {"strategy": "dera", "aligned": "tune", "lam": weight},
        {"strategy": "args", "reward": "taste", "w": weight},
        {"strategy": "vas", "value": "judge", "beta": weight},
        {"strategy": "cd", "value": "tokens", "lam": weight},
    ):
        choice = chat(llm, {**decoding, "trace": "tokens"}, DRAWN).choices[0]
        assert choice.token_ids
        assert choice.steering is not None
        assert choice.steering.tokens == len(choice.token_ids)
    strong = chat(llm, {"strategy": "genarm", "arm": "arm", "alpha": 10_000.0}, GREEDY)
    alone = chat(llm, {"strategy": "dera", "aligned": "arm", "lam": 1.0}, GREEDY)
    assert ids(strong) == ids(alone)


def test_more_candidates_than_tokens_are_all_tokens(llm: LLM) -> None:
    everything = chat(llm, {"strategy": "cd", "value": "tokens"}, DRAWN)
    assert ids(chat(llm, {"strategy": "cd", "value": "tokens", "k": 10_000}, DRAWN)) == ids(everything)
    pad = {"strategy": "pad", "arm": "arm", "w": 1.0, "k": 10_000}
    assert ids(chat(llm, pad)) == ids(chat(llm, {"strategy": "dera", "aligned": "arm", "lam": 1.0}))


def spoil_model(name: str) -> Callable[[LLM], None]:
    def spoil(llm: LLM) -> None:
        model = llm.models[name].runner.model
        with torch.inference_mode():
            for parameter in model.parameters():
                parameter.fill_(torch.nan)  # the norms: packing keeps other weights elsewhere

    return spoil


def spoil_head(name: str) -> Callable[[LLM], None]:
    def spoil(llm: LLM) -> None:
        guide = llm.guides[name]
        if isinstance(guide, HeadGuide):
            guide.head.weights[-1].fill_(torch.nan)
        else:
            assert isinstance(guide, ScorerGuide)
            guide.head.weight.fill_(torch.nan)  # type: ignore[attr-defined]

    return spoil


@pytest.mark.parametrize(
    ("spoil", "decoding", "guilty"),
    [
        (spoil_model("arm"), {"strategy": "genarm", "arm": "arm"}, "arm"),
        (spoil_model("arm"), {"strategy": "mod", "weights": {"base": 0.5, "arm": 0.5}, "alpha": 0.5}, "arm"),
        (spoil_model("foreign"), {"strategy": "nudging", "aligned": "foreign"}, "foreign"),
        (spoil_model("taste"), {"strategy": "args", "reward": "taste"}, "taste"),
        (spoil_head("judge"), {"strategy": "vas", "value": "judge"}, "judge"),
        (spoil_head("tokens"), {"strategy": "cd", "value": "tokens"}, "tokens"),
        (spoil_head("state"), {"strategy": "re_control", "value": "state"}, "state"),
    ],
)
def test_a_broken_guide_ends_its_own_request_only(
    fragile: LLM, spoil: Callable[[LLM], None], decoding: dict[str, Any], guilty: str
) -> None:
    others: list[dict[str, Any] | None] = [
        None,
        {"strategy": "dera", "aligned": "tune"},
        {"strategy": "genarm", "arm": "anti"},
        {"strategy": "control_vector", "vector": "calm"},
    ]
    before = [ids(chat(fragile, each, DRAWN, user(f"Hi {i}"))) for i, each in enumerate(others)]
    spoil(fragile)
    collectors = []
    for i, each in enumerate([*others, decoding]):
        collectors.append(Collector())
        request = GenerationRequest(messages=tuple(user(f"Hi {i}")), sampling=DRAWN, decoding=each)
        fragile.submit(fragile.prepare(request), object(), collectors[-1])
    ends = []
    for collector in collectors:
        assert collector.done.wait(20)
        ends.append(collector.events[-1])
    failure = ends.pop()
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, GuideError), failure.error
    assert failure.error.guide == guilty
    assert fragile.stats.guide_errors == {guilty: 1}
    assert [list(end.choices[0].token_ids) for end in ends if isinstance(end, Result)] == before
    again = [ids(chat(fragile, each, DRAWN, user(f"Hi {i}"))) for i, each in enumerate(others)]
    assert again == before
    all_free(fragile)


def test_a_guide_of_shorter_context_limits_the_answer(llm: LLM) -> None:
    prompt = "x" * 30
    steered = {"strategy": "genarm", "arm": "short"}
    wanted = GREEDY.model_copy(update={"max_tokens": 11})
    with pytest.raises(InvalidRequest, match="the context of guide 'short' holds 40 tokens, but the prompt has 30 and"):
        llm.prepare(GenerationRequest(prompt=prompt, sampling=wanted, decoding=steered))
    open_end = GREEDY.model_copy(update={"max_tokens": None, "ignore_eos": True})
    (result,) = llm.generate([prompt], open_end, decoding=steered, progress=False)
    assert len(ids(result)) == 10
    assert result.choices[0].finish_reason == "length"
    with pytest.raises(InvalidRequest, match="guide 'short' holds 40 tokens, but the prompt has 40:") as caught:
        llm.prepare(GenerationRequest(prompt="x" * 40, sampling=open_end, decoding=steered))
    assert (caught.value.param, caught.value.code) == ("prompt", "context_length_exceeded")
    assert llm.prepare(GenerationRequest(prompt="x" * 40, decoding={**steered, "alpha": 0.0})).max_tokens == 216


@pytest.mark.parametrize("decoding", STEER, ids=lambda decoding: decoding["strategy"])
def test_cancelling_frees_the_pages_of_every_model(llm: LLM, decoding: dict[str, Any]) -> None:
    sampling = DRAWN.model_copy(update={"max_tokens": 150, "ignore_eos": True})
    request = GenerationRequest(messages=tuple(user()), sampling=sampling, decoding=decoding)
    prepared = llm.prepare(request)
    for ticks in (0, 1, 4):
        collector, handle = Collector(), object()
        before = llm.stats.steps
        llm.submit(prepared, handle, collector)
        while llm.stats.steps < before + ticks and not collector.done.is_set():
            time.sleep(0.001)
        llm.cancel(handle)
        assert collector.done.wait(20)
        assert isinstance(collector.events[-1], Failure)
        assert isinstance(collector.events[-1].error, Cancelled)
        all_free(llm)
