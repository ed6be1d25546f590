"""Attention over pages in place: flash decoding, with the columns of a row split over programs and merged after."""

from functools import cache
from os import environ
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = 1.4426950408889634
SPLIT_KEYS = 256  # a split of fewer keys costs more to merge than it saves
MOST_SPLITS = 64
WAVES = 4  # programs that a multiprocessor has room for: about 128 registers in each of 128 threads
NO_WINDOW = 1 << 30
# What changes from one forward to the next must not compile a kernel anew.
VARYING = ["blocks_row", "positions_row", "own_row"]
TABLES = ["blocks_ptr", "positions_ptr", "own_ptr"]


@triton.jit
def _dot(a, b, total, WIDEN: tl.constexpr):
    """a @ b + total in float32; float32 operands keep all their digits."""
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=TABLES)
def attend_pages(
    query_ptr,
    kv_ptr,
    blocks_ptr,
    positions_ptr,
    own_ptr,
    out_ptr,
    lse_ptr,
    query_row,
    query_head,
    query_token,
    blocks_row,
    positions_row,
    own_row,
    queries,
    window,
    scale,
    FOLDS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    PAGE: tl.constexpr,
    TILE: tl.constexpr,
    KEYS: tl.constexpr,
    PART: tl.constexpr,
    SPLIT: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Grid (B, kv_heads * tiles, splits): `TILE` query rows of one key head over one split of their columns.

    A query row is one query head of one query token; the `FOLDS` heads of a token lie beside each other. Writes the
    output in float32 for `merge_splits` with the base-2 logarithm of its mass, or without SPLIT the output itself.
    The query's own key starts the sum in the first split, so the loop reads the shared columns alone.
    """
    row = tl.program_id(0).to(tl.int64)
    tiles = tl.cdiv(queries * FOLDS, TILE)
    kv_head = tl.program_id(1) // tiles
    split = tl.program_id(2)
    splits = tl.num_programs(2)
    lane = tl.program_id(1) % tiles * TILE + tl.arange(0, TILE)
    token = lane // FOLDS
    head = kv_head * FOLDS + lane % FOLDS
    inside = token < queries
    d = tl.arange(0, DIM_PAD)
    deep = d < DIM
    table_ptr = blocks_ptr + row * blocks_row
    kv_ptr += kv_head * DIM
    positions = tl.load(positions_ptr + row * positions_row + token, mask=inside, other=0)
    stop = tl.max(positions, axis=0)
    first = tl.min(tl.where(positions > 0, tl.maximum(positions - window + 1, 0), stop), axis=0)
    share = tl.cdiv(tl.cdiv(stop, KEYS) - first // KEYS, splits) * KEYS
    start = first // KEYS * KEYS + split * share
    stop = tl.minimum(stop, start + share)
    out_row = (row * queries + token) * (KV_HEADS * FOLDS) + head
    if SPLIT:
        out_row = out_row * splits + split
        if (split > 0) & (start >= stop):
            tl.store(lse_ptr + out_row, tl.full((TILE,), float("-inf"), tl.float32), mask=inside)
            return

    query_at = query_ptr + row * query_row + (head * query_head + token * query_token)[:, None]
    query = tl.load(query_at + d[None, :], mask=inside[:, None] & deep[None, :], other=0.0)
    mine = inside & (split == 0)
    own = tl.load(own_ptr + row * own_row + token, mask=mine, other=0)
    slot = tl.load(table_ptr + own // PAGE, mask=mine, other=0).to(tl.int64) * PAGE + own % PAGE
    at = kv_ptr + slot[:, None] * (2 * KV_HEADS * DIM) + d[None, :]
    key = tl.load(at, mask=mine[:, None] & deep[None, :], other=0.0).to(tl.float32)
    top = tl.where(split == 0, tl.sum(query.to(tl.float32) * key, axis=1) * scale, float("-inf"))
    mass = tl.where(split == 0, tl.full((TILE,), 1.0, tl.float32), 0.0)
    total = tl.load(at + KV_HEADS * DIM, mask=mine[:, None] & deep[None, :], other=0.0).to(tl.float32)

    columns = start + tl.arange(0, KEYS)
    pages = tl.load(table_ptr + columns // PAGE, mask=columns < stop, other=0)
    while start < stop:
        real = (columns >= first) & (columns < stop)
        slots = kv_ptr + (pages.to(tl.int64) * PAGE + columns % PAGE) * (2 * KV_HEADS * DIM)
        values = tl.load(slots[:, None] + (KV_HEADS * DIM + d)[None, :], mask=real[:, None] & deep[None, :], other=0.0)
        scores = tl.zeros((TILE, KEYS), tl.float32)
        for begin in tl.static_range(0, DIM_PAD, PART):
            part = begin + tl.arange(0, PART)
            keys = tl.load(slots[None, :] + part[:, None], mask=real[None, :] & (part < DIM)[:, None], other=0.0)
            if PART == DIM_PAD:
                piece = query
            else:
                piece = tl.load(query_at + part[None, :], mask=inside[:, None] & (part < DIM)[None, :], other=0.0)
            scores = _dot(piece, keys, scores, WIDEN)
        back = positions[:, None] - columns[None, :]
        start += KEYS
        columns += KEYS
        pages = tl.load(table_ptr + columns // PAGE, mask=columns < stop, other=0)
        scores = tl.where((back > 0) & (back < window), scores * scale, float("-inf"))
        best = tl.maximum(top, tl.max(scores, axis=1))
        safe = tl.where(best == float("-inf"), 0.0, best)
        probs = tl.exp2(scores - safe[:, None])
        decay = tl.exp2(top - safe)
        mass = mass * decay + tl.sum(probs, axis=1)
        total = _dot(probs.to(values.dtype), values, total * decay[:, None], WIDEN)
        top = best

    mass = tl.where(mass == 0.0, 1.0, mass)  # nothing seen: top is -inf
    total = total / mass[:, None]
    at = out_ptr + out_row[:, None] * DIM + d[None, :]
    tl.store(at, total.to(out_ptr.dtype.element_ty), mask=inside[:, None] & deep[None, :])
    if SPLIT:
        tl.store(lse_ptr + out_row, top + tl.log2(mass), mask=inside)


@triton.jit(do_not_specialize=["splits"])
def merge_splits(
    partial_ptr, lse_ptr, out_ptr, splits, DIM: tl.constexpr, DIM_PAD: tl.constexpr, SPLITS_PAD: tl.constexpr
):
    """Grid (B * q * heads,): the mean of a query row's splits by their mass; a split of no mass is not read."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS_PAD)
    d = tl.arange(0, DIM_PAD)
    deep = d < DIM
    lse = tl.load(lse_ptr + row * splits + split, mask=split < splits, other=float("-inf"))
    weight = tl.exp2(lse - tl.max(lse, axis=0))
    at = partial_ptr + (row * splits + split)[:, None] * DIM + d[None, :]
    partial = tl.load(at, mask=(weight > 0)[:, None] & deep[None, :], other=0.0)
    merged = tl.sum(partial * weight[:, None], axis=0) / tl.sum(weight, axis=0)
    tl.store(out_ptr + row * DIM + d, merged.to(out_ptr.dtype.element_ty), mask=deep)


def paged_attention_triton(
    query: Tensor,
    kv: Tensor,
    blocks: Tensor,
    positions: Tensor,
    own: Tensor,
    *,
    scaling: float | None = None,
    window: int | None = None,
    splits: int | None = None,
) -> Tensor:
    """As `paged_attention`, with the tensors of its plan. `splits` is chosen by the shapes alone where not given."""
    rows, heads, queries, dim = query.shape
    _, page_size, _, kv_heads, _ = kv.shape
    if not kv.is_contiguous() or query.dtype != kv.dtype or query.dtype == torch.float64:
        raise ValueError("paged attention needs contiguous pages and a query of their dtype, at most float32")
    if query.stride(3) != 1:
        query = query.contiguous()
    folds = heads // kv_heads
    dim_pad = max(16, triton.next_power_of_2(dim))
    tiling = Tiling.of(folds * queries, dim_pad, query.element_size())
    tiles = triton.cdiv(folds * queries, tiling.rows)
    if splits is None:
        splits = choose_splits(rows * kv_heads * tiles, blocks.shape[1] * page_size, processors(query.device))
    out = query.new_empty((rows, queries, heads, dim))
    partial = lse = out
    if splits > 1:
        count = rows * queries * heads * splits
        scratch = torch.empty(count * (dim + 1), dtype=torch.float32, device=query.device)
        partial, lse = scratch[: count * dim], scratch[count * dim :]
    attend_pages[(rows, kv_heads * tiles, splits)](
        query,
        kv,
        blocks,
        positions,
        own,
        partial,
        lse,
        query.stride(0),
        query.stride(1),
        query.stride(2),
        blocks.stride(0),
        positions.stride(0),
        own.stride(0),
        queries,
        NO_WINDOW if window is None else window,
        (dim**-0.5 if scaling is None else scaling) * LOG2E,
        FOLDS=folds,
        KV_HEADS=kv_heads,
        DIM=dim,
        DIM_PAD=dim_pad,
        PAGE=page_size,
        TILE=tiling.rows,
        KEYS=tiling.keys,
        PART=tiling.part,
        SPLIT=splits > 1,
        WIDEN=environ.get("TRITON_INTERPRET") == "1",  # the interpreter multiplies bfloat16 as integers
        num_warps=tiling.warps,
    )
    if splits > 1:
        merge_splits[(rows * queries * heads,)](
            partial, lse, out, splits, DIM=dim, DIM_PAD=dim_pad, SPLITS_PAD=triton.next_power_of_2(splits)
        )
    return out


class Tiling(NamedTuple):
    """What one program of `attend_pages` works on at a time, chosen so that nothing spills."""

    rows: int  # query rows
    keys: int
    part: int  # of the head size in one product of queries and keys
    warps: int

    @classmethod
    def of(cls, query_rows: int, dim_pad: int, element_size: int) -> "Tiling":
        """For `query_rows` query rows of one key head. Exact float32 products take many registers: smaller tiles."""
        widest = 32 if element_size == 4 else 64
        rows = min(widest, max(16, triton.next_power_of_2(query_rows)))
        return cls(rows, widest, min(widest, dim_pad), warps=4 if rows * dim_pad * element_size <= 8192 else 8)


def choose_splits(programs: int, keys: int, processors: int) -> int:
    """Splits of rows of up to `keys` columns, so that `programs` times splits fill the GPU; a power of two."""
    splits = min(WAVES * processors // programs, keys // SPLIT_KEYS, MOST_SPLITS)
    return 1 << max(1, splits).bit_length() - 1


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
