"""Control vectors by row against the float64 reference, on both backends."""

import pytest
import torch
from device import DEVICE
from torch import Tensor

from trimtab.kernels.backend import Backend
from trimtab.kernels.row_vectors import add_row_vectors, reference_row_vectors

BACKENDS: list[Backend] = ["torch", "triton"]
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def index_of(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device=DEVICE)


def check(hidden: Tensor, sums: Tensor, index: Tensor, backend: Backend) -> Tensor:
    want = reference_row_vectors(hidden, sums, index)
    got = add_row_vectors(hidden.clone(), sums, index, backend)
    assert got.dtype == hidden.dtype
    tolerance = TOLERANCE[hidden.dtype]
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
    return got


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("tokens", "size"), [(1, 48), (3, 70), (1, 1500)])
def test_rows_get_their_own_vector(tokens: int, size: int, dtype: torch.dtype, backend: Backend) -> None:
    hidden, sums = normal(4, tokens, size, dtype=dtype), normal(3, size, seed=1, dtype=dtype)
    sums[1] = torch.nan  # nobody's
    got = check(hidden, sums, index_of(2, -1, 0, 2, 1, -1), backend)  # longer than the batch
    assert torch.equal(got[1], hidden[1])
    assert all((got[row] != hidden[row]).float().mean() > 0.9 for row in (0, 2, 3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_an_index_the_sums_are_the_rows_own(backend: Backend) -> None:
    hidden, sums = normal(3, 2, 48), normal(4, 48, seed=1)
    want = reference_row_vectors(hidden, sums, index_of(0, 1, 2))
    torch.testing.assert_close(add_row_vectors(hidden.clone(), sums, backend=backend).double(), want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_hidden_states_may_be_views(backend: Backend) -> None:
    whole = normal(3, 4, 100)
    sums = normal(2, 200, seed=1)[:, :48]
    for hidden in (whole[:, 1:3, 20:68], whole[:, :, :48].transpose(0, 1), normal(3, 48, 2).transpose(1, 2)):
        index = index_of(1, -1, 0, 1)
        want = reference_row_vectors(hidden, sums, index)
        torch.testing.assert_close(add_row_vectors(hidden, sums, index, backend).double(), want)


def test_what_lies_beside_a_view_stays() -> None:
    whole = normal(2, 2, 60)
    before = whole.clone()
    add_row_vectors(whole[:, :1, 5:50], normal(2, 45, seed=1), index_of(1, 0), "triton")
    before[:, :1, 5:50] = whole[:, :1, 5:50]
    assert torch.equal(whole, before)


def test_a_launch_reads_what_the_index_holds_now() -> None:
    hidden, sums, index = normal(3, 1, 48), normal(2, 48, seed=1), index_of(0, 0, 0)
    for numbers in ([1, -1, 0], [-1, -1, -1], [0, 1, 1]):
        index.copy_(torch.tensor(numbers))
        check(hidden, sums, index, "triton")


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batches(backend: Backend) -> None:
    for shape in ((0, 1, 48), (2, 0, 48)):
        assert add_row_vectors(normal(*shape), normal(2, 48), index_of(0, 1), backend).shape == shape
