"""Control vector files, GGUF and safetensors."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import save_file
from torch import Tensor

from trimtab.engine.errors import ModelLoadError
from trimtab.engine.guides.vectors import load_vectors

HIDDEN, LAYERS = 48, 3


def write_gguf(path: Path, tensors: Mapping[str, Tensor], architecture: str = "controlvector") -> None:
    writer = GGUFWriter(path, architecture)
    writer.add_string(f"{architecture}.model_hint", "llama")
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file(dict(tensors), path)


WRITERS: dict[str, Callable[[Path, Mapping[str, Tensor]], None]] = {
    "gguf": write_gguf,
    "safetensors": write_safetensors,
}
RAMP = torch.linspace(-1, 1, HIDDEN)


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_vectors_come_back_from_their_file(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    path = tmp_path / f"calm.{suffix}"
    WRITERS[suffix](path, {"direction.1": RAMP.to(dtype), "direction.-1": 2 * RAMP.to(dtype)})
    got = load_vectors(path, HIDDEN, LAYERS)
    assert got.keys() == {1, 2}
    assert got[1].dtype == torch.float32
    assert torch.equal(got[1], RAMP.to(dtype).float())
    assert torch.equal(got[2], 2 * RAMP.to(dtype).float())


def test_plain_layer_numbers_are_names(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "v.safetensors", {"0": RAMP, "-2": -RAMP})
    got = load_vectors(tmp_path / "v.safetensors", HIDDEN, LAYERS)
    assert got.keys() == {0, 1}
    assert torch.equal(got[1], -RAMP)


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"direction.1": torch.ones(64)}, "has dimension 64 at layer 1, the model 48"),
        ({"direction.1": torch.ones(2, 48)}, "has dimension 2x48 at layer 1, the model 48"),
        ({"direction.3": RAMP}, "is for layer 3, the model has 3"),
        ({"direction.-4": RAMP}, "is for layer -4, the model has 3"),
        ({"direction.2": RAMP, "direction.-1": RAMP.clone()}, "names layer 2 twice"),
        ({"bias.1": RAMP}, "holds 'bias.1'"),
        ({"direction.1": RAMP / 0}, "holds NaN or infinity at layer 1"),
        ({}, "holds no directions"),
    ],
)
def test_vectors_that_are_refused(tmp_path: Path, suffix: str, tensors: dict[str, Tensor], message: str) -> None:
    path = tmp_path / f"calm.{suffix}"
    WRITERS[suffix](path, tensors)
    with pytest.raises(ModelLoadError, match=f"^control vector {path} {message}.*: "):
        load_vectors(path, HIDDEN, LAYERS)


def test_files_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, {"direction.1": RAMP}, "llama")
    with pytest.raises(ModelLoadError, match="is a GGUF file of a llama model: pass a control vector"):
        load_vectors(path, HIDDEN, LAYERS)
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(ModelLoadError, match="truncated or corrupt GGUF file"):
        load_vectors(path, HIDDEN, LAYERS)
    for other in ("none.gguf", "calm.bin"):
        with pytest.raises(ModelLoadError, match=r"is no \.gguf or \.safetensors file: pass the path of one"):
            load_vectors(tmp_path / other, HIDDEN, LAYERS)
