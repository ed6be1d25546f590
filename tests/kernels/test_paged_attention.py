"""Paged attention: both implementations against the definition, and what a kernel over pages may get wrong."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
import torch
from device import DEVICE
from torch import Tensor

from trimtab.kernels.paged_attention import (
    KERNEL_QUERIES,
    AttentionPlan,
    AttentionPlanner,
    paged_attention,
    reference_paged_attention,
)

pytest.importorskip("triton")
from trimtab.kernels.paged_attention_triton import Tiling, choose_splits, paged_attention_triton

Path = Literal["torch", "triton"]
BACKENDS: tuple[Path, ...] = ("torch", "triton")


@dataclass
class Case:
    query: Tensor
    kv: Tensor
    plan: AttentionPlan
    window: int | None = None

    def run(self, backend: Path) -> Tensor:
        return paged_attention(self.query, self.kv, self.plan, window=self.window, backend=backend)

    def splits(self, splits: int) -> Tensor:
        plan = self.plan
        return paged_attention_triton(
            self.query, self.kv, plan.blocks, plan.positions, plan.own, window=self.window, splits=splits
        )

    def expected(self) -> Tensor:
        return reference_paged_attention(self.query, self.kv, self.plan, window=self.window)


def case(
    lengths: Sequence[int],
    *,
    queries: Sequence[int] | int = 1,
    candidates: bool = False,
    folds: int = 2,
    kv_heads: int = 1,
    dim: int = 16,
    page: int = 16,
    window: int | None = None,
    dtype: torch.dtype = torch.float32,
    wider: int = 0,
    shared: int = 0,
) -> Case:
    """Rows with `lengths` keys before their `queries` new ones, in pages in random order behind the trash page.

    The new keys follow each other, or are candidates for one position. The first `shared` pages of all rows are the
    first row's; the table is `wider` than needed. What no row owns is NaN where only the kernel runs.
    """
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    counts = np.full(len(lengths), queries) if isinstance(queries, int) else np.array(queries)
    own = np.array(lengths)[:, None] + np.arange(counts.max())
    real = own < (np.array(lengths) + counts)[:, None]
    positions = np.minimum(own, np.array(lengths)[:, None]) if candidates else own
    own, positions = np.where(real, own, 0), np.where(real, positions, 0)
    widths = own.max(axis=1) // page + 1
    numbers = rng.permutation(np.arange(1, widths.sum() + 1))
    blocks = np.zeros((len(lengths), widths.max() + wider), dtype=np.int64)
    for row, width in enumerate(widths):
        blocks[row, :width], numbers = numbers[:width], numbers[width:]
        blocks[row, :shared] = blocks[0, :shared]
    kv = torch.randn(widths.sum() + 1, page, 2, kv_heads, dim, generator=generator).to(DEVICE, dtype)
    query = torch.randn(len(lengths), own.shape[1], kv_heads * folds, dim, generator=generator).to(DEVICE, dtype)
    plan = AttentionPlanner(kv).plan(blocks, positions, own, backend="torch")
    return Case(query.transpose(1, 2), kv, plan, window)


def close(got: Tensor, expected: Tensor) -> None:
    tolerance = 3e-5 if got.dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)


def poison(given: Case) -> Case:
    """The case with NaN in every key and value that no query of it sees, the trash page's first."""
    size, plan = given.kv.shape[1], given.plan
    seen = torch.zeros(given.kv.shape[:2], dtype=torch.bool, device=DEVICE)
    for row in range(len(plan.blocks)):
        for position, own in zip(plan.positions[row].tolist(), plan.own[row].tolist(), strict=True):
            first = 0 if given.window is None else max(0, position - given.window + 1)
            columns = torch.tensor([*range(first, position), own], device=DEVICE)
            seen[plan.blocks[row].long()[columns // size], columns % size] = True
    kv = given.kv.clone()
    kv[~seen] = torch.nan
    assert kv[0].isnan().all()
    return Case(given.query, kv, plan, given.window)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"lengths": (0, 1, 40, 16)}, id="lengths"),
        pytest.param({"lengths": (70, 3), "folds": 1}, id="plain heads"),
        pytest.param({"lengths": (70, 3), "folds": 3, "kv_heads": 2}, id="three heads per key head"),
        pytest.param({"lengths": (70, 3), "folds": 4}, id="four heads per key head"),
        pytest.param({"lengths": (5, 33), "dim": 64, "page": 1}, id="pages of one token"),
        pytest.param({"lengths": (5, 133), "dim": 80, "page": 64}, id="a head of 80"),
        pytest.param({"lengths": (7, 21), "dim": 8, "page": 5}, id="a head of 8, pages of 5"),
        pytest.param({"lengths": (30, 3, 64), "window": 8}, id="window"),
        pytest.param({"lengths": (200,), "window": 90}, id="window of several tiles"),
        pytest.param({"lengths": (30, 0, 4), "queries": (5, 7, 1), "folds": 3}, id="chunks"),
        pytest.param({"lengths": (60, 2), "queries": (9, 3), "window": 8, "folds": 3}, id="chunks in a window"),
        pytest.param({"lengths": (30, 2), "queries": (7, 3), "candidates": True, "folds": 4}, id="candidates"),
        pytest.param({"lengths": (40,), "queries": 20, "candidates": True, "folds": 4}, id="several query tiles"),
        pytest.param({"lengths": (40, 39), "queries": 3, "candidates": True, "window": 6}, id="candidates in a window"),
        pytest.param({"lengths": (70, 3), "dim": 64, "dtype": torch.bfloat16}, id="bfloat16"),
        pytest.param({"lengths": (70, 3), "queries": 5, "dim": 64, "dtype": torch.float16}, id="float16"),
        pytest.param({"lengths": (90, 40), "shared": 2}, id="shared pages"),
        pytest.param({"lengths": (200, 190, 4, 3), "page": 1}, id="very unequal rows"),
        pytest.param({"lengths": (3,), "queries": KERNEL_QUERIES + 1}, id="a long chunk"),
    ],
)
def test_equals_the_definition(given: dict[str, object], backend: Path) -> None:
    one = case(**given)  # type: ignore[arg-type]
    got = one.run(backend)
    assert got.shape == one.query.transpose(1, 2).shape
    assert got.dtype == one.query.dtype
    close(got, one.expected())


