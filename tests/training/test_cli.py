"""`trimtab train`: what is generated from the options reaches the training, and errors name the option."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trimtab.engine.guides.card import Card
from trimtab.training import cli
from trimtab.training.errors import TrainingError
from trimtab.training.options import ArmOptions, ExpertOptions, RewardOptions, Source, ValueOptions

RUN = CliRunner()
PLACES = ["--data", "pairs.jsonl", "--out", "guides/mine"]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Source]:
    """What would have been trained."""
    runs: list[Source] = []
    monkeypatch.setattr(cli, "train", runs.append)
    return runs


def test_every_kind_of_card_has_a_command() -> None:
    kinds = Card.model_fields["kind"].annotation
    assert {cli.kind_of(options) for options in cli.KINDS} == set(kinds.__args__)
    assert {command.name for command in cli.app.registered_commands} == set(kinds.__args__)


def test_defaults_are_those_of_the_options(trained: list[Source]) -> None:
    assert RUN.invoke(cli.app, ["reward", *PLACES]).exit_code == 0
    assert trained == [RewardOptions(data=Path("pairs.jsonl"), out=Path("guides/mine"))]


def test_flags_of_nested_options_are_flat(trained: list[Source]) -> None:
    flags = ["--lr", "0.01", "--rank", "2", "--layers", "3-4", "--reward", "demo:positivity", "--answers", "5"]
    assert RUN.invoke(cli.app, ["arm", *PLACES, *flags, "--beta", "0.2", "--base", "folder"]).exit_code == 0
    (options,) = trained
    assert isinstance(options, ArmOptions)
    assert (options.schedule.lr, options.schedule.epochs) == (0.01, ArmOptions.model_fields["schedule"].default.epochs)
    assert (options.lora.rank, options.lora.layers) == (2, "3-4")
    assert (options.sampled.reward, options.sampled.answers) == ("demo:positivity", 5)
    assert (options.beta, options.base) == (0.2, "folder")


def test_switches(trained: list[Source]) -> None:
    assert RUN.invoke(cli.app, ["value", *PLACES, "--tokens", "--method", "td", "--restart"]).exit_code == 0
    (options,) = trained
    assert isinstance(options, ValueOptions)
    assert (options.tokens, options.method, options.restart) == (True, "td", True)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["reward", "--out", "x"], "--data"),
        (["reward", *PLACES, "--lr", "-1"], "--lr: Input should be greater than 0"),
        (["reward", *PLACES, "--held-out", "1"], "--held-out: Input should be less than 1"),
        (["value", *PLACES, "--method", "magic"], "magic"),
        (["reward", *PLACES, "--learning-rate", "1"], "--learning-rate"),
        (["expert", *PLACES, "--method", "dpo", "--keep", "best"], "leave them out for method dpo"),
    ],
)
def test_wrong_options_are_told(trained: list[Source], arguments: list[str], told: str) -> None:
    result = RUN.invoke(cli.app, arguments, env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 2
    assert told in result.output
    assert not trained


def test_ends_with_what_the_configuration_needs(trained: list[Source]) -> None:
    assert "mine: {role: lm, model: guides/mine}" in RUN.invoke(cli.app, ["expert", *PLACES]).output
    assert "mine: {role: value, model: guides/mine}" in RUN.invoke(cli.app, ["value", *PLACES]).output


def test_errors_of_training_are_one_line(tmp_path: Path) -> None:
    result = RUN.invoke(cli.app, ["reward", "--data", str(tmp_path / "none.jsonl"), "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert result.output == f"trimtab: cannot read {tmp_path / 'none.jsonl'}: No such file or directory\n"


def test_training_without_peft_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = ("peft", "trimtab.training.expert", "trimtab.training.lora")
    for name in [name for name in sys.modules if name.startswith(gone)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_NoPeft(), *sys.meta_path])
    with pytest.raises(TrainingError, match=r"pip install 'trimtab\[train\]'"):
        cli.train(ExpertOptions(data=Path("x"), out=Path("y")))


class _NoPeft:
    """Finds no package called peft, as on a machine without it."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "peft" or name.startswith("peft."):
            raise ModuleNotFoundError(f"No module named {name!r}", name="peft")
