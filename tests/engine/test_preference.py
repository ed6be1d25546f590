"""Preference heads: their files, and the weights that they give to a prompt."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trimtab.engine.errors import ModelLoadError
from trimtab.engine.guides.preference import FORMAT, PreferenceHead

WIDTH = 4
HEAD = PreferenceHead(("kind", "short"), torch.tensor([[1.0, 0, 0, 0], [0, 2.0, 0, 0]]), torch.tensor([0.0, 0.5]))


def test_weights_are_the_softmax_of_a_linear_map() -> None:
    hidden = torch.tensor([[3.0, 1.0, 9.0, 9.0], [0.0, 0.0, 9.0, -9.0]])
    odds = torch.tensor([3.0 - 2.5, 0.0 - 0.5]).exp()  # of the first against the second
    assert torch.allclose(HEAD(hidden), torch.stack((odds / (1 + odds), 1 / (1 + odds)), dim=1))


def test_a_head_comes_back_from_its_file(tmp_path: Path) -> None:
    HEAD.save(tmp_path / "head.safetensors")
    head = PreferenceHead.load(tmp_path / "head.safetensors", WIDTH)
    assert head.rewards == HEAD.rewards
    assert torch.equal(head.weight, HEAD.weight)
    assert torch.equal(head.bias, HEAD.bias)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "another"}, "is not a preference head: make one with trimtab train preference"),
        ({"weight": torch.ones(2, 5)}, "reads hidden states of 5 and the base has 4: fit one on this base"),
        ({"bias": torch.tensor([0.0, float("nan")])}, "has weights that are not finite: fit it again"),
        ({"more": torch.ones(1)}, "is not a preference head"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "head.safetensors"
    metadata = {"format": FORMAT, "rewards": json.dumps(HEAD.rewards)}
    tensors = {"weight": HEAD.weight, "bias": HEAD.bias}
    for name, value in change.items():
        (metadata if isinstance(value, str) else tensors)[name] = value  # type: ignore[index]
    save_file(tensors, path, metadata)
    with pytest.raises(ModelLoadError, match=message):
        PreferenceHead.load(path, WIDTH)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"none cannot be read .*: pass a folder that trimtab train preference"):
        PreferenceHead.load(tmp_path / "none", WIDTH)