@pytest.mark.parametrize("backend", BACKENDS)
def test_scaling_is_what_is_given(backend: Path) -> None:
    one = case((20,))
    got = paged_attention(one.query, one.kv, one.plan, scaling=0.7, backend=backend)
    close(got, reference_paged_attention(one.query, one.kv, one.plan, scaling=0.7))
    assert not torch.allclose(got, one.run(backend), atol=1e-2)


@pytest.mark.parametrize(
    "given",
    [
        {"lengths": (300, 40, 0)},
        {"lengths": (300,), "window": 70},
        {"lengths": (150, 9), "queries": (3, 2), "candidates": True},
        {"lengths": (100,), "queries": 40},
        {"lengths": (300, 40), "dtype": torch.bfloat16},
    ],
)
def test_splits_agree(given: dict[str, object]) -> None:
    """With one, two and seven splits: fewer and more than there are tiles of keys."""
    one = case(**given)  # type: ignore[arg-type]
    for splits in (1, 2, 7):
        close(one.splits(splits), one.expected())


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize(
    "given",
    [
        {"lengths": (70, 3, 0)},
        {"lengths": (70, 3), "window": 8},
        {"lengths": (30, 9), "queries": (1, 4), "candidates": True},
        {"lengths": (30, 9), "queries": (3, 4)},
        {"lengths": (20, 9), "dim": 80, "page": 64, "wider": 2},
    ],
)
def test_nan_that_no_query_sees_stays_where_it_is(given: dict[str, object], splits: int) -> None:
    one = case(**given)  # type: ignore[arg-type]
    assert torch.equal(poison(one).splits(splits), one.splits(splits))


