"""Keys and values in pages, under unmodified transformers modules.

A module calls `Cache.update` with the new keys and values and passes what it returns straight to the attention
function. Here `update` writes them into the page pool and returns the layer itself; `attend_pages`, registered
under transformers' attention interface, then reads the pages of every row (`kernels/paged_attention.py`).

Layout per layer: (pages, page_size, 2, kv_heads, head_dim), tokens in order inside a page.

A forward is planned on the host, as arrays (`Plan`), and then placed on the device (`Step`): as fresh tensors, or in
the static buffers of a captured graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin

from trimtab.engine.pages import TRASH_PAGE, PagePool, PageTable
from trimtab.engine.staging import place
from trimtab.kernels.backend import Backend, use_triton
from trimtab.kernels.paged_attention import AttentionPlan, AttentionPlanner, paged_attention

ATTENTION = "trimtab_paged"

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class KVShape:
    """What a model's attention layers have in common."""

    layers: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Where one forward reads and writes the pool, on the host; for the columns see `AttentionPlan`."""

    positions: IntArray  # (B, q)
    slots: IntArray  # (B * q,) token slots to write
    blocks: IntArray  # (B, W) pages of each row, padded with the trash page
    own: IntArray  # (B, q) the column of each query's own key


@dataclass(frozen=True, slots=True)
class Step:
    """A plan on the device; the same for every layer."""

    positions: Tensor  # (B, q) int64
    slots: Tensor  # (B * q,) int64
    attention: AttentionPlan


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
        """Write (B, kv_heads, q, head_dim) keys and values; return the layer twice, for `attend_pages`."""
        self.write(torch.stack((key_states.transpose(1, 2), value_states.transpose(1, 2)), dim=2))
        return self, self

    def write(self, new: Tensor) -> None:
        """Write keys and values side by side, (B, q, 2, kv_heads, head_dim)."""
        self.slots.index_copy_(0, self.store.step.slots, new.flatten(0, 1))

    def attend(self, query: Tensor, scaling: float | None, window: int | None = None) -> Tensor:
        """Attention of (B, heads, q, D) over the pages, or over the last `window` keys; returns (B, q, heads, D)."""
        store = self.store
        return paged_attention(
            query, self.kv, store.step.attention, scaling=scaling, window=window, backend=store.backend
        )

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
    """of the forward that runs; whoever starts one sets it"""

    def __init__(
        self,
        pool: PagePool,
        shape: KVShape,
        dtype: torch.dtype,
        device: torch.device,
        *,
        backend: Backend = "auto",
    ) -> None:
        self.pool = pool
        self.backend = backend
        pages = (pool.total + 1, pool.page_size, 2, shape.kv_heads, shape.head_dim)
        self._kv = torch.zeros((shape.layers, *pages), dtype=dtype, device=device)
        self.cache = Cache(layers=[PagedLayer(self, kv) for kv in self._kv])
        self._planner = AttentionPlanner(self._kv[0])

    @property
    def static(self) -> bool:
        """Whether a forward's kernels take their plan from tensors alone, so that they can be captured."""
        return use_triton(self._kv, self.backend)

    @property
    def nbytes(self) -> int:
        """What the pages take."""
        return self._kv.nbytes

    def scrub(self, pages: Sequence[int]) -> None:
        """Zero pages, and the trash page, that may hold NaN: a masked key still has to be finite."""
        for page in (TRASH_PAGE, *pages):
            self.pool.forget(page)
            self._kv[:, page] = 0

    def plan(self, tables: Sequence[PageTable], counts: Sequence[int]) -> Plan:
        """Plan the forward of `counts[i]` new tokens per table, right-padded to the longest.

        Padded tokens write to the trash page. Rows that come sorted by falling length fall into few groups.
        """
        lengths = np.array([table.length for table in tables])
        columns = lengths[:, None] + np.arange(max(counts))  # (B, q)
        real = columns < (lengths + np.array(counts))[:, None]
        return self._plan(tables, columns, columns, real)

    def plan_rows(self, tables: Sequence[PageTable], counts: Sequence[int]) -> Plan:
        """Plan a forward with one row per new token, `counts[i]` in a row for table i: nothing is padded.

        All keys of a layer are written before they are read, so a token sees those before it in the same step.
        """
        each = [(table, table.length + i) for table, count in zip(tables, counts, strict=True) for i in range(count)]
        columns = np.array([column for _, column in each])[:, None]
        return self._plan([table for table, _ in each], columns, columns, np.ones_like(columns, dtype=bool))

    def plan_candidates(self, tables: Sequence[PageTable], pending: Sequence[int], candidates: Sequence[int]) -> Plan:
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
            size = self.pool.page_size
            sources = [table.pages[column // size] * size + column % size for table, column, _ in moves]
            targets = [table.pages[column // size] * size + column % size for table, _, column in moves]
            source, target = place([np.array(sources), np.array(targets)], self._kv.device)
            slots = self._kv.flatten(1, 2)
            slots[:, target] = slots[:, source]

    def place(self, plan: Plan, ids: IntArray) -> Tensor:
        """Make `plan` the step that runs; returns `ids` on the device."""
        positions, slots, placed = place([plan.positions, plan.slots, ids], self._kv.device)
        attention = self._planner.plan(plan.blocks, plan.positions, plan.own, backend=self.backend)
        self.step = Step(positions, slots, attention)
        return placed

    def _plan(self, tables: Sequence[PageTable], own: IntArray, positions: IntArray, real: BoolArray) -> Plan:
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
        return Plan(positions, slots.reshape(-1), blocks, own)


def attend_pages(
    module: nn.Module,
    query: Tensor,
    key: PagedLayer,
    value: PagedLayer,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface over a `PagedLayer`; the step's plan stands in for `attention_mask`."""
    return key.attend(query, scaling, sliding_window), None


AttentionInterface.register(ATTENTION, attend_pages)
