"""Adapters by row against merged weights in float64, on both backends."""

from collections.abc import Sequence

import pytest
import torch
from device import DEVICE
from torch import Tensor

from trimtab.kernels.backend import Backend
from trimtab.kernels.row_adapters import AdapterRows, AdapterStacks, add_row_adapters, reference_row_adapters

BACKENDS: list[Backend] = ["torch", "triton"]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
INNER, OUTER = 40, 150


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def stacked(
    ranks: dict[int, int], inner: int = INNER, outer: int = OUTER, dtype: torch.dtype = torch.float32
) -> AdapterStacks:
    """Adapters of these ranks by number."""
    stacks = AdapterStacks(inner, outer, dtype, DEVICE)
    for number, rank in ranks.items():
        stacks.add(number, normal(rank, inner, seed=number) * 0.2, normal(rank, outer, seed=number + 50) * 0.2)
    return stacks


def rows_of(numbers: Sequence[int], capacity: int = 0) -> AdapterRows:
    """Rows over a buffer that is longer than they are."""
    padded = [*numbers, *[-1] * (capacity - len(numbers))]
    return AdapterRows(numbers, torch.tensor(padded, dtype=torch.int32, device=DEVICE))


def check(y: Tensor, x: Tensor, stacks: AdapterStacks, rows: AdapterRows, backend: Backend) -> Tensor:
    want = reference_row_adapters(y, x, stacks, rows)
    got = add_row_adapters(y.clone(), x, stacks, rows, backend)
    assert got.dtype == stacks.up.dtype
    tolerance = TOLERANCE[got.dtype]
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
    return got


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rows_of_several_ranks_equal_merged_weights(dtype: torch.dtype, backend: Backend) -> None:
    stacks = stacked({0: 3, 1: 20, 3: 8}, dtype=dtype)  # number 2 does not change this product
    rows = rows_of([1, -1, 0, 2, 3, 1], capacity=9)
    y, x = normal(6, 1, OUTER, seed=7, dtype=dtype), normal(6, 1, INNER, seed=8, dtype=dtype)
    got = check(y, x, stacks, rows, backend)
    assert torch.equal(got[[1, 3]], y[[1, 3]])
    assert all((got[row] != y[row]).float().mean() > 0.9 for row in (0, 2, 4, 5))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rank", [1, 16, 65, 200])
