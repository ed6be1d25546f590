"""The recipe of the shipped guides, as far as it needs no ratings and no training."""

import json
from pathlib import Path

import pytest

from trimtab.engine.vocabulary import Message
from trimtab.training.demo import __main__ as recipe
from trimtab.training.demo import ratings
from trimtab.training.errors import DataError, TrainingError
from trimtab.training.rollouts import Rollout


def test_ratings_are_scaled_and_their_quotes_mended() -> None:
    table = "1\t-3.2\tA ''bad''  film.\r\n2\t4\tSplendid.\r\n"
    assert list(ratings._rated(table)) == [('A "bad" film.', -3.2), ("Splendid.", 4.0)]


def test_another_distribution_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ratings, "REQUIREMENT", "no-such-distribution-of-trimtab==0.0.1")
    with pytest.raises(DataError, match=r"pip could not fetch .*no-such-distribution"):
        ratings.write_ratings(tmp_path / "ratings.jsonl")
    assert not (tmp_path / "ratings.jsonl").exists()


def test_opposites_pair_the_best_with_the_worst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    question = (Message(role="user", content="Well?"),)
    rewards = [0.1, 0.7, -0.4, 0.2, 0.0, 0.3, 0.6, 0.5]
    found = [Rollout(question, (1,), (2,), f"answer {reward}", reward) for reward in rewards]
    monkeypatch.setattr(recipe, "rollouts", lambda *_, **__: found)
    monkeypatch.setattr(recipe, "OPPOSITES", tmp_path / "opposites.jsonl")
    recipe._write_opposites()
    (line,) = (tmp_path / "opposites.jsonl").read_text().splitlines()
    assert json.loads(line) == {"prompt": list(question), "chosen": "answer 0.7", "rejected": "answer -0.4"}


def test_unknown_guides_are_named() -> None:
    with pytest.raises(TrainingError, match="'positiv'"):
        recipe.main(["positiv"])


def test_only_what_loads_is_shipped(tmp_path: Path) -> None:
    made, shipped = tmp_path / "made", tmp_path / "shipped"
    (made / "rollouts").mkdir(parents=True)
    for name in ("card.json", "adapter_model.safetensors", "report.json"):
        (made / name).write_text(name)
    shipped.mkdir()
    (shipped / "left over").touch()
    recipe._ship(made, shipped)
    assert {file.name for file in shipped.iterdir()} == {"card.json", "adapter_model.safetensors"}
