"""Triton kernel of the row vectors: one launch, which touches the rows that have a vector and no others."""

import triton
import triton.language as tl
from torch import Tensor

BLOCK_D = 1024


@triton.jit(do_not_specialize=["tokens", "rows"])
def add_vectors(
    hidden,  # (B, tokens, size), written to
    sums,  # (U, size)
    index,  # (C,) int32
    tokens,
    rows,  # C
    size,
    row_stride,
    token_stride,
    sums_stride,
    INDEXED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) // tokens
    token = tl.program_id(0) % tokens
    number = row
    if INDEXED:
        number = tl.load(index + row, mask=row < rows, other=-1)
    if number >= 0:
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = column < size
        target = hidden + row.to(tl.int64) * row_stride + token.to(tl.int64) * token_stride + column
        added = tl.load(sums + number.to(tl.int64) * sums_stride + column, mask=inside, other=0.0)
        total = tl.load(target, mask=inside, other=0.0).to(tl.float32) + added.to(tl.float32)
        tl.store(target, total.to(hidden.dtype.element_ty), mask=inside)


def add_row_vectors_triton(hidden: Tensor, sums: Tensor, index: Tensor | None) -> Tensor:
    """As `add_row_vectors`, in place; never synchronises."""
    rows, tokens, size = hidden.shape
    if hidden.stride(2) != 1:
        hidden = hidden.contiguous()
    if hidden.numel() == 0:
        return hidden
    block = min(BLOCK_D, triton.next_power_of_2(size))
    add_vectors[(rows * tokens, triton.cdiv(size, block))](
        hidden,
        sums,
        sums if index is None else index,
        tokens,
        rows if index is None else len(index),
        size,
        hidden.stride(0),
        hidden.stride(1),
        sums.stride(0),
        INDEXED=index is not None,
        BLOCK=block,
        num_warps=4,
    )
    return hidden