def test_ranks_may_be_small_or_large(rank: int, backend: Backend) -> None:
    stacks = stacked({0: rank, 1: 5})
    check(normal(2, 1, OUTER, seed=7), normal(2, 1, INNER, seed=8), stacks, rows_of([0, 1]), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wide_inputs_are_split(backend: Backend) -> None:
    stacks = stacked({0: 4}, inner=1300, outer=10)
    check(normal(1, 1, 10, seed=7), normal(1, 1, 1300, seed=8), stacks, rows_of([0]), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("rows", "tokens"), [(3, 7), (2, 150)])
def test_rows_may_have_several_tokens_on_an_axis_of_their_own_or_not(rows: int, tokens: int, backend: Backend) -> None:
    stacks = stacked({0: 4, 1: 7}, outer=30)
    plan = rows_of([1, -1, 0][:rows])
    y, x = normal(rows, tokens, 30, seed=7), normal(rows, tokens, INNER, seed=8)
    got = check(y, x, stacks, plan, backend)
    flat = check(y.flatten(0, 1), x.flatten(0, 1), stacks, plan, backend)
    assert torch.equal(flat, got.flatten(0, 1))
    assert torch.equal(got[1], y[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_head_reads_the_last_rows(backend: Backend) -> None:
    stacks, plan = stacked({0: 4}, outer=30), rows_of([-1, 0, 0, -1])
    check(normal(3, 1, 30, seed=7), normal(3, 1, INNER, seed=8), stacks, plan, backend)
    check(normal(4, 1, 30, seed=7), normal(4, 1, INNER, seed=8), stacks, plan, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_behind_the_index_stay(backend: Backend) -> None:
    stacks, memory = stacked({0: 4}, outer=30), torch.zeros(9, dtype=torch.int32, device=DEVICE)
    y, x = normal(5, 1, 30, seed=7), normal(5, 1, INNER, seed=8)
    got = check(y, x, stacks, AdapterRows([0, 0], memory[:2]), backend)
    assert torch.equal(got[2:], y[2:])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["columns of a wider tensor", "last token of each row", "transposed"])
def test_inputs_may_be_views(layout: str, backend: Backend) -> None:
    stacks, plan = stacked({0: 4}, outer=30), rows_of([0, -1, 0])
    x = normal(3, 2, INNER, seed=8)
    guard = torch.full_like(x, torch.nan)
    if layout == "columns of a wider tensor":
        x = torch.cat((guard, x, guard), dim=2)[..., INNER : 2 * INNER]
    elif layout == "last token of each row":
        x = torch.cat((guard, x), dim=1)[:, 3:]
    else:
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert not x.is_contiguous()
    check(normal(3, x.shape[1], 30, seed=7), x, stacks, plan, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_do_not_read_their_neighbours(backend: Backend) -> None:
    stacks = stacked({0: 4, 1: 4}, outer=30)
    y, x = normal(3, 1, 30, seed=7), normal(3, 1, INNER, seed=8)
    calm = add_row_adapters(y.clone(), x, stacks, rows_of([0, 1, -1]), backend)
    x[1], y[2] = torch.nan, torch.inf
    got = add_row_adapters(y.clone(), x, stacks, rows_of([0, 1, -1]), backend)
    torch.testing.assert_close(got[0], calm[0])
    assert got[1].isnan().all()
    assert torch.equal(got[2], y[2])


def test_a_launch_reads_what_the_index_holds_now() -> None:
    stacks, index = stacked({0: 4, 1: 9}, outer=30), torch.empty(4, dtype=torch.int32, device=DEVICE)
    plan = AdapterRows([0, 0, 0, 0], index)
    y, x = normal(4, 1, 30, seed=7), normal(4, 1, INNER, seed=8)
    for numbers in ([1, -1, 0, 1], [-1, -1, -1, -1], [0, 1, 1, -1]):
        index.copy_(torch.tensor(numbers))
        check(y, x, stacks, plan, "triton")


@pytest.mark.parametrize("backend", BACKENDS)
def test_wider_products_are_brought_to_the_dtype_of_the_stacks(backend: Backend) -> None:
    stacks = stacked({0: 4}, outer=30)
    y, x = normal(2, 1, 30, seed=7, dtype=torch.bfloat16), normal(2, 1, INNER, seed=8, dtype=torch.bfloat16)
    got = check(y, x, stacks, rows_of([0, -1]), backend)
    assert torch.equal(got[1], y[1].float())


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_add(backend: Backend) -> None:
    y, x, stacks = normal(2, 1, 30, seed=7), normal(2, 1, INNER, seed=8), stacked({0: 4}, outer=30)
    assert torch.equal(add_row_adapters(y.clone(), x, stacks, rows_of([-1, -1]), backend), y)
    assert torch.equal(add_row_adapters(y.clone(), x, stacked({}, outer=30), rows_of([-1, -1]), backend), y)
    assert add_row_adapters(y[:0], x[:0], stacks, rows_of([], 4), backend).shape == (0, 1, 30)


def scaled_rows(numbers: Sequence[int], scales: Sequence[Sequence[float]], capacity: int = 0) -> AdapterRows:
    """Rows with scales of their own, over buffers that are longer than they are."""
    plain, spare = rows_of(numbers, capacity), max(0, capacity - len(numbers))
    told = torch.tensor([*scales, *[[torch.nan] * len(scales[0])] * spare], device=DEVICE)
    return AdapterRows(numbers, plain.index, told)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rows_scale_their_rank_dimensions(dtype: torch.dtype, backend: Backend) -> None:
    stacks = stacked({0: 3, 1: 20, 3: 4}, dtype=dtype)  # the scales reach beyond the first one's rank, not the second's
    scales = [[1.0, 0.7, 0.0, 2.0], [9.0] * 4, [0.3, -1.0, 1.0, 5.0], [1.0] * 4, [0.0] * 4, [0.0, 0.0, 1.0, 0.25]]
    numbers = [1, -1, 0, 1, 3, 3]
    rows = scaled_rows(numbers, scales, capacity=9)
    y, x = normal(6, 1, OUTER, seed=7, dtype=dtype), normal(6, 1, INNER, seed=8, dtype=dtype)
    got = check(y, x, stacks, rows, backend)
    plain = add_row_adapters(y.clone(), x, stacks, rows_of(numbers), backend)
    assert torch.equal(got[[1, 4]], y[[1, 4]])  # no adapter, and one that counts nothing
    assert torch.equal(got[3], plain[3])  # every dimension counts once
    assert all((got[row] != plain[row]).float().mean() > 0.9 for row in (0, 2, 5))


@pytest.mark.parametrize("backend", BACKENDS)
def test_scaled_rows_equal_scaled_factors(backend: Backend) -> None:
    down, up = normal(4, INNER, seed=1), normal(4, 30, seed=2)
    scales = [[1.0, 0.5, 0.0, -2.0], [0.25, 3.0, 1.0, 1.0]]
    stacks, merged = AdapterStacks(INNER, 30, torch.float32, DEVICE), AdapterStacks(INNER, 30, torch.float32, DEVICE)
    stacks.add(0, down, up)
    for number, each in enumerate(scales):
        merged.add(number, down * torch.tensor(each, device=DEVICE)[:, None], up)
    y, x = normal(2, 3, 30, seed=7), normal(2, 3, INNER, seed=8)
    got = add_row_adapters(y.clone(), x, stacks, scaled_rows([0, 0], scales), backend)
    torch.testing.assert_close(got, add_row_adapters(y.clone(), x, merged, rows_of([0, 1]), backend))
    flat = scaled_rows([0, 0], scales)
    check(y.flatten(0, 1), x.flatten(0, 1), stacks, flat, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scaled_rows_do_not_depend_on_their_neighbours(backend: Backend) -> None:
    stacks = stacked({0: 4, 1: 4}, outer=30)
    y, x = normal(3, 1, 30, seed=7), normal(3, 1, INNER, seed=8)
    calm = scaled_rows([0, 1, -1], [[0.5] * 4, [1.0] * 4, [1.0] * 4])
    alone = add_row_adapters(y.clone(), x, stacks, calm, backend)
    x[1], y[2] = torch.nan, torch.inf
    loud = scaled_rows([0, 1, -1], [[0.5] * 4, [torch.inf] * 4, [torch.nan] * 4])
    got = add_row_adapters(y.clone(), x, stacks, loud, backend)
    torch.testing.assert_close(got[0], alone[0])
    assert torch.equal(got[2], y[2])


def test_a_launch_reads_what_the_scales_hold_now() -> None:
    stacks, index = stacked({0: 4, 1: 9}, outer=30), torch.empty(4, dtype=torch.int32, device=DEVICE)
    plan = AdapterRows([0, 0, 0, 0], index, torch.empty(4, 6, device=DEVICE))
    y, x = normal(4, 1, 30, seed=7), normal(4, 1, INNER, seed=8)
    assert plan.scales is not None
    for seed, numbers in enumerate(([1, -1, 0, 1], [-1, -1, -1, -1], [0, 1, 1, -1])):
        index.copy_(torch.tensor(numbers))
        plan.scales.copy_(normal(4, 6, seed=seed))
        check(y, x, stacks, plan, "triton")


def test_stacks_refuse_what_does_not_fit() -> None:
    stacks = stacked({0: 4, 2: 3})
    for number, rank in ((1, 4), (2, 4), (3, 5)):
        with pytest.raises(ValueError, match=f"adapter {number} with factors of 4 and {rank} rows"):
            stacks.add(number, normal(4, INNER), normal(rank, OUTER))
    assert stacks.starts.tolist() == [0, 4, 4, 7]
