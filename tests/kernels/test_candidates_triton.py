import math

import pytest
import torch
from device import DEVICE
from rows import normal
from torch import Tensor

from trimtab.kernels.candidates import best_candidates

INF, NAN = math.inf, math.nan


def found(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    ids, valid = best_candidates(z.to(DEVICE), k, backend="triton")
    return ids.cpu(), valid.cpu()


def check(z: Tensor, k: int) -> None:
    """What the torch path finds, but for entries at -inf, of which any may be listed."""
    ids, valid = found(z, k)
    expected, fine = best_candidates(z.cpu(), k, backend="torch")
    assert ids.shape == expected.shape
    assert torch.equal(valid, fine)
    known = fine | (z.cpu().gather(1, expected) == INF)
    assert torch.equal(ids[known], expected[known])
    assert (ids.sort(dim=1).values.diff(dim=1) > 0).all()  # no entry twice


@pytest.mark.parametrize("k", [1, 2, 7, 40, 65, 128])
@pytest.mark.parametrize("vocab_size", [1, 7, 63, 64, 65, 1000, 5003])
def test_finds_what_torch_finds(vocab_size: int, k: int) -> None:
    z = (normal(3, vocab_size, seed=k) * 1.5).round()  # many ties
    z[0, ::3] = -INF
    z[1] = normal(1, vocab_size, seed=k + 1)[0]
    check(z, k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_floating_dtype_and_row_stride(dtype: torch.dtype) -> None:
    wide = normal(3, 700).to(dtype)
    wide[:, 611:] = 50.0
    check(wide[:, :611], 20)
    check(wide[:, :611:2], 20)


def test_of_equal_groups_the_lowest_hold_the_lowest_ids() -> None:
    z = torch.zeros(3, 3000)
    z[1, 2900], z[2, 1000:] = 1.0, 1.0
    check(z, 40)
    assert found(z, 40)[0][1].tolist() == [2900, *range(39)]


def test_the_best_may_all_lie_in_one_group_or_each_in_its_own() -> None:
    z = normal(3, 4096, scale=0.1)
    z[0, 640:704] += 10.0
    z[1, 5::64] += 10.0
    z[2, 4096 - 40 :] += 10.0
    check(z, 40)
    check(z, 64)


@pytest.mark.parametrize("vocab_size", [4, 300])
def test_what_is_not_finite_is_not_valid(vocab_size: int) -> None:
    z = torch.full((6, vocab_size), -INF)
    z[0], z[1, 2], z[3, 1], z[4] = NAN, 1.0, INF, -torch.finfo(torch.float32).max
    z[5] = normal(1, vocab_size)[0]
    z[5, 1], z[5, 3] = NAN, INF
    check(z, 4)
    ids, valid = found(z, 3)
    assert valid.sum(dim=1).tolist() == [0, 1, 0, 0, 3, 2]
    assert ids[1, 0] == 2
    assert ids[3, 0] == 1
    assert ids[5, 0] == 3


def test_zeros_of_both_signs_are_equal() -> None:
    z = torch.tensor([[-0.0, 0.0, -0.0, -1.0, 0.0]])
    assert found(z, 5)[0].tolist() == [[0, 1, 2, 4, 3]]


def test_rows_do_not_touch_each_other() -> None:
    z = normal(5, 900)
    ids, _ = found(z, 30)
    order = torch.tensor([3, 0, 4, 2, 1])
    assert torch.equal(found(z[order], 30)[0], ids[order])
    assert torch.equal(found(z[2:3], 30)[0], ids[2:3])


def test_longer_lists_come_from_torch() -> None:
    check(normal(2, 500), 129)
    assert found(normal(2, 500), 129)[0].shape == (2, 129)
