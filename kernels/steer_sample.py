"""The token-level pass: edit, scale, filter and draw one token for every row of a batch of logits.

Order: edits, temperature, min-p (relative to the most likely token), top-k, top-p over the renormalised
survivors. Each of the three filters keeps the best n tokens for some n, by value and then by lower id. A row
is drawn by inverting its cumulative distribution at one uniform number: first a tile, then a token inside the
tile. What a row draws depends on that row alone, never on the rest of the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from trimtab.kernels.edits import Edits, apply_edits

_TILE = 256
# How many best tokens to search for the end of a top-k or top-p set, before the whole row is sorted.
# A row climbs as its own values demand: a width shared by the batch would let neighbours change its draws.
_WIDTHS = (64, 1024)
_NEG_INF = float("-inf")
_BIGGEST = torch.finfo(torch.float32).max  # stands for +inf
_UNLIMITED = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class _Group:
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


@dataclass(frozen=True)
class RowParams:
    """Sampling parameters of a batch, one entry per row; build it once per batch composition, not every step.

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
    plain: bool = field(init=False)  # no filter and no temperature but 0 and 1: only edits steer
    groups: tuple[_Group, ...] = field(init=False)

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
            "plain": not any(g.ranked or g.any_min_p or not g.unit_temperature for g in groups),
            "groups": tuple(groups),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def _group(self, member: Tensor, ranked: bool) -> _Group:
        rows = slice(None) if bool(member.all()) else member.nonzero()[:, 0]
        temperature, top_k = self.temperature[rows, None].float(), self.top_k[rows, None]
        greedy = temperature == 0
        temperature = temperature.masked_fill(greedy, 1.0)
        min_p = self.min_p[rows, None].float().masked_fill(greedy, 0.0)
        return _Group(
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


@dataclass(frozen=True)
class SteerOut:
    """What a step drew; the log-probabilities are None unless asked for."""

    token: Tensor  # (B,) int64, -1 where nothing is allowed
    logprob: Tensor | None  # (B,) float32 under the steered distribution, nan where token is -1
    base_logprob: Tensor | None  # (B,) float32 under the logits as given, nan where token is -1


def reference_steer(logits: Tensor, params: RowParams, *, edits: Edits | None = None) -> tuple[Tensor, Tensor]:
    """Return the steered and the base log-distribution, (B, V) float64 each: the specification of this file.

    A greedy row shows its statistics, the distribution at temperature 1. A row with nothing allowed is nan.
    """
    base = logits.double()  # (B, V)
    z = base.clone()
    if edits is not None:
        apply_edits(z, edits)
    base, z = (torch.nan_to_num(x, nan=_NEG_INF, posinf=_BIGGEST, neginf=_NEG_INF) for x in (base, z))
    greedy = params.greedy[:, None]
    z = z / params.temperature[:, None].double().masked_fill(greedy, 1.0)
    z, order = z.sort(dim=1, descending=True, stable=True)  # stable: lower id first
    weight = (z - z[:, :1]).exp()
    top_k, top_p = params.top_k[:, None], params.top_p[:, None].double()
    keep = weight >= params.min_p[:, None].double()
    keep &= (torch.arange(z.shape[1], device=z.device) < top_k) | (top_k == 0)
    weight = weight.masked_fill(~keep, 0.0)
    before = weight.cumsum(dim=1) - weight
    keep &= (before < top_p * weight.sum(dim=1, keepdim=True)) | (top_p == 1)
    z = z.masked_fill(~keep & ~greedy, _NEG_INF)
    return torch.empty_like(z).scatter_(1, order, z).log_softmax(dim=1), base.log_softmax(dim=1)


def steer_sample(
    logits: Tensor,
    params: RowParams,
    uniforms: Tensor,
    *,
    edits: Edits | None = None,
    logprobs: bool = False,
) -> SteerOut:
    """Draw one token per row of `logits` (B, V), any floating dtype, left as they are.

    `uniforms` (B,) float64 lie strictly between 0 and 1. NaN logits are excluded.
    """
    z = logits.to(torch.float32, copy=edits is not None)
    if edits is not None:
        apply_edits(z, edits)
    z, peaks, alive = _allowed(z)
    top = peaks.amax(dim=1, keepdim=True)  # (B, 1)
    held = torch.full_like(alive, -1, dtype=torch.int64)  # the token of a greedy row, -1 in the others
    if params.any_greedy:
        held = torch.where(params.greedy, _first_best(z, peaks), held)
    if params.all_greedy and not logprobs:
        return SteerOut(held.masked_fill(~alive, -1), None, None)
    token, logprob = torch.empty_like(held), torch.empty_like(top[:, 0])
    for g in params.groups:
        rows = g.rows
        row_z, row_top, uniform = z[rows], top[rows], uniforms[rows, None]
        if g.ranked:
            token[rows], logprob[rows] = _draw_ranked(row_z, row_top, g, uniform)
        else:
            token[rows], logprob[rows] = _draw_open(row_z, row_top, g, uniform, held[rows, None])
    if not logprobs:
        return SteerOut(token.masked_fill(~alive, -1), None, None)
    base_logprob = logprob
    if edits is not None:
        z, peaks, _ = _allowed(logits.float())
        top = peaks.amax(dim=1, keepdim=True)
    if edits is not None or not params.plain:
        base_logprob = _logprobs_of(token[:, None], z, top)[:, 0]
    nan = float("nan")
    return SteerOut(
        token.masked_fill(~alive, -1), logprob.masked_fill(~alive, nan), base_logprob.masked_fill(~alive, nan)
    )


def top_logprobs(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return values and ids, (B, k) each, of the k best entries of log_softmax(logits), ties by lower id.

    NaN logits are excluded; `k` is at most V.
    """
    z, peaks, _ = _allowed(logits.float())
    # A margin, so that ids tied at the end of the list compete by id as well.
    ids = _best(z, min(z.shape[1], k + 32))[:, :k]
    return _logprobs_of(ids, z, peaks.amax(dim=1, keepdim=True)), ids


def _draw_open(z: Tensor, top: Tensor, g: _Group, uniform: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    """Token (R,) and its log-probability (R,) for rows without top-k and top-p, greedy ones included."""
    p = _probs(z, top, g)
    tile_mass = _tiled(p, torch.sum).double()  # (R, S)
    cumulative = tile_mass.cumsum(dim=1)
    mass = cumulative[:, -1:].contiguous()
    tile, target = _invert(cumulative, mass, uniform)
    # Given the tile, what is left of the uniform is uniform again.
    rest = ((target - cumulative.gather(1, tile)) / tile_mass.gather(1, tile) + 1.0).clamp_(min=0.0)
    cumulative = _tile_of(p, tile, 0.0).double().cumsum(dim=1)
    inside, _ = _invert(cumulative, cumulative[:, -1:].contiguous(), rest)
    token = torch.where(held >= 0, held, tile * _TILE + inside)  # (R, 1)
    return token[:, 0], (p.gather(1, token).double() / mass).log().float()[:, 0]


def _draw_ranked(z: Tensor, top: Tensor, g: _Group, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Token (R,) and its log-probability (R,) for rows with top-k or top-p, none of them greedy."""
    n_rows, vocab_size = z.shape
    open_mass = torch.full_like(uniform, float("inf"))  # (R, 1) in units of the best token's probability
    if g.any_open_top_p:
        p = _probs(z, top, g)
        mass = _tiled(p, torch.sum).double().sum(dim=1, keepdim=True) / p.amax(dim=1, keepdim=True)
        open_mass = torch.where(g.top_k == _UNLIMITED, mass, open_mass)
    token = torch.empty(n_rows, dtype=torch.int64, device=z.device)
    logprob = torch.empty(n_rows, device=z.device)
    pending = torch.arange(n_rows, device=z.device)
    for width in (*(w for w in _WIDTHS if w < vocab_size), vocab_size):
        row_z = z if len(pending) == n_rows else z[pending]  # (R', V)
        ids = _best(row_z, width)  # (R', C)
        depth = top[pending].double() - row_z.gather(1, ids)  # rising from 0
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
        total = cumulative.gather(1, n.clamp(max=width) - 1)
        chosen, _ = _invert(cumulative, total, uniform[pending])
        settled = (n <= n_sure)[:, 0]
        rows = pending[settled]
        token[rows] = ids.gather(1, chosen)[settled, 0]
        logprob[rows] = (-depth.gather(1, chosen) - total.log()).float()[settled, 0]
        pending = pending[~settled]
        if len(pending) == 0:
            break
    return token, logprob


def _allowed(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, V) without NaN or +inf, their tile maxima (B, S), and which rows (B,) allow a token at all.

    A row that allows none is set to zeros, so that what follows stays finite.
    """
    peaks = _tiled(z, torch.amax)
    if bool(peaks.amax(dim=1).isfinite().all()):  # a maximum passes NaN on
        return z, peaks, torch.ones(z.shape[0], dtype=torch.bool, device=z.device)
    z = torch.nan_to_num(z, nan=_NEG_INF, posinf=_BIGGEST, neginf=_NEG_INF)
    alive = z.amax(dim=1) > _NEG_INF
    z = torch.where(alive[:, None], z, 0.0)
    return z, _tiled(z, torch.amax), alive


def _tiled(x: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    """Reduce every tile of each row of `x` (B, V), the last one maybe shorter, to (B, S)."""
    n_full = x.shape[1] // _TILE
    full = reduce(x[:, : n_full * _TILE].unflatten(1, (n_full, _TILE)), dim=2)
    if x.shape[1] % _TILE == 0:
        return full
    return torch.cat((full, reduce(x[:, n_full * _TILE :], dim=1, keepdim=True)), dim=1)


def _tile_of(x: Tensor, tile: Tensor, fill: float) -> Tensor:
    """One tile (B, TILE) of each row of `x` (B, V), chosen by `tile` (B, 1) and padded with `fill`."""
    columns = tile * _TILE + torch.arange(_TILE, device=x.device)
    return x.gather(1, columns.clamp(max=x.shape[1] - 1)).masked_fill(columns >= x.shape[1], fill)


def _first_best(z: Tensor, peaks: Tensor) -> Tensor:
    """Argmax (B,), lowest id first: over the tile maxima `peaks` (B, S), then inside the tile."""
    tile = peaks.argmax(dim=1, keepdim=True)
    return (tile * _TILE + _tile_of(z, tile, _NEG_INF).argmax(dim=1, keepdim=True))[:, 0]


def _probs(z: Tensor, top: Tensor, g: _Group) -> Tensor:
    """Probabilities (R, V) at the rows' temperatures, 0 where min-p drops the token; not normalised again."""
    # The top is subtracted before scaling: at temperature 0.001 a logit of 10,000 would lose its fraction.
    p = (z if g.unit_temperature else (z - top).mul_(g.inverse_temperature)).softmax(dim=1)
    if g.any_min_p:
        p = p.masked_fill_(p < g.min_p * p.amax(dim=1, keepdim=True), 0.0)
    return p


def _invert(cumulative: Tensor, total: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Find where the rising rows of `cumulative` (R, C) pass `uniform` * `total`, (R, 1) each, all float64.

    Returns that index, whose weight is never zero, and the product.
    """
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True), target


def _best(z: Tensor, width: int) -> Tensor:
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
    keys = np.sort(((falling.long() << 32) | ids).cpu().numpy(), axis=1)
    return torch.from_numpy(keys).to(z.device) & 0xFFFFFFFF


def _logprobs_of(ids: Tensor, z: Tensor, top: Tensor) -> Tensor:
    """log_softmax of `z` (B, V) at `ids` (B, K), by way of the best entry's probability.

    softmax is one fused pass, logsumexp is four; and large logits never meet a small logarithm. The fused pass sums a
    whole row in float32, so its sum is taken again tile by tile.
    """
    p = z.softmax(dim=1)
    mass = _tiled(p, torch.sum).double().sum(dim=1, keepdim=True)
    return (z.gather(1, ids) - top) + (p.amax(dim=1, keepdim=True) / mass).log().float()
