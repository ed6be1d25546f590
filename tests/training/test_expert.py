"""Experts: imitation and DPO, their metrics, and options that would do nothing."""

import math
from pathlib import Path

import pytest
from pydantic import ValidationError
from taught import KINDS, RATINGS, Kind, weights
from tiny import tiny_folder

from trimtab.training.errors import DataError
from trimtab.training.expert import train_expert
from trimtab.training.options import ExpertOptions

RATED = Kind(train_expert, ExpertOptions, RATINGS, {"method": "sft", "share": 0.5})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "base")


def test_imitation_makes_held_out_answers_likelier(base: Path, tmp_path: Path) -> None:
    card = KINDS["sft"].run(base, tmp_path / "out", schedule={"epochs": 4})
    assert (card.kind, card.policy) == ("expert", None)
    assert card.metrics.keys() == {"train_loss", "loss", "perplexity"}
    assert card.metrics["loss"] < math.log(272) / 2  # of 272 tokens, each as likely
    assert card.metrics["perplexity"] == pytest.approx(math.exp(card.metrics["loss"]), rel=1e-3)


def test_dpo_starts_at_the_base_and_learns_to_prefer(base: Path, tmp_path: Path) -> None:
    still = KINDS["dpo"].run(base, tmp_path / "still", schedule={"lr": 1e-30, "epochs": 1})
    assert still.metrics["loss"] == pytest.approx(math.log(2), abs=1e-3)  # no margin over the reference yet
    assert still.metrics["accuracy"] == 0.5
    card = KINDS["dpo"].run(base, tmp_path / "out", schedule={"epochs": 4})
    assert card.metrics["accuracy"] == 1.0
    assert card.metrics["loss"] < 0.6
    assert card.metrics["margin"] > 0.0


def test_keep_share_and_beta_change_the_result(base: Path, tmp_path: Path) -> None:
    RATED.run(base, tmp_path / "best")
    RATED.run(base, tmp_path / "worst", keep="worst")
    RATED.run(base, tmp_path / "all", share=1.0)
    KINDS["dpo"].run(base, tmp_path / "dpo")
    KINDS["dpo"].run(base, tmp_path / "strict", beta=1.0)
    names = ("best", "worst", "all", "dpo", "strict")
    assert len({weights(tmp_path / name) for name in names}) == len(names)


def test_an_anti_expert_imitates_the_rejected_answers(base: Path, tmp_path: Path) -> None:
    KINDS["sft"].run(base, tmp_path / "chosen")
    KINDS["sft"].run(base, tmp_path / "rejected", keep="worst")
    assert weights(tmp_path / "chosen") != weights(tmp_path / "rejected")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"method": "dpo", "keep": "worst"}, "leave them out for method dpo"),
        ({"method": "dpo", "share": 0.5}, "leave them out for method dpo"),
        ({"beta": 0.5}, "beta is of method dpo"),
    ],
)
def test_options_that_would_do_nothing_are_refused(given: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        ExpertOptions.model_validate({"out": "o", "data": "d", **given})


def test_share_of_a_pair_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--share chooses among rated or sampled answers"):
        KINDS["sft"].run(base, tmp_path / "out", share=0.5)
