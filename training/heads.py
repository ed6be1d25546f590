"""Value heads while they are trained: in units in which states and rewards have mean 0 and deviation 1.

`export` folds these units into the weights, so that the head reads hidden states and tells rewards as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from trimtab.engine.guides.heads import ValueHead

_NARROW = 1e-3  # of the mean deviation: a number that hardly varies is not blown up


@dataclass(frozen=True, eq=False, slots=True)
class Units:
    """Mean and deviation of the states, per number, and of the rewards that a head is trained on."""

    centre: Tensor
    """(D,) float32"""
    spread: Tensor
    """(D,) float32"""
    level: float
    scale: float

    @staticmethod
    def of(hidden: Tensor, rewards: Tensor) -> "Units":
        """The units of states (N, D) and rewards (B,), of which at least two differ."""
        spread, centre = torch.std_mean(hidden.float(), dim=0, correction=0)
        floor = _NARROW * spread.mean()
        return Units(centre, spread.clamp(min=floor.item()), rewards.mean().item(), rewards.std(correction=0).item())


class Layers:
    """The layers before the last, linear with ReLU, float32."""

    def __init__(self, sizes: Sequence[int], units: Units, generator: torch.Generator) -> None:
        """`sizes`: width of the states, then that of every layer; random weights, of variance 1 / inputs."""
        device = units.centre.device
        self._units = units
        self.width = sizes[-1]
        self._weights = [
            nn.Parameter((torch.randn(after, before, generator=generator) / before**0.5).to(device))
            for before, after in pairwise(sizes)
        ]
        self._biases = [nn.Parameter(torch.zeros(after, device=device)) for after in sizes[1:]]

    @property
    def parameters(self) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {f"layers.{i}.weight": weight for i, weight in enumerate(self._weights)}
        return named | {f"layers.{i}.bias": bias for i, bias in enumerate(self._biases)}

    def __call__(self, hidden: Tensor) -> Tensor:
        """What the last layer reads, (..., F), of hidden states (..., D)."""
        features = (hidden.float() - self._units.centre) / self._units.spread
        for weight, bias in zip(self._weights, self._biases, strict=True):
            features = linear(features, weight, bias).relu()
        return features

    def export(self, weight: Tensor, bias: Tensor) -> ValueHead:
        """The head with a last layer (W, F) and (W,), in the units of states and rewards."""
        units = self._units
        weights = [*(each.detach() for each in self._weights), units.scale * weight.detach()]
        biases = [*(each.detach() for each in self._biases), units.level + units.scale * bias.detach()]
        first = weights[0] / units.spread
        return ValueHead([first, *weights[1:]], [biases[0] - first @ units.centre, *biases[1:]])


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """Answers of like length, padded: T is the longest one's number of tokens."""

    hidden: Tensor
    """(B, T + 1, D): before the first token to after the last"""
    tokens: Tensor
    """(B, T)"""
    expected: Tensor | None
    """(B, T + 1, D) as `States.expected`"""
    lengths: Tensor
    """(B,)"""
    rewards: Tensor
    """(B,)"""


class TextHead:
    """One value for the text so far, of the state after it."""

    def __init__(self, sizes: Sequence[int], units: Units, seed: int) -> None:
        self._units = units
        self._layers = Layers(sizes, units, torch.Generator().manual_seed(seed))
        self._weight = nn.Parameter(torch.zeros(1, self._layers.width, device=units.centre.device))
        self._bias = nn.Parameter(torch.zeros(1, device=units.centre.device))

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        return self._layers.parameters | {"last.weight": self._weight, "last.bias": self._bias}

    def values(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Values of the prefixes of 0 to T tokens, (B, T + 1), and which of them there are."""
        told = (self._layers(batch.hidden) @ self._weight[0]) + self._bias
        at = torch.arange(told.shape[1], device=told.device)
        return self._units.level + self._units.scale * told, at <= batch.lengths[:, None]

    def export(self) -> ValueHead:
        return self._layers.export(self._weight, self._bias)


class TokenHead:
    """One value for every next token: that of the text with this token behind it.

    The last layer (V, F) is E U + 1 a' for the tokens' fixed directions E (V, D), its bias E c + b; U (D, F), a (F,),
    c (D,) and b are trained. Tokens that the LM head takes to be alike share what is learned, and none has weights of
    its own to overfit.
    """

    def __init__(self, sizes: Sequence[int], units: Units, seed: int, directions: Tensor) -> None:
        self._units = units
        self._layers = Layers(sizes, units, torch.Generator().manual_seed(seed))
        self._directions = directions
        rank, device = directions.shape[1], directions.device
        self._mix = nn.Parameter(torch.zeros(rank, self._layers.width, device=device))
        self._shared = nn.Parameter(torch.zeros(self._layers.width, device=device))
        self._tilt = nn.Parameter(torch.zeros(rank, device=device))
        self._bias = nn.Parameter(torch.zeros(1, device=device))

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        own = {"mix": self._mix, "shared": self._shared, "tilt": self._tilt, "bias": self._bias}
        return self._layers.parameters | {f"last.{name}": value for name, value in own.items()}

    def values(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Values of the prefixes of 1 to T tokens, (B, T), and which of them there are."""
        told = self._along(batch.hidden[:, :-1], self._directions[batch.tokens])
        at = torch.arange(told.shape[1], device=told.device)
        return told, at < batch.lengths[:, None]

    def expected(self, batch: Batch) -> Tensor:
        """Mean value of what the base may write after the prefixes of 1 to T tokens, (B, T).

        The value is linear in the token's direction, so the mean over the whole vocabulary is the value of the mean.
        """
        assert batch.expected is not None
        return self._along(batch.hidden[:, 1:], batch.expected[:, 1:])

    def export(self) -> ValueHead:
        weight = self._directions @ self._mix + self._shared
        return self._layers.export(weight, self._directions @ self._tilt + self._bias)

    def _along(self, hidden: Tensor, directions: Tensor) -> Tensor:
        """Values (B, T) of tokens of `directions` (B, T, D) after states (B, T, D)."""
        weight = directions @ self._mix + self._shared  # (B, T, F)
        told = (weight * self._layers(hidden)).sum(dim=-1) + directions @ self._tilt + self._bias
        return self._units.level + self._units.scale * told


def token_directions(embedding: Tensor) -> Tensor:
    """The rows (V, D) of an LM head without their mean, float32, each of length 1."""
    rows = embedding.float()
    return nn.functional.normalize(rows - rows.mean(dim=0), dim=1)
