"""Which answers an adapter learns from: pairs of the data, rated ones, and those the engine samples."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from taught import KINDS
from tiny import tiny_folder

from trimtab.engine.guides.card import Card
from trimtab.engine.vocabulary import Message
from trimtab.training import answers
from trimtab.training.answers import Answers, open_answers
from trimtab.training.errors import DataError
from trimtab.training.options import ArmOptions
from trimtab.training.rollouts import Rollout


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "base")


def read(base: Path, place: Path, lines: Sequence[dict[str, Any]], **sampled: Any) -> Answers:
    data = place / "data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = {"out": place / "out", "data": data, "base": str(base), "device": "cpu", "sampled": sampled}
    return open_answers(ArmOptions.model_validate(given))


def rated(prompt: str, **scores: float) -> list[dict[str, Any]]:
    return [{"prompt": prompt, "answer": answer, "score": score} for answer, score in scores.items()]


def texts(found: Answers, rows: Sequence[Any]) -> list[str]:
    return [found.loaded.tokenizer.decode(row.ids[row.start :], skip_special_tokens=True) for row in rows]


def test_pairs_of_the_data(base: Path, tmp_path: Path) -> None:
    lines = [{"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "c", "rejected": "d"}]
    found = read(base, tmp_path, lines)
    pairs = found.contrasts()
    assert texts(found, [pair.chosen for pair in pairs]) == ["a", "c"]
    assert texts(found, [pair.rejected for pair in pairs]) == ["b", "d"]
    assert texts(found, [each.row for each in found.imitated("best", 0.25)]) == ["a", "c"]
    assert texts(found, [each.row for each in found.imitated("worst", 0.25)]) == ["b", "d"]
    assert (found.preferences, found.policy, found.records) == (True, None, 2)
    assert all(pair.chosen.ids[-1] == 256 for pair in pairs)  # the EOS is part of the answer


def test_rated_answers_are_compared_within_their_prompt(base: Path, tmp_path: Path) -> None:
    found = read(base, tmp_path, [*rated("p", a=1, b=3, c=2, d=0), *rated("q", e=-1, f=-2)])
    assert [texts(found, pair[2:]) for pair in found.contrasts()] == [["b", "d"], ["e", "f"]]
    assert [pair.record for pair in found.contrasts()] == [1, 4]
    assert texts(found, [each.row for each in found.imitated("best", 0.5)]) == ["b", "c", "e"]
    assert texts(found, [each.row for each in found.imitated("worst", 0.25)]) == ["d", "f"]
    assert len(found.imitated("best", 1.0)) == 6


def test_single_answers_are_compared_with_one_another(base: Path, tmp_path: Path) -> None:
    lines = [line for number in range(8) for line in rated(f"q{number}", **{f"a{number}": number})]
    found = read(base, tmp_path, lines)
    assert texts(found, [each.row for each in found.imitated("best", 0.25)]) == ["a7", "a6"]


def test_texts_of_their_own(base: Path, tmp_path: Path) -> None:
    found = read(base, tmp_path, [{"text": text, "score": score} for text, score in (("up", 2), ("down", 1))])
    assert texts(found, [each.row for each in found.imitated("worst", 0.5)]) == ["down"]


def test_prompts_whose_answers_tie_are_skipped_and_counted(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read(base, tmp_path, [*rated("p", a=1, b=1), *rated("q", c=0, d=1), *rated("r", e=2)])
    assert [texts(found, pair[2:]) for pair in found.contrasts()] == [["d", "c"]]
    assert "2 of 3 prompts skipped: their answers score the same" in capsys.readouterr().out
    with pytest.raises(DataError, match="the answers to each of 1 prompts score the same: add answers that differ"):
        read(base, tmp_path, rated("p", a=1, b=1)).contrasts()
    with pytest.raises(DataError, match="score the same"):
        read(base, tmp_path, rated("p", a=1, b=1)).imitated("best", 0.5)


def sampled(*arguments: Any, seed: int) -> list[Rollout]:
    """Three answers to each prompt, with the rewards 0, 1 and 2 in an order of the prompt."""
    _, _, prompts = arguments
    return [
        Rollout(prompt, (7, 8), (20 + reward, 256) if reward else (20,), "", float(reward))
        for place, prompt in enumerate(prompts)
        for reward in ((0, 1, 2), (2, 0, 1))[place % 2]
    ]


def test_sampled_answers_are_learned_as_they_were_decoded(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Message, ...]] = []

    def sampling(*arguments: Any, seed: int) -> list[Rollout]:
        asked.extend(arguments[2])
        return sampled(*arguments, seed=seed)

    monkeypatch.setattr(answers, "rollouts", sampling)
    found = read(base, tmp_path, [{"prompt": "p"}, {"prompt": "q"}], reward="judge", answers=3)
    assert [prompt[0]["content"] for prompt in asked] == ["p", "q"]
    pairs = found.contrasts()
    # The cut answer got no EOS.
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [(([7, 8, 22, 256], 2), ([7, 8, 20], 2))] * 2
    assert [pair.record for pair in pairs] == [0, 1]
    assert found.policy is not None
    assert "3 answers" in found.policy


def test_the_card_says_who_wrote_the_answers(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "rollouts", sampled)
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"q{number}"}) + "\n" for number in range(6)))
    for kind in ("arm", "sft", "dpo"):
        KINDS[kind].run(base, tmp_path / kind, data=data, sampled={"reward": "judge", "answers": 3})
        card = Card.load(tmp_path / kind)
        assert card is not None
        assert card.policy is not None
        assert "3 answers" in card.policy


def test_other_sampled_answers_are_another_run(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [{"prompt": "p"}, {"prompt": "q"}]
    monkeypatch.setattr(answers, "rollouts", sampled)
    told = read(base, tmp_path, lines, reward="judge", answers=3).settings
    assert read(base, tmp_path, lines, reward="judge", answers=3).settings == told
    monkeypatch.setattr(answers, "rollouts", lambda *arguments, seed: sampled(*arguments, seed=seed)[::-1])
    assert read(base, tmp_path, lines, reward="judge", answers=3).settings != told
