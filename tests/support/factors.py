"""Random adapters of a tiny model, and the model with one made for good."""

import copy

import torch
from tiny import VOCAB
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

Factors = dict[str, tuple[Tensor, Tensor]]


@torch.inference_mode()
def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]


def prompts(rows: int, length: int = 5) -> Tensor:
    return torch.arange(rows * length).view(rows, length) * 7 % VOCAB


def relative_error(got: Tensor, want: Tensor) -> float:
    return ((got.float() - want.float()).norm() / want.float().norm()).item()


def random_factors(model: PreTrainedModel, rank: int, seed: int, only: str = "") -> Factors:
    """A and B for every linear layer whose path contains `only`."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and only in path:
            outer, inner = module.weight.shape
            shapes[path] = (inner, outer) if isinstance(module, Conv1D) else (outer, inner)
    return {
        path: (
            torch.randn(rank, inner, generator=generator) * 0.2,
            torch.randn(outer, rank, generator=generator) * 0.2,
        )
        for path, (outer, inner) in shapes.items()
    }


def merged(model: PreTrainedModel, factors: Factors, scale: float = 1.0) -> PreTrainedModel:
    """A copy with W + scale B A in place of W."""
    changed = copy.deepcopy(model)
    for path, (down, up) in factors.items():
        module = changed.get_submodule(path)
        delta = (scale * up.double() @ down.double()).float()
        module.weight += delta.t() if isinstance(module, Conv1D) else delta
    return changed
