"""Keys and values in pages, under unmodified transformers modules.

A module calls `Cache.update` with the new keys and values and passes what it returns straight to the attention
function. Here `update` writes them into the page pool and returns the layer itself; `paged_attention`, registered
under transformers' attention interface, then reads the pages of every row.

Layout per layer: (pages, page_size, 2, kv_heads, head_dim), tokens in order inside a page, so that the pages of a
row laid side by side are its keys and values in order and one `index_select` fetches both.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin

from trimtab.engine.pages import TRASH_PAGE, PagePool, PageTable

ATTENTION = "trimtab_paged"
RAGGED_PAGES = 64  # rows of unequal length are attended together until padding would read this many pages in vain

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class KVShape:
    """What a model's attention layers have in common."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Neighbouring rows of a step whose lengths are close enough to be attended together.

    Every layer gathers its pages into `buffer`; `keys` and `values` are views of it.
    """

    rows: slice
    pages: Tensor  # (rows * pages per row,) padded with the trash page
    positions: IntArray  # (rows, q)
    own: IntArray  # (rows, q) the column of each query's own key
    folds: int  # query heads per key head where they are laid beside each other, else 1
    buffer: Tensor  # (rows * pages per row, page_size, 2, kv_heads, head_dim)
    keys: Tensor  # (rows, kv_heads, L, head_dim)
    values: Tensor
    masks: dict[int | None, Tensor] = field(default_factory=dict)
    """by attention window; filled when the first layer of that window asks"""

    def mask(self, window: int | None) -> Tensor:
        """Additive mask (rows, 1, folds * q, L): a query sees its own key and those before its position.

        With a window, only keys less than `window` positions back.
        """
        if window not in self.masks:
            columns = np.arange(self.keys.shape[2])
            hidden = (columns >= self.positions[:, :, None]) & (columns != self.own[:, :, None])
            if window is not None:
                hidden |= columns <= self.positions[:, :, None] - window
            dtype = self.buffer.dtype
            mask = torch.zeros(hidden.shape, dtype=dtype)
            mask = mask.masked_fill_(torch.from_numpy(hidden), torch.finfo(dtype).min)
            self.masks[window] = mask[:, None].repeat(1, 1, self.folds, 1).to(self.buffer.device)
        return self.masks[window]


@dataclass(frozen=True, slots=True)
class Step:
    """Where one forward reads and writes the pool; the same for every layer."""

    positions: Tensor  # (B, q)
    slots: Tensor  # (B * q,) token slots to write
    groups: tuple[RowGroup, ...]


def _group(widths: IntArray) -> list[tuple[int, int]]:
    """Bounds of groups of neighbouring rows: a row of at most half the group's width starts a new one if it pays."""
    bounds, start = [], 0
    for row in range(1, len(widths)):
        widest = widths[start:row].max()
        if 2 * widths[row] <= widest and (widest - widths[row:]).clip(0).sum() >= RAGGED_PAGES:
            bounds.append((start, row))
            start = row
    return [*bounds, (start, len(widths))]


