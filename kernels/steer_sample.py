"""The token-level pass: edit, scale, filter and draw one token for every row of a batch of logits.

Order: edits, then the temperature and filters of `trimtab.kernels.survivors`. A row is drawn by inverting its
cumulative distribution at one uniform number: first a tile, then a token inside the tile. What a row draws depends on
that row alone, never on the rest of the batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.kernels.edits import Edits, apply_edits
from trimtab.kernels.survivors import Group, RowParams, scaled_probs, survivors
from trimtab.kernels.tiles import BIGGEST, NEG_INF, TILE, allowed, exact_best, first_best, logprobs_of, tile_of, tiled


@dataclass(frozen=True)
class SteerOut:
    """What a step drew; the log-probabilities are None unless asked for."""

    token: Tensor  # (B,) int64, -1 where nothing is allowed
    logprob: Tensor | None  # (B,) float32 under the steered distribution, nan where token is -1
    base_logprob: Tensor | None  # (B,) float32 under the logits as given, nan where token is -1
    nan: Tensor | None = None  # (B,) bool, rows whose logits held a NaN; None when none did


def reference_steer(logits: Tensor, params: RowParams, *, edits: Edits | None = None) -> tuple[Tensor, Tensor]:
    """Return the steered and the base log-distribution, (B, V) float64 each: the specification of this file.

    A greedy row shows its statistics, the distribution at temperature 1. A row with nothing allowed is nan.
    """
    base = logits.double()  # (B, V)
    z = base.clone()
    if edits is not None:
        apply_edits(z, edits)
    base, z = (torch.nan_to_num(x, nan=NEG_INF, posinf=BIGGEST, neginf=NEG_INF) for x in (base, z))
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
    z = z.masked_fill(~keep & ~greedy, NEG_INF)
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
    given = allowed(z)
    z, top, alive = given.z, given.top, given.alive
    held = torch.full_like(alive, -1, dtype=torch.int64)  # the token of a greedy row, -1 in the others
    if params.any_greedy:
        held = torch.where(params.greedy, first_best(z, given.peaks), held)
    if params.all_greedy and not logprobs:
        return SteerOut(held.masked_fill(~alive, -1), None, None, given.nan)
    token, logprob = torch.empty_like(held), torch.empty_like(top[:, 0])
    for g in params.groups:
        rows = g.rows
        row_z, row_top, uniform = z[rows], top[rows], uniforms[rows, None]
        if g.ranked:
            token[rows], logprob[rows] = _draw_ranked(row_z, row_top, g, uniform)
        else:
            token[rows], logprob[rows] = _draw_open(row_z, row_top, g, uniform, held[rows, None])
    if not logprobs:
        return SteerOut(token.masked_fill(~alive, -1), None, None, given.nan)
    base_logprob = logprob
    if edits is not None:
        base = allowed(logits.float())
        z, top = base.z, base.top
    if edits is not None or not params.plain:
        base_logprob = logprobs_of(token[:, None], z, top)[:, 0]
    logprob, base_logprob = (values.masked_fill(~alive, float("nan")) for values in (logprob, base_logprob))
    return SteerOut(token.masked_fill(~alive, -1), logprob, base_logprob, given.nan)


def top_logprobs(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return values and ids, (B, k) each, of the k best entries of log_softmax(logits), ties by lower id.

    NaN logits are excluded; `k` is at most V.
    """
    given = allowed(logits.float())
    ids = exact_best(given.z, k)
    return logprobs_of(ids, given.z, given.top), ids


def _draw_open(z: Tensor, top: Tensor, g: Group, uniform: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    """Token (R,) and its log-probability (R,) for rows without top-k and top-p, greedy ones included."""
    p = scaled_probs(z, top, g)
    tile_mass = tiled(p, torch.sum).double()  # (R, S)
    cumulative = tile_mass.cumsum(dim=1)
    mass = cumulative[:, -1:].contiguous()
    tile, target = _invert(cumulative, mass, uniform)
    # Given the tile, what is left of the uniform is uniform again.
    rest = ((target - cumulative.gather(1, tile)) / tile_mass.gather(1, tile) + 1.0).clamp_(min=0.0)
    cumulative = tile_of(p, tile, 0.0).double().cumsum(dim=1)
    inside, _ = _invert(cumulative, cumulative[:, -1:].contiguous(), rest)
    token = torch.where(held >= 0, held, tile * TILE + inside)  # (R, 1)
    return token[:, 0], (p.gather(1, token).double() / mass).log().float()[:, 0]


def _draw_ranked(z: Tensor, top: Tensor, g: Group, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Token (R,) and its log-probability (R,) for rows with top-k or top-p, none of them greedy."""
    token = torch.empty(z.shape[0], dtype=torch.int64, device=z.device)
    logprob = torch.empty(z.shape[0], device=z.device)
    for s in survivors(z, top, g):
        mass = s.mass
        chosen, _ = _invert(s.cumulative, mass, uniform[s.rows])
        token[s.rows] = s.ids.gather(1, chosen)[:, 0]
        logprob[s.rows] = (-s.depth.gather(1, chosen) - mass.log()).float()[:, 0]
    return token, logprob


def _invert(cumulative: Tensor, total: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Find where the rising rows of `cumulative` (R, C) pass `uniform` * `total`, (R, 1) each, all float64.

    Returns that index, whose weight is never zero, and the product.
    """
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True), target
