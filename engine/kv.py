"""Keys and values in pages, under unmodified transformers modules.

A module calls `Cache.update` with the new keys and values and passes what it returns straight to the attention
function. Here `update` writes them into the page pool and returns the layer itself; `paged_attention`, registered
under transformers' attention interface, then reads the pages of every row.

Layout per layer: (pages, page_size, 2, kv_heads, head_dim), tokens in order inside a page, so that the pages of a
row laid side by side are its keys and values in order and one `index_select` fetches both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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
    mask: Tensor  # (rows, 1, heads per kv_head * query tokens, L) additive
    buffer: Tensor  # (rows * pages per row, page_size, 2, kv_heads, head_dim)
    keys: Tensor  # (rows, kv_heads, L, head_dim)
    values: Tensor


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

    def attend(self, query: Tensor, scaling: float | None) -> Tensor:
        """Attention of (B, heads, q, D) over the pages; returns (B, q, heads, D).

        The query heads of one key head are laid beside the query tokens, so keys and values are never repeated.
        """
        rows, heads, queries, dim = query.shape
        folded = query.reshape(rows, self.kv.shape[3], -1, dim)
        parts = []
        for group in self.store.step.groups:
            torch.index_select(self.kv, 0, group.pages, out=group.buffer)
            parts.append(
                scaled_dot_product_attention(
                    folded[group.rows], group.keys, group.values, attn_mask=group.mask, scale=scaling
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
        kv = [torch.zeros(pages, dtype=dtype, device=device) for _ in range(shape.layers)]
        self.layers = [PagedLayer(self, each) for each in kv]
        self.cache = Cache(layers=list(self.layers))
        self._scratch = torch.empty(0, dtype=dtype, device=device)

    def scrub(self, pages: Sequence[int]) -> None:
        """Zero pages, and the trash page, that may hold NaN: a masked key still has to be finite."""
        for page in (TRASH_PAGE, *pages):
            self.pool.forget(page)
            for layer in self.layers:
                layer.kv[page] = 0

    def begin(self, tables: Sequence[PageTable], counts: Sequence[int]) -> Step:
        """Copy the pages that forks share and one is about to write, then plan the forward that follows.

        It takes `counts[i]` new tokens per table, right-padded to the longest; padded tokens write to the trash
        page. Rows that come sorted by falling length fall into few groups.
        """
        for source, target in self.pool.copies:
            for layer in self.layers:
                layer.kv[target] = layer.kv[source]
        self.pool.copies.clear()
        size, queries = self.pool.page_size, max(counts)
        lengths = np.array([table.length for table in tables])
        ends = lengths + np.array(counts)
        widths = -(-ends // size)
        blocks = np.full((len(tables), int(widths.max())), TRASH_PAGE)
        for row, table in enumerate(tables):
            blocks[row, : widths[row]] = table.pages[: widths[row]]
        positions = lengths[:, None] + np.arange(queries)  # (B, q)
        real = positions < ends[:, None]
        positions = np.where(real, positions, 0)
        slots = np.take_along_axis(blocks, positions // size, axis=1) * size + positions % size
        slots = np.where(real, slots, TRASH_PAGE * size)
        groups = []
        for start, stop in _group(widths):
            width = int(widths[start:stop].max())
            groups.append(self._row_group(slice(start, stop), blocks[start:stop, :width], positions[start:stop]))
        device = self._scratch.device
        self.step = Step(
            torch.from_numpy(positions).to(device), torch.from_numpy(slots.reshape(-1)).to(device), tuple(groups)
        )
        return self.step

    def _row_group(self, rows: slice, blocks: IntArray, positions: IntArray) -> RowGroup:
        shape, scratch, size = self._shape, self._scratch, self.pool.page_size
        count, width = blocks.shape
        numel = blocks.size * size * 2 * shape.kv_heads * shape.head_dim
        if scratch.numel() < numel:  # one buffer for all layers and steps: a fresh one costs page faults
            scratch = self._scratch = scratch.new_empty(numel)
        buffer = scratch[:numel].view(blocks.size, size, 2, shape.kv_heads, shape.head_dim)
        keys, values = buffer.view(count, width * size, 2, shape.kv_heads, shape.head_dim).transpose(1, 3).unbind(2)
        hidden = torch.from_numpy(np.arange(width * size) > positions[:, :, None])  # (rows, q, L)
        mask = torch.zeros(hidden.shape, dtype=scratch.dtype).masked_fill_(hidden, torch.finfo(scratch.dtype).min)
        mask = mask[:, None].repeat(1, 1, shape.heads // shape.kv_heads if positions.shape[1] > 1 else 1, 1)
        pages = torch.from_numpy(blocks.reshape(-1)).to(scratch.device)
        return RowGroup(rows, pages, mask.to(scratch.device), buffer, keys, values)


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: PagedLayer,
    value: PagedLayer,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface over a `PagedLayer`; the step's masks stand in for `attention_mask`."""
    return key.attend(query, scaling), None


AttentionInterface.register(ATTENTION, paged_attention)
