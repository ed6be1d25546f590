"""Sampled answers with their rewards: the order, the cache, and what makes new ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
from folders import classifier_folder
from steered import load
from tiny import VOCAB, tiny_folder

from trimtab.engine.guides.config import ValueConfig
from trimtab.engine.guides.heads import ValueHead
from trimtab.engine.rewards import Pair
from trimtab.training import rollouts as module
from trimtab.training.errors import DataError, TrainingError
from trimtab.training.options import Sampled, ValueOptions
from trimtab.training.rollouts import Rollout, checksum, content, policy, rollouts

PROMPTS = [({"role": "user", "content": text},) for text in ("one", "two", "three", "one")]
EOS = 256


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rollouts")
    tiny_folder(folder / "base")
    classifier_folder(folder / "taste", seed=4)
    return folder


def source(place: Path, out: str = "out") -> ValueOptions:
    return ValueOptions(out=place / out, data=place / "unread", base=str(place / "base"), device="cpu")


def sampled(place: Path, **changes: Any) -> Sampled:
    return Sampled(**{"reward": str(place / "taste"), "answers": 3, "max_tokens": 5, **changes})


@pytest.fixture(scope="module")
def found(place: Path) -> list[Rollout]:
    return rollouts(source(place), sampled(place), PROMPTS, seed=0)


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model is an error."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(module, "LLM", refuse)


def test_answers_are_in_the_order_of_their_prompts_with_their_rewards(place: Path, found: list[Rollout]) -> None:
    assert [each.messages for each in found] == [prompt for prompt in PROMPTS for _ in range(3)]
    with load(place / "base", {"taste": {"role": "reward", "model": str(place / "taste")}}) as llm:
        told = llm.score("taste", [Pair(each.messages, each.answer) for each in found])
        assert [each.reward for each in found] == pytest.approx(told, abs=1e-4)
        for each in found:
            assert list(each.prompt_ids) == llm.vocabulary.chat(each.messages)
            assert each.answer == llm.vocabulary.decode(each.tokens)
            assert 1 <= len(each.tokens) <= 5
            assert len(each.tokens) == 5 or each.tokens[-1] == EOS
            assert EOS not in each.tokens[:-1]


def test_a_prompt_that_comes_twice_is_answered_anew(found: list[Rollout]) -> None:
    assert [each.tokens for each in found[:3]] != [each.tokens for each in found[9:]]


def test_a_second_run_samples_nothing(place: Path, found: list[Rollout], unloaded: None) -> None:
    assert rollouts(source(place), sampled(place), PROMPTS, seed=0) == found


def test_other_guides_share_a_cache(place: Path, found: list[Rollout], unloaded: None) -> None:
    shared = sampled(place, cache=place / "out" / "rollouts")
    assert rollouts(source(place, "elsewhere"), shared, PROMPTS, seed=0) == found


def test_the_same_seed_samples_the_same(place: Path, found: list[Rollout]) -> None:
    again = rollouts(source(place, "again"), sampled(place), PROMPTS, seed=0)
    assert again == found
    assert checksum(again) == checksum(found)
    assert checksum(again[1:]) != checksum(found)


@pytest.mark.parametrize(
    "change", [{"answers": 2}, {"max_tokens": 4}, {"temperature": 0.5}, {"seed": 1}, {"prompts": PROMPTS[:2]}], ids=str
)
def test_everything_that_decides_answers_makes_new_ones(
    place: Path, found: list[Rollout], unloaded: None, change: dict[str, Any]
) -> None:
    how = {"seed": 0, **{key: change[key] for key in change.keys() & {"seed"}}}
    other = sampled(place, **{key: change[key] for key in change.keys() & Sampled.model_fields.keys()})
    with pytest.raises(AssertionError, match="a model was loaded"):
        rollouts(source(place), other, change.get("prompts", PROMPTS), **how)


def test_another_reward_in_the_same_folder_scores_anew(
    place: Path, found: list[Rollout], unloaded: None, tmp_path: Path
) -> None:
    classifier_folder(tmp_path / "taste", seed=4)
    assert rollouts(source(place), sampled(place, reward=str(tmp_path / "taste")), PROMPTS, seed=0) == found
    classifier_folder(tmp_path / "taste", seed=4, scale=0.7)
    with pytest.raises(AssertionError, match="a model was loaded"):
        rollouts(source(place), sampled(place, reward=str(tmp_path / "taste")), PROMPTS, seed=0)


def test_guides_steer_the_answers(place: Path, found: list[Rollout]) -> None:
    letter = torch.zeros(VOCAB)
    letter[64] = 100.0  # "a"
    ValueHead([torch.zeros(VOCAB, 48)], [letter]).save(place / "a.safetensors")
    guides = {"mine": ValueConfig(model=str(place / "a.safetensors"))}
    decoding = {"strategy": "cd", "value": "mine", "lam": 1.0}
    steered = rollouts(source(place), sampled(place), PROMPTS, seed=0, decoding=decoding, guides=guides)
    assert {each.tokens for each in steered} == {(64,) * 5}
    assert {each.answer for each in steered} == {"aaaaa"}


def test_a_broken_write_leaves_no_cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(TrainingError, match="free some"):
        rollouts(source(place, "full"), sampled(place), PROMPTS, seed=0)
    assert list((place / "full" / "rollouts").iterdir()) == []


def test_without_a_reward_there_is_nothing_to_learn(place: Path, unloaded: None) -> None:
    with pytest.raises(DataError, match="pass --reward"):
        rollouts(source(place), sampled(place, reward=None), PROMPTS, seed=0)


def test_the_policy_is_told_without_the_place_of_the_base(place: Path) -> None:
    told = policy(source(place), sampled(place, temperature=0.7), {"strategy": "cd", "lam": 2.0})
    assert told == "base, strategy cd, lam 2.0, temperature 0.7, 3 answers of at most 5 tokens for each prompt"


def test_the_content_of_a_guide_is_its_weights(tmp_path: Path) -> None:
    assert content("org/model") == "org/model"
    one, two = (classifier_folder(tmp_path / name, seed=4) for name in ("one", "two"))
    (two / "card.json").write_text("{}")
    (two / "report.json").write_text("{}")
    assert content(str(one)) == content(str(two))
    (two / "chat_template.jinja").write_text("other")
    assert content(str(one)) != content(str(two))
