"""Sampling parameters of a batch, and which tokens their filters leave.

Order: temperature, min-p (relative to the most likely token), top-k, top-p over the renormalised survivors. Each of
the three filters keeps the best n tokens for some n, by value and then by lower id.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from trimtab.kernels.tiles import best, tiled

# How many best tokens to search for the end of a top-k or top-p set, before the whole row is sorted.
# A row climbs as its own values demand: a width shared by the batch would let neighbours change its draws.
_WIDTHS = (64, 1024)
_UNLIMITED = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Group:
    """Rows that are drawn in the same way, with their parameters as columns."""

    rows: Tensor | slice  # (R,) int64, or a slice over the whole batch: no copy of the logits
    inverse_temperature: Tensor  # (R, 1) float32
    min_p: Tensor  # (R, 1) float32
    top_k: Tensor  # (R, 1) int64
    top_p: Tensor  # (R, 1) float64
    max_depth: Tensor  # (R, 1) float64, min-p as the largest distance from the top, in scaled logits
    ranked: bool  # top-k or top-p: drawn from a sorted list of the best tokens
    unit_temperature: bool
    any_min_p: bool
    any_open_top_p: bool  # a row without top-k: its top-p needs the mass of the whole vocabulary


class Columns(NamedTuple):
    """Sampling parameters of a batch on its device, (B,) each."""

    temperature: Tensor  # float32
    top_k: Tensor  # int32
    top_p: Tensor  # float32
    min_p: Tensor  # float32


@dataclass(frozen=True)
class RowParams:
    """Sampling parameters of a batch, one entry per row; build it once per batch composition, not every step.

    It is built from tensors on the CPU, whatever the device of the logits.

    Temperature 0 is greedy: the best token after edits, lowest id first. Filters do not touch a greedy row,
    and its log-probability is taken at temperature 1.
    """

    temperature: Tensor  # (B,) float32
    top_k: Tensor  # (B,) int64, 0 is off
    top_p: Tensor  # (B,) float32 in (0, 1], 1 is off
    min_p: Tensor  # (B,) float32 in [0, 1], 0 is off
    greedy: Tensor = field(init=False)  # (B,) bool
    any_greedy: bool = field(init=False)
    all_greedy: bool = field(init=False)
    any_ranked: bool = field(init=False)  # top-k or top-p
    any_min_p: bool = field(init=False)
    plain: bool = field(init=False)  # no filter and no temperature but 0 and 1: only edits steer
    groups: tuple[Group, ...] = field(init=False)
    _columns: dict[torch.device, Columns] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        greedy = self.temperature == 0
        ranked = ((self.top_k > 0) | (self.top_p < 1)) & ~greedy
        groups = [
            self._group(member, is_ranked)
            for member, is_ranked in ((ranked, True), (~ranked, False))
            if bool(member.any())
        ]
        derived = {
            "greedy": greedy,
            "any_greedy": bool(greedy.any()),
            "all_greedy": bool(greedy.all()),
            "any_ranked": any(g.ranked for g in groups),
            "any_min_p": any(g.any_min_p for g in groups),
            "plain": not any(g.ranked or g.any_min_p or not g.unit_temperature for g in groups),
            "groups": tuple(groups),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def columns(self, device: torch.device) -> Columns:
        """The parameters as a kernel on `device` reads them."""
        if device not in self._columns:
            self._columns[device] = Columns(
                self.temperature.float().to(device),
                self.top_k.to(device, torch.int32),
                self.top_p.float().to(device),
                self.min_p.float().to(device),
            )
        return self._columns[device]

    def _group(self, member: Tensor, ranked: bool) -> Group:
        rows = slice(None) if bool(member.all()) else member.nonzero()[:, 0]
        temperature, top_k = self.temperature[rows, None].float(), self.top_k[rows, None]
        greedy = temperature == 0
        temperature = temperature.masked_fill(greedy, 1.0)
        min_p = self.min_p[rows, None].float().masked_fill(greedy, 0.0)
        return Group(
            rows=rows,
            inverse_temperature=1.0 / temperature,
            min_p=min_p,
            top_k=top_k.masked_fill(top_k == 0, _UNLIMITED),
            top_p=self.top_p[rows, None].double(),
            max_depth=min_p.double().log().neg().clamp(max=torch.finfo(torch.float64).max),
            ranked=ranked,
            unit_temperature=bool((temperature == 1).all()),
            any_min_p=bool((min_p > 0).any()),
            any_open_top_p=bool((top_k == 0).any()),
        )


class Survivors(NamedTuple):
    """The tokens left in some rows of a group, best first, followed by others."""

    rows: Tensor  # (R,) int64, rows of the group
    ids: Tensor  # (R, C) int64
    depth: Tensor  # (R, C) float64, distance from the best in scaled logits: rises from 0
    cumulative: Tensor  # (R, C) float64, running sum of exp(-depth)
    kept: Tensor  # (R, 1) int64 from 1 to C: so many survive

    @property
    def inside(self) -> Tensor:
        """Which entries survive, (R, C) bool."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.kept

    @property
    def mass(self) -> Tensor:
        """Sum of exp(-depth) over the survivors, (R, 1) float64."""
        return self.cumulative.gather(1, self.kept - 1)


