"""Searches through real modules and pages, against transformers: heads, other models, voices, small pools."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import foreign_folder
from plain import Plain, base_prompt
from steered import DRAWN, GREEDY, TOKENS, chat, furnish, guides, ids, load

from trimtab import LLM, SamplingParams
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.guides.heads import ValueHead

STEP = {"separator": "never", "step_tokens": 4}
SEARCHES: dict[str, dict[str, Any]] = {
    "cbs": {"w": 2, "k": 2, "chunk": 4, "tuned": "tune", "untuned": "arm"},
    "cd_blockwise": {"k": 3, "block": 4, "value": "state"},
    "gsi": {"draft": "tune", "value": "state", "n": 3, "beta": 1.0, **STEP},
    "particle_filter": {
        "n": 4,
        "block": 4,
        "reward": {"sum": ["taste", {"guide": "state", "weight": 0.5}]},
        "ess": 1.0,
    },
    "ppo_mcts": {"value": "state", "simulations": 4, "k": 3},
    "qalign": {"steps": 4, "reward": "taste"},
    "rsd": {"draft": "arm", "value": "taste", "delta": 0.0, **STEP},
    "treebon": {"n": 4, "children": 2, "layers": 3, "dpo": "arm", "ref": "tune", "reward": "judge"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = furnish(tmp_path_factory.mktemp("search"))
    foreign_folder(place / "foreign", seed=10)
    return place


@pytest.fixture(scope="module")
def every(place: Path) -> dict[str, Any]:
    return {**guides(place), "foreign": {"role": "lm", "model": str(place / "foreign")}}


@pytest.fixture(scope="module")
def llm(place: Path, every: dict[str, Any]) -> Iterator[LLM]:
    with load(place / "base", every) as llm:
        yield llm


def logprob(model: Plain, prompt: list[int], answer: list[int]) -> float:
    return sum(float(model.logprobs([*prompt, *answer[:at]])[answer[at]]) for at in range(len(answer)))


def test_a_value_head_reads_what_the_plain_model_computes(llm: LLM, place: Path) -> None:
    result = chat(llm, {"strategy": "best_of_n", "n": 4, "reward": "state"}, DRAWN)
    base = Plain(place / "base")
    head = ValueHead.load(place / "state.safetensors", base.model.config.hidden_size, base.model.config.vocab_size)
    answer = ids(result)
    with torch.no_grad():
        output = base.model(torch.tensor([[*base_prompt("Hi"), *answer]]), output_hidden_states=True)
    reward = next(each.reward for each in result.candidates if each.choice == 0)
    assert reward == pytest.approx(float(head(output.hidden_states[-1][0, -1])), abs=1e-4)


@pytest.mark.parametrize(("tuned", "folder"), [("arm", "arm"), ("tune", "merged")])
def test_beams_are_scored_by_the_log_ratio_of_two_models(llm: LLM, place: Path, tuned: str, folder: str) -> None:
    """A model of its own and an adapter in the base's pool; against plain forwards of both."""
    result = chat(llm, {"strategy": "cbs", "w": 2, "k": 2, "chunk": 5, "tuned": tuned}, DRAWN)
    answer, prompt = ids(result), base_prompt("Hi")
    ratio = logprob(Plain(place / folder), prompt, answer) - logprob(Plain(place / "base"), prompt, answer)
    assert next(each.reward for each in result.candidates if each.choice == 0) == pytest.approx(ratio, abs=2e-3)


@pytest.mark.parametrize(("draft", "folder"), [("arm", "arm"), ("tune", "merged")])
def test_a_draft_that_is_always_kept_is_what_the_other_model_says(
    llm: LLM, place: Path, draft: str, folder: str
) -> None:
    decoding = {"strategy": "rsd", "draft": draft, "value": "brief", "delta": -1e4, **STEP}
    expected: list[int] = []
    plain = Plain(place / folder)
    for _ in range(TOKENS):
        expected.append(int(plain.logits([*base_prompt("Hi"), *expected]).argmax()))
    result = chat(llm, decoding)
    assert ids(result) == expected[: len(ids(result))]
    assert result.report["acceptance_rate"] == 1.0


