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
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin

from trimtab.engine.pages import TRASH_PAGE, PagePool, PageTable

ATTENTION = "trimtab_paged"
RAGGED_PAGES = 64  # rows of unequal length are attended together until padding would read this many pages in vain


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Neighbouring rows of a step whose lengths are close enough to be attended together."""

    rows: slice
    pages: Tensor  # (rows * pages per row,) padded with the trash page
    mask: Tensor  # (rows, 1, query tokens, keys) additive


@dataclass(frozen=True, slots=True)
class Step:
    """Where one forward reads and writes the pool; the same for every layer."""

    positions: Tensor  # (B, q)
    slots: Tensor  # (B * q,) token slots to write
    groups: tuple[RowGroup, ...]

    @classmethod
    def plan(
        cls, tables: Sequence[PageTable], counts: Sequence[int], *, dtype: torch.dtype, device: torch.device
    ) -> "Step":
        """Plan a forward of `counts[i]` new tokens per table, right-padded to the longest.

        Rows that come sorted by falling length fall into few groups. Padded tokens write to the trash page.
        """
        size, queries = tables[0].pool.page_size, max(counts)
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
            hidden = np.arange(width * size) > positions[start:stop, :, None]  # (rows, q, keys)
            mask = torch.zeros(hidden.shape, dtype=dtype)
            mask.masked_fill_(torch.from_numpy(hidden), torch.finfo(dtype).min)
            pages = torch.from_numpy(blocks[start:stop, :width].reshape(-1))
            groups.append(RowGroup(slice(start, stop), pages.to(device), mask[:, None].to(device)))
        return cls(
            torch.from_numpy(positions).to(device),
            torch.from_numpy(slots.reshape(-1)).to(device),
            tuple(groups),
        )


def _group(widths: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> list[tuple[int, int]]:
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

    def __init__(self, store: "KVStore", shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        kv_heads, head_dim = shape
        self.store = store
        size = store.pool.page_size
        self.kv = torch.zeros(store.pool.total + 1, size, 2, kv_heads, head_dim, dtype=dtype, device=device)
        self.slots = self.kv.flatten(0, 1)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Write (B, kv_heads, q, head_dim) keys and values; return the layer twice, for `paged_attention`."""
        new = torch.stack((key_states.transpose(1, 2), value_states.transpose(1, 2)), dim=2)  # (B, q, 2, kv_heads, D)
        self.slots.index_copy_(0, self.store.step.slots, new.flatten(0, 1))
        return self, self

    def attend(self, query: Tensor, scaling: float | None) -> Tensor:
        """Attention of (B, heads, q, D) over the pages; returns (B, q, heads, D).

        The query heads of one key head are laid beside the query tokens, so keys and values are never repeated.
        """
        rows, heads, queries, dim = query.shape
        kv_heads = self.kv.shape[3]
        shared = heads // kv_heads
        folded = query.reshape(rows, kv_heads, shared * queries, dim)
        parts = []
        for group in self.store.step.groups:
            count = group.rows.stop - group.rows.start
            kv = self.store.gather(self.kv, group.pages).view(count, -1, 2, kv_heads, dim)
            keys, values = kv.transpose(1, 3).unbind(2)  # (rows, kv_heads, L, D) each
            mask = group.mask if queries == 1 else group.mask.repeat(1, 1, shared, 1)
            parts.append(scaled_dot_product_attention(folded[group.rows], keys, values, attn_mask=mask, scale=scaling))
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

    def __init__(
        self, pool: PagePool, shapes: Sequence[tuple[int, int]], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.pool = pool
        self.layers = [PagedLayer(self, shape, dtype, device) for shape in shapes]
        self.cache = Cache(layers=list(self.layers))
        self._scratch = torch.empty(0, dtype=dtype, device=device)

    @property
    def bytes(self) -> int:
        return sum(layer.kv.nbytes for layer in self.layers)

    def begin(self, step: Step) -> None:
        """Do the page copies that forks asked for, then make `step` the one that every layer follows."""
        for source, target in self.pool.copies:
            for layer in self.layers:
                layer.kv[target] = layer.kv[source]
        self.pool.copies.clear()
        self.step = step

    def gather(self, kv: Tensor, pages: Tensor) -> Tensor:
        """Rows `pages` of `kv`, in a buffer that all layers reuse (a fresh one this large costs page faults)."""
        shape = (len(pages), *kv.shape[1:])
        need = len(pages) * kv[0].numel()
        if self._scratch.numel() < need:
            self._scratch = torch.empty(need, dtype=kv.dtype, device=kv.device)
        return torch.index_select(kv, 0, pages, out=self._scratch[:need].view(shape))


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
