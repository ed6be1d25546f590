"""The recipe of the shipped guides, as far as it needs no ratings and no training."""

import json
from pathlib import Path

import pytest

from trimtab.training.demo import __main__ as recipe
from trimtab.training.demo import ratings
from trimtab.training.errors import DataError, TrainingError


def test_ratings_are_scaled_and_their_quotes_mended() -> None:
    table = "1\t-3.2\tA ''bad''  film.\r\n2\t4\tSplendid.\r\n"
    assert list(ratings._rated(table)) == [('A "bad" film.', -3.2), ("Splendid.", 4.0)]


def test_another_distribution_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ratings, "REQUIREMENT", "no-such-distribution-of-trimtab==0.0.1")
    with pytest.raises(DataError, match=r"pip could not fetch .*no-such-distribution"):
        ratings.write_ratings(tmp_path / "ratings.jsonl")
    assert not (tmp_path / "ratings.jsonl").exists()


def test_opposites_pair_the_best_with_the_worst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [{"text": f"text {score} that is long enough to count here ........", "score": score} for score in range(9)]
    (tmp_path / "ratings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(recipe, "RATINGS", tmp_path / "ratings.jsonl")
    monkeypatch.setattr(recipe, "OPPOSITES", tmp_path / "opposites.jsonl")
    recipe._write_opposites(3)
    pairs = [json.loads(line) for line in (tmp_path / "opposites.jsonl").read_text().splitlines()]
    assert sorted(int(pair["chosen"].split()[1]) for pair in pairs) == [6, 7, 8]
    assert sorted(int(pair["rejected"].split()[1]) for pair in pairs) == [0, 1, 2]


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