@pytest.mark.parametrize("splits", [1, 3])
def test_nan_that_a_query_sees_shows(splits: int) -> None:
    """In its row alone; a candidate's in that candidate alone."""
    one = case((150, 150), queries=3, candidates=True, folds=2)
    clean = one.splits(splits)
    one.kv[one.plan.blocks[1, 151 // 16].long(), 151 % 16, 1] = torch.nan
    got = one.splits(splits)
    assert got[1, 1].isnan().all()
    got[1, 1] = clean[1, 1]
    assert torch.equal(got, clean)
    one.kv[one.plan.blocks[0, 5].long(), 3, 0] = torch.nan
    assert one.splits(splits).isnan().any(-1).any(-1).tolist() == [[True] * 3, [False, True, False]]


@pytest.mark.parametrize("splits", [1, 4])
def test_a_wider_table_changes_nothing(splits: int) -> None:
    tight, wide = case((70, 3)), case((70, 3), wider=9)
    assert torch.equal(wide.splits(splits), tight.splits(splits))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [None, 6])
def test_candidates_equal_decode_steps_over_copies(window: int | None, backend: Path) -> None:
    k, length, page = 5, 37, 16
    one = case((length,), queries=k, candidates=True, window=window)
    blocks = one.plan.blocks[0, :3].long()
    copies = one.kv[blocks].repeat(k, 1, 1, 1, 1)  # k tables of three pages each
    for j in range(k):
        copies[3 * j + length // page, length % page] = one.kv[blocks[(length + j) // page], (length + j) % page]
    kv = torch.cat((torch.zeros_like(one.kv[:1]), copies))
    at = np.full((k, 1), length)
    plan = AttentionPlanner(kv).plan(1 + np.arange(3 * k).reshape(k, 3), at, at, backend="torch")
    query = one.query.transpose(0, 2)  # (k, heads, 1, D)
    got = paged_attention(query, kv, plan, window=window, backend=backend)
    torch.testing.assert_close(got[:, 0], one.run(backend)[0], rtol=3e-5, atol=3e-5)


def test_a_plan_may_be_refilled_in_place() -> None:
    """As a captured graph does: rows of other lengths in the tensors of the first plan."""
    long, short = case((70, 33), wider=1), case((3, 50), wider=2)
    one = Case(short.query, short.kv, AttentionPlan(*(each.clone() for each in _tensors(long.plan))))
    for old, new in zip(_tensors(one.plan), _tensors(short.plan), strict=True):
        old.copy_(new)
    close(one.splits(4), short.expected())


def test_no_groups_are_made_for_the_kernel_alone() -> None:
    one = case((70, 3))
    arrays = [each.cpu().numpy() for each in _tensors(one.plan)]
    plan = AttentionPlanner(one.kv).plan(*arrays, backend="triton")
    assert not plan.groups
    assert torch.equal(paged_attention(one.query, one.kv, plan, backend="triton"), one.run("triton"))
    with pytest.raises(ValueError, match="no groups"):
        paged_attention(one.query, one.kv, plan, backend="torch")
    long = case((3,), queries=KERNEL_QUERIES + 1)
    arrays = [each.cpu().numpy() for each in _tensors(long.plan)]
    assert AttentionPlanner(long.kv).plan(*arrays, backend="triton").groups, "a prompt is gathered everywhere"


@pytest.mark.parametrize(
    "change",
    [
        lambda query, kv: (query.half(), kv),
        lambda query, kv: (query.double(), kv.double()),
        lambda query, kv: (query, kv.transpose(2, 3)),
    ],
)
def test_what_the_kernel_cannot_read_is_refused(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    one = case((5,), kv_heads=2)
    with pytest.raises(ValueError, match="contiguous pages"):
        paged_attention_triton(*change(one.query, one.kv), *_tensors(one.plan))


def test_rows_of_very_unequal_length_are_gathered_in_groups() -> None:
    groups = case((200, 190, 4, 3, 3), page=1).plan.groups
    assert [(group.rows.start, group.rows.stop) for group in groups] == [(0, 2), (2, 5)]
    assert sum(len(group.pages) for group in groups) == 2 * 201 + 3 * 5


def test_splits_fill_a_gpu_and_stay_worth_merging() -> None:
    assert choose_splits(programs=8, keys=8192, processors=132) == 32
    assert choose_splits(programs=64, keys=8192, processors=132) == 8
    assert choose_splits(programs=8, keys=600, processors=132) == 2
    assert choose_splits(programs=1000, keys=8192, processors=132) == 1
    assert choose_splits(programs=2, keys=1 << 20, processors=132) == 64


@pytest.mark.parametrize(("size", "most"), [(2, 64), (4, 32)])
def test_tiles_hold_the_query_heads_of_a_key_head(size: int, most: int) -> None:
    assert [Tiling.of(rows, 64, size).rows for rows in (1, 16, 17, 300)] == [16, 16, 32, most]


def _tensors(plan: AttentionPlan) -> tuple[Tensor, Tensor, Tensor]:
    return plan.blocks, plan.positions, plan.own