def survivors(z: Tensor, top: Tensor, g: Group) -> Iterator[Survivors]:
    """Yield what the filters of the ranked group `g` leave of `z` (R, V), every row once.

    `z` is float32 without NaN, `top` (R, 1) its row maxima.
    """
    n_rows, vocab_size = z.shape
    open_mass = torch.full_like(g.top_p, float("inf"))  # (R, 1) in units of the best token's probability
    if g.any_open_top_p:
        p = scaled_probs(z, top, g)
        mass = tiled(p, torch.sum).double().sum(dim=1, keepdim=True) / p.amax(dim=1, keepdim=True)
        open_mass = torch.where(g.top_k == _UNLIMITED, mass, open_mass)
    pending = torch.arange(n_rows, device=z.device)
    for width in (*(w for w in _WIDTHS if w < vocab_size), vocab_size):
        row_z = z if len(pending) == n_rows else z[pending]  # (R', V)
        ids = best(row_z, width)  # (R', C)
        depth = top[pending].double() - row_z.gather(1, ids)
        depth *= g.inverse_temperature[pending]
        cumulative = depth.neg().exp_().cumsum_(dim=1)
        last = depth[:, -1:].contiguous()
        complete = last.isinf() | (width == vocab_size)
        # Entries that tie with the last one may have equals outside the list.
        n_sure = torch.where(complete, width, torch.searchsorted(depth, last))
        n = torch.searchsorted(depth, g.max_depth[pending], right=True).minimum(g.top_k[pending])
        in_list = cumulative.gather(1, n.clamp(max=width) - 1)
        mass = torch.where(complete | (n < width), in_list, open_mass[pending])
        top_p = g.top_p[pending]
        n_mass = torch.searchsorted(cumulative, top_p * mass) + 1
        n = torch.where(top_p < 1, n.minimum(n_mass), n)
        settled = (n <= n_sure)[:, 0]
        found = settled.nonzero()[:, 0]
        if len(found) == len(pending):
            yield Survivors(pending, ids, depth, cumulative, n)
            return
        if len(found):
            yield Survivors(pending[found], ids[found], depth[found], cumulative[found], n[found])
            pending = pending[~settled]


def scaled_probs(z: Tensor, top: Tensor, g: Group) -> Tensor:
    """Probabilities (R, V) at the rows' temperatures, 0 where min-p drops the token; not normalised again."""
    # The top is subtracted before scaling: at temperature 0.001 a logit of 10,000 would lose its fraction.
    p = (z if g.unit_temperature else (z - top).mul_(g.inverse_temperature)).softmax(dim=1)
    if g.any_min_p:
        p = p.masked_fill_(p < g.min_p * p.amax(dim=1, keepdim=True), 0.0)
    return p
