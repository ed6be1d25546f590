"""Triton kernels of the row adapters: shrink to the rank, expand and add; two launches whatever the rows are.

Programs take a tile of tokens and one adapter, and leave where no token of the tile has it. Nothing on the host depends
on which rows have which adapter, so a captured launch is right for any contents of the index.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimtab.kernels.row_adapters import AdapterRows, AdapterStacks, tokens_per_row

MAX_RANK_TILE = 64
MAX_SPLITS = 8  # of the input, among programs that would otherwise be too few to fill a GPU


@triton.jit
def _has_adapter(index, token, tokens, rows, per_row, adapter):
    """Which of these tokens belong to a row of `adapter`."""
    row = token // per_row
    number = tl.load(index + row, mask=(token < tokens) & (row < rows), other=-1)
    return number == adapter


@triton.jit(do_not_specialize=["tokens", "rows", "per_row"])
def shrink(
    x,  # (tokens, inner)
    down,  # (R, inner)
    starts,  # (A + 1,) int32
    index,  # (rows,) int32
    low,  # (SPLITS, tokens, width) float32 out; written for tokens of an adapter alone
    tokens,
    rows,
    per_row,
    inner,
    width,
    x_stride,
    SPLITS: tl.constexpr,
    STEPS: tl.constexpr,  # of BLOCK_K inputs, in each split
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    token = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    adapter = tl.program_id(1)
    split = tl.program_id(2) % SPLITS
    entry = tl.program_id(2) // SPLITS * BLOCK_R + tl.arange(0, BLOCK_R)
    mine = _has_adapter(index, token, tokens, rows, per_row, adapter)
    if tl.max(mine.to(tl.int32), axis=0) > 0:
        first = tl.load(starts + adapter)
        ranked = entry < tl.load(starts + adapter + 1) - first
        if tl.max(ranked.to(tl.int32), axis=0) > 0:
            x_rows = x + token.to(tl.int64)[:, None] * x_stride
            down_rows = down + (first + entry).to(tl.int64)[None, :] * inner
            total = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
            for step in range(STEPS):
                k = (split * STEPS + step) * BLOCK_K + tl.arange(0, BLOCK_K)
                part = tl.load(x_rows + k[None, :], mask=mine[:, None] & (k < inner)[None, :], other=0.0)
                factor = tl.load(down_rows + k[:, None], mask=(k < inner)[:, None] & ranked[None, :], other=0.0)
                total = tl.dot(part.to(tl.float32), factor.to(tl.float32), total, input_precision=PRECISION)
            place = (split * tokens + token).to(tl.int64)[:, None] * width + entry[None, :]
            tl.store(low + place, total, mask=mine[:, None] & ranked[None, :])


@triton.jit(do_not_specialize=["tokens", "rows", "per_row"])
def expand_add(
    y,  # (tokens, outer), written to
    low,  # (SPLITS, tokens, width) float32
    up,  # (R, outer)
    starts,  # (A + 1,) int32
    index,  # (rows,) int32
    scales,  # (rows, scaled) float32, read if SCALED
    tokens,
    rows,
    per_row,
    outer,
    width,
    scaled,
    SCALED: tl.constexpr,
    SPLITS: tl.constexpr,
    RANK_TILES: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    token = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    adapter = tl.program_id(2)
    mine = _has_adapter(index, token, tokens, rows, per_row, adapter)
    if tl.max(mine.to(tl.int32), axis=0) > 0:
        first = tl.load(starts + adapter)
        rank = tl.load(starts + adapter + 1) - first
        if rank > 0:
            inside = column < outer
            total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for tile in range(RANK_TILES):
                entry = tile * BLOCK_R + tl.arange(0, BLOCK_R)
                ranked = entry < rank
                factor = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
                for split in range(SPLITS):
                    place = (split * tokens + token).to(tl.int64)[:, None] * width + entry[None, :]
                    factor += tl.load(low + place, mask=mine[:, None] & ranked[None, :], other=0.0)
                if SCALED:
                    place = (token // per_row)[:, None] * scaled + entry[None, :]
                    within = mine[:, None] & (ranked & (entry < scaled))[None, :]
                    factor *= tl.load(scales + place, mask=within, other=1.0)
                rows_up = up + (first + entry).to(tl.int64)[:, None] * outer
                wide = tl.load(rows_up + column[None, :], mask=ranked[:, None] & inside[None, :], other=0.0)
                total = tl.dot(factor, wide.to(tl.float32), total, input_precision=PRECISION)
            target = y + token.to(tl.int64)[:, None] * outer + column[None, :]
            mask = mine[:, None] & inside[None, :]
            total += tl.load(target, mask=mask, other=0.0).to(tl.float32)
            tl.store(target, total.to(y.dtype.element_ty), mask=mask)


def add_row_adapters_triton(y: Tensor, x: Tensor, stacks: AdapterStacks, rows: AdapterRows) -> Tensor:
    """As `add_row_adapters`; never synchronises, and its launches depend on shapes alone."""
    wide = y.to(stacks.up.dtype)
    inner, outer = stacks.down.shape[1], stacks.up.shape[1]
    adapters = len(stacks.starts) - 1
    if x.numel() == 0 or stacks.width == 0:
        return wide
    per_row = x[0].numel() // inner if x.dim() > 2 else tokens_per_row(x, rows)
    flat, out = x.reshape(-1, inner), wide.view(-1, outer)
    if flat.stride(1) != 1:
        flat = flat.contiguous()
    tokens = len(flat)
    # Products of two 16-bit floats are exact in tf32, which NVIDIA's matrix units have. Without them larger tiles spill
    # registers.
    exact = max(x.element_size(), stacks.down.element_size()) > 2 or torch.version.hip is not None
    precision = "ieee" if exact else "tf32"
    block_m = 16 if exact or tokens <= 256 else 64
    tiles = triton.cdiv(tokens, block_m)
    block_r = min(max(16, triton.next_power_of_2(stacks.width)), MAX_RANK_TILE)
    block_k = 128 if block_m == 16 and block_r <= 32 else 64
    steps = triton.cdiv(inner, block_k)
    splits = min(MAX_SPLITS, triton.cdiv(steps, 4)) if tiles <= 16 else 1
    low = torch.empty(splits, tokens, stacks.width, dtype=torch.float32, device=x.device)
    shrink[(tiles, adapters, splits * triton.cdiv(stacks.width, block_r))](
        flat,
        stacks.down,
        stacks.starts,
        rows.index,
        low,
        tokens,
        len(rows.index),
        per_row,
        inner,
        stacks.width,
        flat.stride(0),
        SPLITS=splits,
        STEPS=triton.cdiv(steps, splits),
        PRECISION=precision,
        BLOCK_M=block_m,
        BLOCK_R=block_r,
        BLOCK_K=block_k,
        num_warps=4,
    )
    block_r = 16 if exact else block_r
    block_n = 128 if block_m == 16 else 64
    expand_add[(tiles, triton.cdiv(outer, block_n), adapters)](
        out,
        low,
        stacks.up,
        stacks.starts,
        rows.index,
        low if rows.scales is None else rows.scales,
        tokens,
        len(rows.index),
        per_row,
        outer,
        stacks.width,
        0 if rows.scales is None else rows.scales.shape[1],
        SCALED=rows.scales is not None,
        SPLITS=splits,
        RANK_TILES=triton.cdiv(stacks.width, block_r),
        PRECISION=precision,
        BLOCK_M=block_m,
        BLOCK_R=block_r,
        BLOCK_N=block_n,
        num_warps=4,
    )
    return wide
