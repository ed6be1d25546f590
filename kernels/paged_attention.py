"""Attention over keys and values in pages: decode steps, candidates for the next token, and chunks of a prompt.

One layer's pages are (pages, page_size, 2, kv_heads, head_dim), tokens in order inside a page, keys and values side by
side, so that the pages of a row laid side by side are its keys and values in order and one gather fetches both.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from trimtab.kernels.backend import Backend, use_triton

KERNEL_QUERIES = 64  # more queries per row than this are a prompt: their pages are gathered on every device
RAGGED_PAGES = 64  # rows of unequal length are attended together until padding would read this many pages in vain

IntArray = npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Neighbouring rows of a forward whose lengths are close enough to be gathered and attended together.

    Every layer gathers its pages into `buffer`; `keys` and `values` are views of it.
    """

    rows: slice
    pages: Tensor  # (rows * pages per row,) int32, padded with the trash page
    positions: Tensor  # (rows, q) int32
    own: Tensor  # (rows, q) int32
    buffer: Tensor  # (rows * pages per row, page_size, 2, kv_heads, D)
    keys: Tensor  # (rows, kv_heads, L, D)
    values: Tensor
    masks: dict[tuple[int | None, int], Tensor] = field(default_factory=dict)
    """by window and folds; filled when the first layer of that window asks"""

    def mask(self, window: int | None, folds: int) -> Tensor:
        """Additive mask (rows, 1, folds * q, L): what a query does not see is the dtype's smallest number."""
        key = (window, folds)
        if key not in self.masks:
            columns = torch.arange(self.keys.shape[2], dtype=torch.int32, device=self.own.device)
            hidden = (columns >= self.positions[:, :, None]) & (columns != self.own[:, :, None])
            if window is not None:
                hidden |= columns <= self.positions[:, :, None] - window
            dtype = self.buffer.dtype
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            mask = mask.masked_fill_(hidden, torch.finfo(dtype).min)
            self.masks[key] = mask[:, None].repeat(1, 1, folds, 1)
        return self.masks[key]


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Which keys the queries of one forward see; made once, the same for every layer.

    Query j of row i sees its own key, in column own[i, j] of the row, and the keys in the columns before
    positions[i, j] <= own[i, j]; with a window only those after positions[i, j] - window. So in a decode step and a
    chunk of a prompt both are the token's place, and candidates for a next token at `end` have position `end` and own
    `end + j`. Padded queries have 0 for both.

    The tensors are int32 on the device, their last stride is 1. The kernel reads them when it runs, so a captured
    graph may be replayed over other contents. `groups` are for the torch path alone.
    """

    blocks: Tensor  # (B, W) page numbers of each row, padded with the trash page
    positions: Tensor  # (B, q)
    own: Tensor  # (B, q)
    groups: tuple[RowGroup, ...] = ()


class AttentionPlanner:
    """Makes plans over one model's pages, and owns the buffer into which their groups gather them."""

    def __init__(self, kv: Tensor) -> None:
        """`kv` are the pages of any layer; their shape, dtype and device are what counts."""
        self._page = kv.shape[1:]
        self._scratch = torch.empty(0, dtype=kv.dtype, device=kv.device)

    def plan(self, blocks: IntArray, positions: IntArray, own: IntArray, *, backend: Backend = "auto") -> AttentionPlan:
        """Plan a forward from the fields of `AttentionPlan` as arrays, for the backend that is going to run it.

        Nothing waits for the device. Rows that come sorted by falling length fall into few groups. The plan's groups
        are valid until the next one is made.
        """
        queries = own.shape[1]
        packed = _upload(np.concatenate((positions, own, blocks), axis=1).astype(np.int32), self._scratch.device)
        plan = AttentionPlan(packed[:, 2 * queries :], packed[:, :queries], packed[:, queries : 2 * queries])
        if _in_kernel(self._scratch, queries, backend):
            return plan
        widths = own.max(axis=1) // self._page[0] + 1
        groups = [self._row_group(plan, rows, int(widths[rows].max())) for rows in _group(widths)]
        return AttentionPlan(plan.blocks, plan.positions, plan.own, tuple(groups))

    def _row_group(self, plan: AttentionPlan, rows: slice, width: int) -> RowGroup:
        count = rows.stop - rows.start
        shape = (count * width, *self._page)
        numel = math.prod(shape)
        if self._scratch.numel() < numel:  # one buffer for all layers and plans: a fresh one costs page faults
            self._scratch = self._scratch.new_empty(numel)
        buffer = self._scratch[:numel].view(shape)
        keys, values = buffer.view(count, -1, *self._page[1:]).transpose(1, 3).unbind(2)
        pages = plan.blocks[rows, :width].reshape(-1)
        return RowGroup(rows, pages, plan.positions[rows], plan.own[rows], buffer, keys, values)


