"""The dense sums of a draw as one loop each over the vocabulary, compiled for the CPU on first use.

Needs a C++ compiler, and some ten seconds for each function. The sums are those that `trimtab.kernels.drawing` builds
from separate operations, each of which reads and writes the whole row.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from trimtab.kernels.survivors import Group
from trimtab.kernels.tiles import TILE


def tile_masses(z: Tensor, top: Tensor, g: Group) -> Tensor:
    """Sums (R, S) float64 of p = exp((z - top) / T) by tile, without what min-p drops.

    `z` (R, V) is float32 with the maxima `top` (R, 1).
    """
    found: Tensor = _compiled(_masses)(z, top, g.inverse_temperature, g.min_p)
    return found.double()


def tile_means(
    z: Tensor, top: Tensor, inverse_temperature: Tensor, min_p: Tensor, base: Tensor, base_top: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The masses, and the means (R, 1) float64 of z - top and of base - base_top under p; columns are (R, 1)."""
    masses, distance, base_distance = _compiled(_means)(z, top, inverse_temperature, min_p, base, base_top)
    masses = masses.double()
    total = masses.sum(dim=1, keepdim=True)
    mean, base_mean = (each.double().sum(dim=1, keepdim=True) / total for each in (distance, base_distance))
    return masses, mean, base_mean


def compile_loops(vocab_size: int) -> None:
    """Compile both functions for one row and for more. Raises RuntimeError where that is impossible."""
    for rows in (1, 2):
        z, one = torch.zeros(rows, vocab_size), torch.ones(rows, 1)
        _compiled(_masses)(z, one, one, one)
        _compiled(_means)(z, one, one, one, z, one)


def _masses(z: Tensor, top: Tensor, inverse_temperature: Tensor, min_p: Tensor) -> Tensor:
    return _tiled(_probs(z, top, inverse_temperature, min_p))


def _means(
    z: Tensor, top: Tensor, inverse_temperature: Tensor, min_p: Tensor, base: Tensor, base_top: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    probs = _probs(z, top, inverse_temperature, min_p)
    distance, base_distance = (torch.where(probs == 0, 0.0, probs * depth) for depth in (z - top, base - base_top))
    return _tiled(probs), _tiled(distance), _tiled(base_distance)


def _probs(z: Tensor, top: Tensor, inverse_temperature: Tensor, min_p: Tensor) -> Tensor:
    probs = ((z - top) * inverse_temperature).exp()
    return torch.where(probs < min_p, 0.0, probs)


def _tiled(values: Tensor) -> Tensor:
    padded: Tensor = pad(values, (0, -values.shape[1] % TILE))
    sums: Tensor = padded.unflatten(1, (-1, TILE)).sum(dim=2)
    return sums


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(function, dynamic=True)
    return compiled