class PagedLayer(CacheLayerMixin):
    """One layer's pages; reads and writes follow the store's current step."""

    is_sliding = False

    def __init__(self, store: "KVStore", kv: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.store = store
        self.kv = kv  # (pages, page_size, 2, kv_heads, head_dim)
        self.slots = kv.flatten(0, 1)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Write (B, kv_heads, q, head_dim) keys and values; return the layer twice, for `paged_attention`."""
        self.write(torch.stack((key_states.transpose(1, 2), value_states.transpose(1, 2)), dim=2))
        return self, self

    def write(self, new: Tensor) -> None:
        """Write keys and values side by side, (B, q, 2, kv_heads, head_dim)."""
        self.slots.index_copy_(0, self.store.step.slots, new.flatten(0, 1))

    def attend(self, query: Tensor, scaling: float | None, window: int | None = None) -> Tensor:
        """Attention of (B, heads, q, D) over the pages, or over the last `window` keys; returns (B, q, heads, D).

        The query heads of one key head are laid beside the query tokens, so keys and values are never repeated.
        """
        rows, heads, queries, dim = query.shape
        folded = query.reshape(rows, self.kv.shape[3], -1, dim)
        parts = []
        for group in self.store.step.groups:
            torch.index_select(self.kv, 0, group.pages, out=group.buffer)
            parts.append(
                scaled_dot_product_attention(
                    folded[group.rows], group.keys, group.values, attn_mask=group.mask(window), scale=scaling
                )
            )
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return out.view(rows, heads, queries, dim).transpose(1, 2)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the pages are there from the start."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


class KVStore:
    """The page pool of one model with its tensors, and the transformers cache over them."""

    step: Step

    def __init__(self, pool: PagePool, shape: KVShape, dtype: torch.dtype, device: torch.device) -> None:
        self.pool = pool
        self._shape = shape
        pages = (pool.total + 1, pool.page_size, 2, shape.kv_heads, shape.head_dim)
        self._kv = torch.zeros((shape.layers, *pages), dtype=dtype, device=device)
        self.cache = Cache(layers=[PagedLayer(self, kv) for kv in self._kv])
        self._scratch = torch.empty(0, dtype=dtype, device=device)

    def scrub(self, pages: Sequence[int]) -> None:
        """Zero pages, and the trash page, that may hold NaN: a masked key still has to be finite."""
        for page in (TRASH_PAGE, *pages):
            self.pool.forget(page)
            self._kv[:, page] = 0

    def begin(self, tables: Sequence[PageTable], counts: Sequence[int]) -> Step:
        """Plan the forward of `counts[i]` new tokens per table, right-padded to the longest.

        Padded tokens write to the trash page. Rows that come sorted by falling length fall into few groups.
        """
        lengths = np.array([table.length for table in tables])
        columns = lengths[:, None] + np.arange(max(counts))  # (B, q)
        real = columns < (lengths + np.array(counts))[:, None]
        return self._plan(tables, columns, columns, real)

    def begin_rows(self, tables: Sequence[PageTable], counts: Sequence[int]) -> Step:
        """Plan a forward with one row per new token, `counts[i]` in a row for table i: nothing is padded.

        All keys of a layer are written before they are read, so a token sees those before it in the same step.
        """
        each = [(table, table.length + i) for table, count in zip(tables, counts, strict=True) for i in range(count)]
        columns = np.array([column for _, column in each])[:, None]
        return self._plan([table for table, _ in each], columns, columns, np.ones_like(columns, dtype=bool))

    def begin_candidates(self, tables: Sequence[PageTable], pending: Sequence[int], candidates: Sequence[int]) -> Step:
        """Plan a forward of `pending[i]` tokens and then `candidates[i]` alternatives for the next one, per table.

        Alternatives share a position; each sees the tokens before it and itself. They lie in the slots that follow
        the pending tokens until `keep` moves one of them to the first.
        """
        ends = np.array([table.length for table in tables]) + np.array(pending)
        counts = np.array(candidates)
        width = max(map(sum, zip(pending, candidates, strict=True)))
        own = (ends - np.array(pending))[:, None] + np.arange(width)  # (B, q)
        return self._plan(tables, own, np.minimum(own, ends[:, None]), own < (ends + counts)[:, None])

    def keep(self, moves: Sequence[tuple[PageTable, int, int]]) -> None:
        """Move keys and values of each table from one column to another; the columns are reserved."""
        if moves:
            size, device = self.pool.page_size, self._kv.device
            sources = [table.pages[column // size] * size + column % size for table, column, _ in moves]
            targets = [table.pages[column // size] * size + column % size for table, _, column in moves]
            slots = self._kv.flatten(1, 2)
            slots[:, torch.tensor(targets, device=device)] = slots[:, torch.tensor(sources, device=device)]

    def _plan(self, tables: Sequence[PageTable], own: IntArray, positions: IntArray, real: BoolArray) -> Step:
        """Plan a forward whose queries (B, q) have their keys in the columns `own` of their tables.

        Pages that forks share and one is about to write are copied first.
        """
        for source, target in self.pool.copies:
            self._kv[:, target] = self._kv[:, source]
        self.pool.copies.clear()
        size = self.pool.page_size
        own, positions = np.where(real, own, 0), np.where(real, positions, 0)
        widths = own.max(axis=1) // size + 1
        blocks = np.full((len(tables), int(widths.max())), TRASH_PAGE)
        for row, table in enumerate(tables):
            blocks[row, : widths[row]] = table.pages[: widths[row]]
        slots = np.take_along_axis(blocks, own // size, axis=1) * size + own % size
        slots = np.where(real, slots, TRASH_PAGE * size)
        groups = []
        for start, stop in _group(widths):
            rows = slice(start, stop)
            groups.append(self._row_group(rows, blocks[rows, : widths[rows].max()], positions[rows], own[rows]))
        device = self._kv.device
        self.step = Step(
            torch.from_numpy(positions).to(device), torch.from_numpy(slots.reshape(-1)).to(device), tuple(groups)
        )
        return self.step

    def _row_group(self, rows: slice, blocks: IntArray, positions: IntArray, own: IntArray) -> RowGroup:
        shape, scratch, size = self._shape, self._scratch, self.pool.page_size
        count, width = blocks.shape
        numel = blocks.size * size * 2 * shape.kv_heads * shape.head_dim
        if scratch.numel() < numel:  # one buffer for all layers and steps: a fresh one costs page faults
            scratch = self._scratch = scratch.new_empty(numel)
        buffer = scratch[:numel].view(blocks.size, size, 2, shape.kv_heads, shape.head_dim)
        keys, values = buffer.view(count, width * size, 2, shape.kv_heads, shape.head_dim).transpose(1, 3).unbind(2)
        pages = torch.from_numpy(blocks.reshape(-1)).to(scratch.device)
        folds = shape.heads // shape.kv_heads if positions.shape[1] > 1 else 1
        return RowGroup(rows, pages, positions, own, folds, buffer, keys, values)


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: PagedLayer,
    value: PagedLayer,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface over a `PagedLayer`; the step's masks stand in for `attention_mask`."""
    return key.attend(query, scaling, sliding_window), None


AttentionInterface.register(ATTENTION, paged_attention)
