"""Draws among listed candidates in one launch, a row per program; ranks and running sums come from comparing pairs."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimtab.kernels.ops_triton import uniform
from trimtab.kernels.philox import Keys
from trimtab.kernels.survivors import RowParams

COLUMNS = 8
_PAST = tl.constexpr(2147483647)  # above every id
CHUNK = tl.constexpr(16)  # entries that all are compared with at a time
_NEG_INF = tl.constexpr(float("-inf"))
_BIGGEST = tl.constexpr(3.4028234663852886e38)


@triton.jit
def _store_number(pointer, number, alive):
    """The float32 bits of a float64, NaN where the row is not `alive`."""
    number = tl.where(alive, number, float("nan")).to(tl.float32)
    tl.store(pointer, number.to(tl.int32, bitcast=True))


@triton.jit
def _ranks(z, ids, weights, K_PAD: tl.constexpr):
    """How many entries beat each one, by `z` and then by lower id, and the sum of their weights; (K_PAD,) each."""
    rank, before = tl.zeros((K_PAD,), tl.int32), tl.zeros((K_PAD,), tl.float64)
    for start in range(0, K_PAD, CHUNK):
        others = start + tl.arange(0, CHUNK)
        other_z, other_id = tl.gather(z, others, 0)[None, :], tl.gather(ids, others, 0)[None, :]
        better = (other_z > z[:, None]) | ((other_z == z[:, None]) & (other_id < ids[:, None]))
        rank += tl.sum(better.to(tl.int32), axis=1)
        before += tl.sum(tl.where(better, tl.gather(weights, others, 0)[None, :], 0.0), axis=1)
    return rank, before


@triton.jit
def _reached(ids, weights, K_PAD: tl.constexpr):
    """The sum of the weights up to each id, its own included, (K_PAD,); it never falls from one id to the next."""
    reached = tl.zeros((K_PAD,), tl.float64)
    for start in range(0, K_PAD, CHUNK):
        others = start + tl.arange(0, CHUNK)
        up_to = tl.gather(ids, others, 0)[None, :] <= ids[:, None]
        reached += tl.sum(tl.where(up_to, tl.gather(weights, others, 0)[None, :], 0.0), axis=1)
    return reached


@triton.jit
def finish_listed(
    z_ptr,
    base_ptr,
    valid_ptr,
    ids_ptr,
    base_best_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    seeds_ptr,
    streams_ptr,
    positions_ptr,
    out_ptr,
    k,
    K_PAD: tl.constexpr,
    FILTERED: tl.constexpr,
    BEST_GIVEN: tl.constexpr,
):
    """One row of `finish_candidates` to `out_ptr` (R, 8) int32; numbers keep their float32 bits.

    Weights and sums are float64, so that the token is the one that the torch path draws.
    """
    row = tl.program_id(0)
    slots = tl.arange(0, K_PAD)
    listed = slots < k
    at = row * k + slots
    ids = tl.load(ids_ptr + at, mask=listed, other=_PAST).to(tl.int32)
    valid = tl.load(valid_ptr + at, mask=listed, other=0) != 0
    z = tl.load(z_ptr + at, mask=listed, other=_NEG_INF)
    base = tl.load(base_ptr + at, mask=listed, other=_NEG_INF)
    nan = tl.max((valid & (z != z)).to(tl.int32), axis=0)
    live = valid & (z > _NEG_INF)
    alive = tl.max(live.to(tl.int32), axis=0) > 0
    z = tl.where(live, tl.minimum(tl.where(live, z, 0.0), _BIGGEST), _NEG_INF)
    top = tl.where(alive, tl.max(z, axis=0), 0.0)
    best = tl.min(tl.where(live & (z == top), ids, _PAST), axis=0)

    temperature = tl.load(temperature_ptr + row)
    greedy = temperature == 0.0
    scale = tl.where(greedy, 1.0, temperature).to(tl.float64)
    depth = (top.to(tl.float64) - tl.where(live, z, top).to(tl.float64)) / scale
    weights = tl.where(live, tl.exp(-depth), 0.0)
    if FILTERED:
        top_k, top_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row).to(tl.float64)
        rank, before = _ranks(z, ids, weights, K_PAD)
        kept = (weights >= tl.load(min_p_ptr + row).to(tl.float64)) & ((rank < top_k) | (top_k == 0))
        total = tl.sum(tl.where(kept, weights, 0.0), axis=0)
        kept = kept & (before < tl.where(top_p == 1.0, float("inf"), top_p * total))
        weights = tl.where(kept, weights, tl.where(greedy, weights, 0.0))

    reached = _reached(ids, weights, K_PAD)
    mass = tl.where(alive, tl.max(reached, axis=0), 1.0)
    # A uniform is at most 1 - 2**-53, so the product stays below the mass.
    target = mass * uniform(tl.load(seeds_ptr + row), tl.load(streams_ptr + row), tl.load(positions_ptr + row))
    drawn = tl.min(tl.where((reached > target) & (weights > 0.0), ids, _PAST), axis=0)
    token = tl.where(greedy, best, drawn)

    log_mass = tl.log(mass)
    inside = weights > 0.0
    entropy = log_mass + tl.sum(weights * depth, axis=0) / mass
    base = base.to(tl.float64)
    base_mean = tl.sum(tl.where(inside, weights * tl.where(inside, base, 0.0), 0.0), axis=0) / mass
    kl = -entropy - base_mean
    known = base > _NEG_INF  # and no NaN
    base_top = tl.max(tl.where(known, base, _NEG_INF), axis=0)
    if BEST_GIVEN:
        base_best = tl.load(base_best_ptr + row).to(tl.int32)
    else:
        base_best = tl.min(tl.where(known & (base == base_top), ids, _PAST), axis=0)
    changed = alive & (base_top > _NEG_INF) & (best != base_best)

    out_ptr += row * 8
    mine = ids == token
    tl.store(out_ptr, tl.where(alive, token, -1))
    _store_number(out_ptr + 1, -tl.sum(tl.where(mine, depth, 0.0), axis=0) - log_mass, alive)
    _store_number(out_ptr + 2, tl.sum(tl.where(mine, base, 0.0), axis=0), alive)
    _store_number(out_ptr + 3, entropy, alive)
    _store_number(out_ptr + 4, tl.where(kl < 0.0, 0.0, kl), alive)
    _store_number(out_ptr + 5, 1.0 / mass, alive)
    tl.store(out_ptr + 6, changed.to(tl.int32))
    tl.store(out_ptr + 7, nan)


def finish_candidates_triton(
    z: Tensor,
    base_logprob: Tensor,
    valid: Tensor,
    ids: Tensor,
    params: RowParams,
    keys: Keys,
    base_best: Tensor | None,
) -> Tensor:
    """The fields of `Finished` in their order, (R, 8) int32, for lists of 1 to 256 tokens with ids below 2**31 - 1."""
    rows, k = z.shape
    packed = torch.empty(rows, COLUMNS, dtype=torch.int32, device=z.device)
    k_pad = max(16, triton.next_power_of_2(k))
    finish_listed[rows,](
        z.contiguous(),
        base_logprob.contiguous(),
        valid.contiguous().view(torch.int8),
        ids.contiguous(),
        ids if base_best is None else base_best,
        *params.columns(z.device),
        *keys,
        packed,
        k,
        K_PAD=k_pad,
        FILTERED=params.any_ranked or params.any_min_p,
        BEST_GIVEN=base_best is not None,
        num_warps=4,
    )
    return packed
