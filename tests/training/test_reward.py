"""The reward model: what it learns from ratings, prefixes and pairs, and data it cannot learn from."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from taught import KINDS, RATINGS, weights
from tiny import tiny_folder

from trimtab.engine.errors import ModelLoadError
from trimtab.engine.loading import load_causal_lm
from trimtab.engine.rewards import Pair
from trimtab.training.errors import DataError, TrainingError
from trimtab.training.reward import Reader

USER = ({"role": "user", "content": "Hi"},)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "base")


def written(file: Path, lines: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.mark.parametrize("kind", ["ratings", "prefixes"])
def test_ratings_are_learned(base: Path, tmp_path: Path, kind: str) -> None:
    card = KINDS[kind].run(base, tmp_path / "out", schedule={"epochs": 8, "patience": 8}, held_out=0.3)
    assert card.kind == "reward"
    assert card.metrics.keys() == {"train_loss", "loss", "spearman", "calibration_error"}
    assert card.metrics["loss"] < 0.5  # 1 without a guess
    assert card.metrics["spearman"] > 0.7


def test_preferences_are_learned(base: Path, tmp_path: Path) -> None:
    card = KINDS["preferences"].run(base, tmp_path / "out", schedule={"epochs": 6, "patience": 6})
    assert card.metrics.keys() == {"train_loss", "loss", "accuracy", "margin", "calibration_error"}
    assert card.metrics["accuracy"] == 1.0
    assert card.metrics["loss"] < math.log(2)


def test_prefixes_and_template_change_the_result(base: Path, tmp_path: Path) -> None:
    template = tmp_path / "alone.jinja"
    template.write_text("{{ messages[-1].content }}")
    KINDS["ratings"].run(base, tmp_path / "whole")
    KINDS["prefixes"].run(base, tmp_path / "prefixes")
    KINDS["ratings"].run(base, tmp_path / "alone", chat_template=template)
    assert len({weights(tmp_path / name) for name in ("whole", "prefixes", "alone")}) == 3
    assert (tmp_path / "alone" / "chat_template.jinja").read_text() == template.read_text()
    KINDS["ratings"].run(base, tmp_path / "alone")
    assert not (tmp_path / "alone" / "chat_template.jinja").exists()  # or the new reward would read under it
    assert not (tmp_path / "whole" / "chat_template.jinja").exists()


def test_held_out_share_changes_the_result(base: Path, tmp_path: Path) -> None:
    KINDS["ratings"].run(base, tmp_path / "few")
    KINDS["ratings"].run(base, tmp_path / "many", held_out=0.5)
    assert weights(tmp_path / "few") != weights(tmp_path / "many")


def test_scores_of_one_class_are_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    data = written(tmp_path / "one.jsonl", [{**line, "score": 1.0} for line in RATINGS])
    with pytest.raises(DataError, match="all 12 scores are 1: add examples of other scores"):
        KINDS["ratings"].run(tmp_path / "nowhere", tmp_path / "out", data=data)


def test_prefixes_of_pairs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="leave --prefixes out"):
        KINDS["preferences"].run(tmp_path / "nowhere", tmp_path / "out", prefixes=True)


def test_template_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="No such file"):
        KINDS["ratings"].run(tmp_path / "nowhere", tmp_path / "out", chat_template=tmp_path / "none.jinja")


def test_scores_beyond_float32_stop_with_step_and_examples(base: Path, tmp_path: Path) -> None:
    data = written(tmp_path / "poisoned.jsonl", [*RATINGS, {"text": "it is huge", "score": 1e300}])
    with pytest.raises(
        TrainingError, match=r"the loss is inf at step \d+, on examples .*13.*the last checkpoint is kept"
    ):
        KINDS["ratings"].run(base, tmp_path / "out", data=data, schedule={"seed": 0})


def test_answer_begins_where_the_template_puts_it(base: Path) -> None:
    reader = Reader(load_causal_lm(str(base)), "{% for m in messages %}[{{ m.content }}]{% endfor %}")
    pair = Pair(USER, "Yes")
    ids = reader.ids(pair)
    start = reader.start(pair, ids)
    spelled = reader.ids(Pair((), "Yes"))
    assert ids[start - 1 :] == spelled
    assert start == len("[Hi][")
    assert torch.tensor(ids).numel() == len("[Hi][Yes]")
