"""Weights of several rewards that a prompt asks for (Preference Orchestrator, Liu et al. 2025, arXiv 2511.10656)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import linear

from trimtab.engine.errors import ModelLoadError

FORMAT: Final = "trimtab-preference-head"


@dataclass(frozen=True, eq=False, slots=True)
class PreferenceHead:
    """softmax(W h + b) over k rewards, h the base's last normed hidden state at the end of the prompt."""

    rewards: tuple[str, ...]
    """names of the reward guides, in the order of the rows"""
    weight: Tensor
    """(k, D) float32"""
    bias: Tensor
    """(k,) float32"""

    def __call__(self, hidden: Tensor) -> Tensor:
        """Weights (N, k) float32, which sum to 1, of hidden states (N, D)."""
        return self.logits(hidden).softmax(dim=-1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logarithms of the weights (N, k), up to a constant for each prompt."""
        return linear(hidden.float(), self.weight, self.bias)

    def to(self, device: torch.device | str) -> "PreferenceHead":
        return PreferenceHead(self.rewards, self.weight.to(device), self.bias.to(device))

    def save(self, path: Path) -> None:
        """Write `weight` and `bias` to a safetensors file that names the rewards in its metadata."""
        tensors = {"weight": self.weight.float().contiguous(), "bias": self.bias.float().contiguous()}
        save_file(tensors, path, {"format": FORMAT, "rewards": json.dumps(self.rewards)})

    @staticmethod
    def load(path: Path, hidden_size: int) -> "PreferenceHead":
        """Read a head for a base of `hidden_size`; ModelLoadError for anything else."""
        try:
            with safe_open(path, "pt") as file:
                metadata: dict[str, str] = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(
                f"preference head {path} cannot be read ({error}): pass a folder that trimtab train preference wrote"
            ) from error
        if metadata.get("format") != FORMAT or tensors.keys() != {"weight", "bias"} or "rewards" not in metadata:
            raise ModelLoadError(f"{path} is not a preference head: make one with trimtab train preference")
        head = PreferenceHead(
            tuple(json.loads(metadata["rewards"])), tensors["weight"].float(), tensors["bias"].float()
        )
        if head.weight.shape != (len(head.rewards), hidden_size):
            raise ModelLoadError(
                f"preference head {path} reads hidden states of {head.weight.shape[-1]} and the base has "
                f"{hidden_size}: fit one on this base"
            )
        if not (head.weight.isfinite().all() and head.bias.isfinite().all()):
            raise ModelLoadError(f"preference head {path} has weights that are not finite: fit it again")
        return head
