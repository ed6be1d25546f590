"""Readouts of a last normed hidden state, what the LM head reads: value heads of one to three layers, and labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import linear

from trimtab.engine.errors import ModelLoadError

FORMAT: Final = "trimtab-value-head"
MAX_LAYERS: Final = 3


class ValueHead:
    """An MLP with ReLU between its layers, in float32 on one device.

    Width 1: the value of a prefix. Width of the vocabulary: the value of every next token, the Q form of
    Controlled Decoding (arXiv 2310.17022). `weights` are (out, in) and `biases` (out,), first layer first.
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
        self.weights = tuple(weight.float().contiguous() for weight in weights)
        self.biases = tuple(bias.float().contiguous() for bias in biases)

    @property
    def hidden_size(self) -> int:
        return self.weights[0].shape[1]

    @property
    def width(self) -> int:
        return self.weights[-1].shape[0]

    def __call__(self, hidden: Tensor) -> Tensor:
        """Values of hidden states (..., D): (...) for width 1, else (..., width)."""
        out = linear(self._features(hidden), self.weights[-1], self.biases[-1])
        return out.squeeze(-1) if self.width == 1 else out

    def at(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Values (R, K) of the tokens `ids` (R, K) after hidden states (R, D); only their rows are computed."""
        features = self._features(hidden)  # (R, F)
        values = torch.einsum("rkf,rf->rk", self.weights[-1][ids], features)
        return values + self.biases[-1][ids]

    def ascend(self, hidden: Tensor, rate: float, steps: int) -> Tensor:
        """Return (R, D) float32 after `steps` times h += rate * dV/dh, for width 1 (RE-Control, arXiv 2406.05954).

        The gradient is written out, so that it needs no graph: it also runs in inference mode.
        """
        hidden = hidden.float()
        for _ in range(steps):
            hidden = hidden + rate * self._gradient(hidden)
        return hidden

    def to(self, device: torch.device | str) -> "ValueHead":
        return ValueHead([w.to(device) for w in self.weights], [b.to(device) for b in self.biases])

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write `layers.{i}.weight` and `layers.{i}.bias` to one safetensors file.

        In float16 it is half as long. ModelLoadError for a dtype that cannot hold the weights.
        """
        tensors = {f"layers.{i}.weight": weight.to(dtype) for i, weight in enumerate(self.weights)}
        tensors |= {f"layers.{i}.bias": bias.to(dtype) for i, bias in enumerate(self.biases)}
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise ModelLoadError(f"value head {path} has weights beyond {dtype}: save it in float32")
        save_file(tensors, path, {"format": FORMAT})

    @staticmethod
    def load(path: str | Path, hidden_size: int, vocab_size: int) -> "ValueHead":
        """Read a head for a model of `hidden_size` and `vocab_size`.

        Raises ModelLoadError for files that are no head, for heads of other sizes and for weights that are not finite.
        """
        head = ValueHead(*_layers(path, _read(path)))
        if head.hidden_size != hidden_size:
            raise ModelLoadError(
                f"value head {path} reads hidden states of {head.hidden_size} and the base has {hidden_size}: "
                "fit one on this base"
            )
        if head.width not in (1, vocab_size):
            raise ModelLoadError(
                f"value head {path} gives {head.width} values: its last layer needs 1 (value of the text) or "
                f"{vocab_size} (value of every token of the base)"
            )
        if not all(tensor.isfinite().all() for tensor in (*head.weights, *head.biases)):
            raise ModelLoadError(f"value head {path} has weights that are not finite: fit it again at a smaller rate")
        return head

    def _features(self, hidden: Tensor) -> Tensor:
        """What the last layer reads, (..., F)."""
        features = hidden.float()
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            features = linear(features, weight, bias).relu()
        return features

    def _gradient(self, hidden: Tensor) -> Tensor:
        """dV/dh, (R, D): back through the layers, each ReLU passing what was positive before it."""
        active = []
        features = hidden
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            features = linear(features, weight, bias).relu()
            active.append(features > 0)
        gradient = self.weights[-1].expand(len(hidden), -1)  # (R, F)
        for weight, mask in zip(reversed(self.weights[:-1]), reversed(active), strict=True):
            gradient = (gradient * mask) @ weight
        return gradient


@dataclass(frozen=True, eq=False, slots=True)
class LinearHead:
    """The head of a classifier: its labels' logits, and the fixed sum of them that is the score."""

    weight: Tensor
    """(labels, D) float32"""
    bias: Tensor
    """(labels,) float32"""
    signs: Tensor
    """(labels,) what each logit counts in the score"""

    @staticmethod
    def of(signs: Tensor, weight: Tensor, bias: Tensor | None = None) -> "LinearHead":
        """A head of (labels, D) and (labels,), in float32 on the weight's device."""
        weight = weight.float()
        bias = weight.new_zeros(len(weight)) if bias is None else bias.float()
        return LinearHead(weight, bias, signs.to(weight))

    def __call__(self, hidden: Tensor) -> Tensor:
        """Scores (...) float32 of hidden states (..., D)."""
        return self.score(self.logits(hidden))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., labels) float32 of hidden states (..., D)."""
        return linear(hidden.float(), self.weight, self.bias)

    def score(self, logits: Tensor) -> Tensor:
        """Scores (...) of logits (..., labels)."""
        return logits @ self.signs


def _read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a head file."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"value head {path} cannot be read ({error}): pass a .safetensors file") from error
    if metadata.get("format") != FORMAT:
        raise ModelLoadError(
            f"{path} is not a value head: its metadata lacks format {FORMAT!r}; save it as a ValueHead"
        )
    return tensors


def _layers(path: str | Path, tensors: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases in order; ModelLoadError unless they form an MLP of up to MAX_LAYERS layers."""
    count = len(tensors) // 2
    names = [(f"layers.{i}.weight", f"layers.{i}.bias") for i in range(count)]
    fits = 1 <= count <= MAX_LAYERS and tensors.keys() == {name for pair in names for name in pair}
    weights = [tensors[weight] for weight, _ in names] if fits else []
    biases = [tensors[bias] for _, bias in names] if fits else []
    fits = fits and all(w.dim() == 2 and b.shape == w.shape[:1] for w, b in zip(weights, biases, strict=True))
    if not fits or any(before.shape[0] != after.shape[1] for before, after in pairwise(weights)):
        raise ModelLoadError(
            f"value head {path}: its tensors need to be layers.0.weight (out, in) and layers.0.bias (out,), then "
            f"layers.1 and so on, at most {MAX_LAYERS} layers that fit each other"
        )
    return weights, biases
