"""Adapters with a block for each attribute: what a preference scales, what is learned, and runs that go on."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from line import Interrupted
from taught import weights
from tiny import tiny_folder

from trimtab.engine.guides.adapters import load_lora
from trimtab.engine.guides.card import Card
from trimtab.engine.loading import load_causal_lm
from trimtab.training import loop
from trimtab.training.checkpoint import NAME
from trimtab.training.errors import DataError, TrainingError
from trimtab.training.lora import Adapted
from trimtab.training.options import Lora, PanaceaOptions
from trimtab.training.panacea import Blocks, train_panacea
from trimtab.training.rows import Row

WORDS = {"brevity": ("no", "not at all"), "warmth": ("dear", "sir")}
"""the better and the worse answer by each attribute"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    (place / "data").mkdir()
    for count, (name, (chosen, rejected)) in zip((8, 12), WORDS.items(), strict=True):
        lines = [{"prompt": f"q{i}", "chosen": f"{chosen}{i % 3}", "rejected": rejected} for i in range(count)]
        (place / "data" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tiny_folder(place / "base")


def told(base: Path, out: Path, **changes: Any) -> PanaceaOptions:
    schedule = {"epochs": 2, "batch": 3, "lr": 1e-2, **changes.pop("schedule", {})}
    lora = {"rank": 5, "alpha": 10, **changes.pop("lora", {})}
    given = {"out": out, "data": base.parent / "data", "base": str(base), "device": "cpu", **changes}
    return PanaceaOptions.model_validate(given | {"schedule": schedule, "lora": lora})


def run(base: Path, out: Path, **changes: Any) -> Card:
    return train_panacea(told(base, out, **changes))


@pytest.fixture(scope="module")
def whole(base: Path) -> Path:
    """The folder of an uninterrupted run."""
    run(base, base.parent / "whole")
    return base.parent / "whole"


def test_it_starts_at_the_base_and_learns_each_attribute(base: Path, tmp_path: Path) -> None:
    still = run(base, tmp_path / "still", schedule={"lr": 1e-30, "epochs": 1})
    assert still.metrics["loss"] == pytest.approx(math.log(2), abs=1e-3)  # no margin over the reference yet
    card = run(base, tmp_path / "out", schedule={"epochs": 4})
    assert card.kind == "panacea"
    assert card.metrics["loss"] < 0.6
    for name in WORDS:
        assert card.metrics[f"{name}_accuracy"] == 1.0
        assert card.metrics[f"{name}_margin"] > card.metrics[f"{name}_margin_even"] > 0


def test_the_folder_says_which_dimensions_belong_to_whom(base: Path, whole: Path) -> None:
    loaded = load_causal_lm(str(base), device="cpu")
    adapter = load_lora(whole, loaded.model)
    assert adapter.blocks == {"general": 1, "brevity": 2, "warmth": 2}
    assert all(len(down) == 5 for down, _ in adapter.factors.values())
    assert all(up[:, 1:].any(dim=0).all() for _, up in adapter.factors.values())  # every block has learned


def test_a_preference_scales_the_blocks_alone(base: Path, whole: Path) -> None:
    """The training's own forward equals one with the scales in the factors."""
    row = [Row([1, 5, 9, 7, 3], 2)]
    preference = torch.tensor([0.25, 0.75])

    def adapted() -> Adapted:
        made = Adapted(load_causal_lm(str(base), device="cpu"), Lora(rank=5, alpha=10), 0)
        with torch.no_grad():
            for name, value in made.parameters.items():
                if "lora_B" in name:
                    value.copy_(torch.linspace(-1, 1, value.numel()).view_as(value))
        return made

    one, other = adapted(), adapted()
    blocks = Blocks(one, 1, 2, 2)
    unscaled = one.sums(row, 1)
    with blocks.scaled(preference):
        got = one.sums(row, 1)
    with torch.no_grad():
        for name, value in other.parameters.items():
            if "lora_A" in name:
                value.mul_(torch.tensor([1.0, 0.25, 0.25, 0.75, 0.75])[:, None])
    torch.testing.assert_close(got, other.sums(row, 1), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(got, unscaled, rtol=1e-3)
    assert torch.equal(one.sums(row, 1), unscaled)


def test_an_interrupted_run_gives_the_same_bytes(
    base: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = loop._step

    def interrupted(*arguments: Any) -> float:
        if arguments[-1] == 3:
            raise Interrupted
        return step(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "CHECKPOINT_STEPS", 2)
        patched.setattr(loop, "_step", interrupted)
        with pytest.raises(Interrupted):
            run(base, tmp_path / "out")
    assert (tmp_path / "out" / NAME).is_file()
    torch.manual_seed(99)  # what was drawn before does not matter
    run(base, tmp_path / "out")
    assert weights(tmp_path / "out") == weights(whole)
    assert (tmp_path / "out" / "report.json").read_text() == (whole / "report.json").read_text()


def test_every_option_changes_the_result(base: Path, whole: Path, tmp_path: Path) -> None:
    changes: dict[str, dict[str, Any]] = {
        "block": {"block": 1},
        "concentration": {"concentration": 0.1},
        "beta": {"beta": 1.0},
        "seed": {"schedule": {"seed": 1}},
    }
    found = {weights(whole)}
    for name, change in changes.items():
        run(base, tmp_path / name, **change)
        found.add((tmp_path / name / "preference_blocks.json").read_bytes() + weights(tmp_path / name))
    assert len(found) == 1 + len(changes)


def test_other_data_needs_a_restart(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for file in (base.parent / "data").iterdir():
        (data / file.name).write_text(file.read_text())
    with monkeypatch.context() as patched:
        patched.setattr(loop, "CHECKPOINT_STEPS", 1)
        patched.setattr(loop, "_end_epoch", lambda *arguments: (_ for _ in ()).throw(Interrupted))
        with pytest.raises(Interrupted):
            run(base, tmp_path / "out", data=data)
    lines = (data / "warmth.jsonl").read_text()
    (data / "warmth.jsonl").write_text(lines.replace("sir", "madam"))
    with pytest.raises(TrainingError, match="--restart"):
        run(base, tmp_path / "out", data=data)


def test_attributes_may_have_the_names_of_settings(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another `beta` is another run, where an attribute is called so too."""
    data = tmp_path / "data"
    data.mkdir()
    for name, file in zip(("beta", "block"), sorted((base.parent / "data").iterdir()), strict=True):
        (data / f"{name}.jsonl").write_text(file.read_text())
    with monkeypatch.context() as patched:
        patched.setattr(loop, "CHECKPOINT_STEPS", 1)
        patched.setattr(loop, "_end_epoch", lambda *arguments: (_ for _ in ()).throw(Interrupted))
        with pytest.raises(Interrupted):
            run(base, tmp_path / "out", data=data)
    with pytest.raises(TrainingError, match="--restart"):
        run(base, tmp_path / "out", data=data, beta=1.0)


def test_what_cannot_be_divided_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="2 attributes of --block 3 need --rank 6 at least"):
        run(base, tmp_path / "out", block=3)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "warmth.jsonl").touch()
    with pytest.raises(DataError, match=r"holds 1 files that end in .jsonl: a preference weighs at least two"):
        run(base, tmp_path / "out", data=tmp_path / "one")