def reference_paged_attention(
    query: Tensor, kv: Tensor, plan: AttentionPlan, *, scaling: float | None = None, window: int | None = None
) -> Tensor:
    """Attention from its definition in float64, over the keys that each query sees: the specification."""
    rows, heads, queries, dim = query.shape
    size, folds = kv.shape[1], heads // kv.shape[3]
    out = query.new_empty((rows, queries, heads, dim), dtype=torch.float64)
    for row in range(rows):
        for j in range(queries):
            position, own = int(plan.positions[row, j]), int(plan.own[row, j])
            first = 0 if window is None else max(0, position - window + 1)
            columns = torch.tensor([*range(first, position), own], device=kv.device)
            pages = plan.blocks[row].long()[columns // size]
            keys, values = kv[pages, columns % size].double().repeat_interleave(folds, dim=2).unbind(1)  # (n, heads, D)
            scores = (keys * query[row, :, j].double()).sum(-1) * (dim**-0.5 if scaling is None else scaling)
            out[row, j] = (scores.softmax(dim=0)[:, :, None] * values).sum(0)
    return out


def paged_attention(
    query: Tensor,
    kv: Tensor,
    plan: AttentionPlan,
    *,
    scaling: float | None = None,
    window: int | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Attention of `query` (B, heads, q, D) over one layer's pages `kv`, contiguous; returns (B, q, heads, D).

    Scores are scaled by `scaling`, or by D**-0.5. `window` bounds how far back a query sees, itself included.
    On a GPU up to `KERNEL_QUERIES` queries per row read their pages in place and never touch what no query of the row
    sees. Elsewhere the pages are gathered, so what they and the trash page hold has to be finite. Raises ValueError
    where that needs groups and the plan was made without.
    """
    if _in_kernel(query, query.shape[2], backend):
        from trimtab.kernels.paged_attention_triton import paged_attention_triton

        return paged_attention_triton(query, kv, plan.blocks, plan.positions, plan.own, scaling=scaling, window=window)
    if not plan.groups:
        raise ValueError("the plan has no groups to gather: make it for the backend that runs it")
    # The query heads of one key head are laid beside the query tokens, so keys and values are never repeated.
    rows, heads, queries, dim = query.shape
    folded = query.reshape(rows, kv.shape[3], -1, dim)
    folds = heads // kv.shape[3] if queries > 1 else 1
    parts = []
    for group in plan.groups:
        torch.index_select(kv, 0, group.pages, out=group.buffer)
        mask = group.mask(window, folds)
        parts.append(
            scaled_dot_product_attention(folded[group.rows], group.keys, group.values, attn_mask=mask, scale=scaling)
        )
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out.view(rows, heads, queries, dim).transpose(1, 2)


def _in_kernel(tensor: Tensor, queries: int, backend: Backend) -> bool:
    return queries <= KERNEL_QUERIES and use_triton(tensor, backend)


def _upload(array: npt.NDArray[np.int32], device: torch.device) -> Tensor:
    """Return the array on the device; a GPU copies it from pinned memory, while the host goes on."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _group(widths: IntArray) -> list[slice]:
    """Groups of neighbouring rows: a row of at most half the group's width starts a new one if it pays."""
    bounds = [0]
    for row in range(1, len(widths)):
        widest = widths[bounds[-1] : row].max()
        if 2 * widths[row] <= widest and (widest - widths[row:]).clip(0).sum() >= RAGGED_PAGES:
            bounds.append(row)
    return [slice(start, stop) for start, stop in zip(bounds, [*bounds[1:], len(widths)], strict=True)]
