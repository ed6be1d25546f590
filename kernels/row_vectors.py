"""Control vectors by row: each row of a batch adds a vector of its own to the hidden states of a layer.

Representation engineering, arXiv 2310.01405.
"""

import torch
from torch import Tensor

from trimtab.kernels.backend import Backend, use_triton


def reference_row_vectors(hidden: Tensor, sums: Tensor, index: Tensor) -> Tensor:
    """The specification, in float64."""
    out = hidden.double()
    for row, number in enumerate(index[: len(hidden)].tolist()):
        if number >= 0:
            out[row] += sums[number].double()
    return out


def add_row_vectors(hidden: Tensor, sums: Tensor, index: Tensor | None = None, backend: Backend = "auto") -> Tensor:
    """`hidden` (B, q, D) with `sums[index[b]]` added to all tokens of row b, in the dtype of `hidden`.

    `sums` (U, D); `index` (C,) int32, C >= B, -1 leaves a row as it is. Without an index row b gets `sums[b]`, U >= B:
    the fast way in torch, for sums that were gathered once for many layers. Use what is returned: on Triton `hidden`
    itself is written to.
    """
    if use_triton(hidden, backend):
        from trimtab.kernels.row_vectors_triton import add_row_vectors_triton

        return add_row_vectors_triton(hidden, sums, index)
    rows = len(hidden)
    if index is None:
        return hidden + sums[:rows, None]
    mine = index[:rows, None, None]
    added = sums.index_select(0, index[:rows].clamp(min=0).long())[:, None]
    return torch.where(mine >= 0, hidden + added, hidden)
