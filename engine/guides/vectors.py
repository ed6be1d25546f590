"""Control vectors from files: GGUF as repeng and llama.cpp write it, or safetensors."""

import re
from pathlib import Path
from typing import Final

import torch
from gguf import GGUFReader, dequantize
from safetensors.torch import load_file
from torch import Tensor

from trimtab.engine.errors import ModelLoadError
from trimtab.engine.sources import safetensors_header

_NAME: Final = re.compile(r"(direction\.)?(?P<layer>-?\d+)")


def load_vectors(path: Path, hidden_size: int, layers: int) -> dict[int, Tensor]:
    """The directions (D,) float32 of a control vector by decoder layer, 0 to `layers - 1`, to add to its output.

    Tensors are called `direction.{layer}`, in safetensors also `{layer}`; negative layers count from the end.
    Raises ModelLoadError for files that hold something else, or that were made for another model.
    """
    if not path.is_file() or path.suffix not in (".gguf", ".safetensors"):
        raise ModelLoadError(
            f"control vector {path} is no .gguf or .safetensors file: pass the path of one, or a folder with one"
        )
    tensors = _gguf(path) if path.suffix == ".gguf" else _safetensors(path)
    if not tensors:
        raise ModelLoadError(f"control vector {path} holds no directions: export it again")
    directions: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise ModelLoadError(f"control vector {path} holds {name!r}: name its tensors direction.LAYER")
        layer = int(match["layer"])
        if not -layers <= layer < layers:
            raise ModelLoadError(
                f"control vector {path} is for layer {layer}, the model has {layers}: make one for this model"
            )
        if tuple(tensor.shape) != (hidden_size,):
            shape = "x".join(map(str, tensor.shape))
            raise ModelLoadError(
                f"control vector {path} has dimension {shape} at layer {layer}, the model {hidden_size}: "
                "make one for this model"
            )
        if not tensor.isfinite().all():
            raise ModelLoadError(f"control vector {path} holds NaN or infinity at layer {layer}: make it again")
        if layer % layers in directions:
            raise ModelLoadError(f"control vector {path} names layer {layer % layers} twice: keep one direction of it")
        directions[layer % layers] = tensor.float()
    return directions


def _gguf(path: Path) -> dict[str, Tensor]:
    try:
        reader = GGUFReader(path)
        field = reader.get_field("general.architecture")
        architecture = field.contents() if field else None
        tensors = {
            each.name: torch.tensor(dequantize(each.data, each.tensor_type), dtype=torch.float32)
            for each in reader.tensors
        }
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError, NotImplementedError) as error:
        raise ModelLoadError(f"control vector {path} is a truncated or corrupt GGUF file: make it again") from error
    if architecture != "controlvector":
        raise ModelLoadError(f"control vector {path} is a GGUF file of a {architecture} model: pass a control vector")
    return tensors


def _safetensors(path: Path) -> dict[str, Tensor]:
    safetensors_header(path)
    return load_file(path)