def test_a_draft_that_is_never_kept_leaves_no_mark(llm: LLM) -> None:
    decoding = {"strategy": "rsd", "draft": "tune", "value": "brief", "delta": 1e4, **STEP}
    assert ids(chat(llm, decoding)) == ids(chat(llm, None))


def test_a_model_of_another_vocabulary_rewrites(llm: LLM) -> None:
    result = chat(llm, {"strategy": "refine", "guide": "foreign", "reward": "brief", "n": 2}, DRAWN)
    assert len(result.candidates) == 3
    assert result.usage.model_tokens["foreign"] > 0
    best = max(result.candidates, key=lambda each: each.reward or -1e9)
    assert result.choices[0].text == best.text


@pytest.mark.parametrize("name", SEARCHES)
def test_a_small_pool_changes_nothing(name: str, llm: LLM, place: Path, every: dict[str, Any]) -> None:
    """Sequences lose their pages in the middle of a search and are computed again."""
    decoding = {"strategy": name, **SEARCHES[name]}
    few = {key: {**each, "pool_tokens": 96} if key in ("arm", "taste") else each for key, each in every.items()}
    with load(place / "base", few, pool_tokens=136, prefix_cache=False) as narrow:
        tight = chat(narrow, decoding, DRAWN)
    assert tight.usage.preemptions or name not in ("cbs", "treebon")  # the others need less
    wide = chat(llm, decoding, DRAWN)
    assert [choice.token_ids for choice in tight.choices] == [choice.token_ids for choice in wide.choices]
    assert [each.text for each in tight.candidates] == [each.text for each in wide.candidates]
    for found, expected in zip(tight.candidates, wide.candidates, strict=True):
        assert found.reward == pytest.approx(expected.reward, abs=1e-4)
        assert found.value == pytest.approx(expected.value, abs=1e-4)


@pytest.mark.parametrize("name", SEARCHES)
def test_an_edited_request_is_searched_like_any_other(name: str, llm: LLM) -> None:
    """Penalties, filters and a temperature, under a control vector."""
    others = name in ("gsi", "rsd")
    sampling = SamplingParams(
        temperature=0.7,
        top_p=0.9,
        top_k=40,
        repetition_penalty=1.2,
        max_tokens=TOKENS,
        seed=3,
        logprobs=None if others else 1,
    )
    decoding = {"strategy": name, **SEARCHES[name], "steer": [{"method": "control_vector", "vector": "calm"}]}
    (choice,) = chat(llm, decoding, sampling).choices
    assert choice.token_ids
    if not others:
        assert choice.logprobs is not None
        assert len(choice.logprobs) == len(choice.token_ids)


@pytest.mark.parametrize(
    "decoding",
    [
        {"strategy": "rsd", **SEARCHES["rsd"]},
        {"strategy": "gsi", **SEARCHES["gsi"]},
        {"strategy": "refine", "guide": "foreign", "instruction": "Shorter."},
    ],
)
def test_log_probabilities_of_what_another_model_wrote_are_refused(decoding: dict[str, Any], llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="another model may write") as caught:
        chat(llm, decoding, DRAWN.model_copy(update={"logprobs": 0}))
    assert caught.value.param == "logprobs"
    if decoding["strategy"] != "rsd":
        own = {**decoding, "draft" if decoding["strategy"] == "gsi" else "guide": "base"}
        assert chat(llm, own, DRAWN.model_copy(update={"logprobs": 0})).choices[0].logprobs


def test_greedy_searches_without_a_choice_say_what_the_model_says(llm: LLM) -> None:
    for name in ("cd_blockwise", "particle_filter", "qalign"):
        assert ids(chat(llm, {"strategy": name, **SEARCHES[name]}, GREEDY)) == ids(chat(llm, None, GREEDY)), name
