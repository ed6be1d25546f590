"""Rows of logits: what may be drawn at all, reductions tile by tile, the best entries in order, log-probabilities."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

TILE = 256
NEG_INF = float("-inf")
BIGGEST = torch.finfo(torch.float32).max  # stands for +inf
# Entries past the end of a list of the best, so that ids tied at its end compete by id as well.
_MARGIN = 32


class Allowed(NamedTuple):
    """Logits that can be computed with, and what was wrong with the ones given."""

    z: Tensor  # (B, V) float32 without NaN or +inf; a row that allows no token is all zeros, so that it stays finite
    peaks: Tensor  # (B, S) tile maxima of z
    alive: Tensor  # (B,) bool, whether the row allows a token at all
    nan: Tensor | None  # (B,) bool, rows that held a NaN; None when none did

    @property
    def top(self) -> Tensor:
        """Maximum of each row, (B, 1)."""
        return self.peaks.amax(dim=1, keepdim=True)


def allowed(z: Tensor) -> Allowed:
    """Exclude NaN from `z` (B, V) float32 and make +inf the largest number."""
    peaks = tiled(z, torch.amax)
    top = peaks.amax(dim=1)  # a maximum passes NaN on
    if bool(top.isfinite().all()):
        return Allowed(z, peaks, torch.ones_like(top, dtype=torch.bool), None)
    nan = top.isnan()
    z = torch.nan_to_num(z, nan=NEG_INF, posinf=BIGGEST, neginf=NEG_INF)
    alive = z.amax(dim=1) > NEG_INF
    z = torch.where(alive[:, None], z, 0.0)
    return Allowed(z, tiled(z, torch.amax), alive, nan if bool(nan.any()) else None)


def tiled(x: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    """Reduce every tile of each row of `x` (B, V), the last one maybe shorter, to (B, S)."""
    n_full = x.shape[1] // TILE
    full = reduce(x[:, : n_full * TILE].unflatten(1, (n_full, TILE)), dim=2)
    if x.shape[1] % TILE == 0:
        return full
    return torch.cat((full, reduce(x[:, n_full * TILE :], dim=1, keepdim=True)), dim=1)


def tile_of(x: Tensor, tile: Tensor, fill: float) -> Tensor:
    """One tile (B, TILE) of each row of `x` (B, V), chosen by `tile` (B, 1) and padded with `fill`."""
    columns = tile * TILE + torch.arange(TILE, device=x.device)
    return x.gather(1, columns.clamp(max=x.shape[1] - 1)).masked_fill(columns >= x.shape[1], fill)


def first_best(z: Tensor, peaks: Tensor) -> Tensor:
    """Argmax (B,), lowest id first: over the tile maxima `peaks` (B, S), then inside the tile."""
    tile = peaks.argmax(dim=1, keepdim=True)
    return (tile * TILE + tile_of(z, tile, NEG_INF).argmax(dim=1, keepdim=True))[:, 0]


def best(z: Tensor, width: int) -> Tensor:
    """Ids (R, width) of the best entries of `z` (R, V) float32 without NaN, by value and then by lower id.

    Which of the entries tied with the last one are in the list is arbitrary.
    """
    if width < z.shape[1]:
        value, ids = z.topk(width, dim=1, sorted=False)
    else:
        value, ids = z, torch.arange(width, device=z.device)
    # One integer per entry that sorts by falling value, then rising id: on a CPU numpy sorts integers many
    # times faster than torch sorts pairs. Adding 0 turns -0 into +0, which it equals.
    bits = (value + 0.0).view(torch.int32)
    falling = ~(bits ^ ((bits >> 31) & 0x7FFFFFFF))
    keys = (falling.long() << 32) | ids
    keys = keys.sort(dim=1).values if keys.is_cuda else torch.from_numpy(np.sort(keys.numpy(), axis=1))
    return keys & 0xFFFFFFFF


def exact_best(z: Tensor, k: int) -> Tensor:
    """Ids (R, k) of the best entries as `best` lists them, but of tied ones the lowest ids are in the list.

    Of entries at -inf any may be.
    """
    ids = best(z, min(z.shape[1], k + _MARGIN))
    if k and ids.shape[1] < z.shape[1]:
        end, last = z.gather(1, ids[:, k - 1 : k]), z.gather(1, ids[:, -1:])
        doubtful = ((end == last) & (end > NEG_INF))[:, 0].nonzero()[:, 0]
        if len(doubtful):
            ids = ids[:, :k].clone()
            ids[doubtful] = best(z[doubtful], z.shape[1])[:, :k]
    return ids[:, :k]


def logprobs_of(ids: Tensor, z: Tensor, top: Tensor) -> Tensor:
    """log_softmax of `z` (B, V) at `ids` (B, K), by way of the best entry's probability.

    softmax is one fused pass, logsumexp is four; and large logits never meet a small logarithm.
    """
    return (z.gather(1, ids) - top) - row_mass(z.softmax(dim=1))[0].float()


def row_mass(p: Tensor) -> tuple[Tensor, Tensor]:
    """Mass of `p` (R, V) in units of its largest entry, as a logarithm, and as it is; (R, 1) float64 each.

    A softmax sums a whole row in float32, so its sum is not quite 1: it is taken again tile by tile.
    """
    mass = tiled(p, torch.sum).double().sum(dim=1, keepdim=True)
    return (mass / p.amax(dim=1, keepdim=True)).log(), mass
