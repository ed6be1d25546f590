import math
from itertools import product

import pytest
import torch
from device import DEVICE
from rows import keys, normal, row_params, some
from torch import Tensor

from trimtab.kernels.backend import Backend
from trimtab.kernels.candidates import best_candidates
from trimtab.kernels.finish_candidates import Finished, finish_candidates, reference_finish
from trimtab.kernels.philox import Keys
from trimtab.kernels.steer_sample import steer_sample
from trimtab.kernels.survivors import RowParams

INF, NAN = math.inf, math.nan
GRID = list(product((0.0, 1e-3, 1.0, 10.0), (0, 1, 5, 300), (1.0, 0.9, 0.3), (0.0, 0.05)))
BACKENDS: tuple[Backend, ...] = ("torch", "triton")


def finish(
    backend: Backend,
    listed: tuple[Tensor, Tensor, Tensor, Tensor],
    params: RowParams,
    key: Keys,
    base_best: Tensor | None = None,
) -> Finished:
    """On the GPU where there is one and the backend needs it."""
    device = DEVICE if backend == "triton" else torch.device("cpu")
    return finish_candidates(
        *(each.to(device) for each in listed),
        params,
        Keys(*(each.to(device) for each in key)),
        base_best=None if base_best is None else base_best.to(device),
        backend=backend,
    )


def lists(rows: int, k: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores, log-probabilities under a base over more tokens, validity, and ids in any order; with many ties."""
    generator = torch.Generator().manual_seed(seed)
    vocab_size = 3 * k + 2
    ids = torch.stack([torch.randperm(vocab_size, generator=generator)[:k] for _ in range(rows)])
    z = torch.randn(rows, k, generator=generator) * 2
    z[::3] = z[::3].round()
    base = normal(rows, vocab_size, seed=seed).log_softmax(dim=1).gather(1, ids)
    return z, base, torch.rand(rows, k, generator=generator) > 0.2, ids


def check(found: Finished, expected: Finished) -> None:
    for value, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(value.to(wanted.dtype), wanted, rtol=3e-5, atol=3e-5, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("k", [1, 2, 7, 40, 128, 200])
def test_agrees_with_the_reference(k: int, backend: Backend) -> None:
    grid = GRID if backend == "torch" or k == 40 else GRID[k % 5 :: 5]
    listed, params, key = lists(len(grid), k, seed=k), row_params(*grid), keys(len(grid))
    z, base, valid, _ = listed
    z[1::7, k // 2], z[3::11, 0], z[17, 0] = NAN, -INF, INF
    valid[5], z[9] = False, NAN
    base[10, 0], base[11], base[12] = -INF, NAN, -INF
    check(finish(backend, listed, params, key), reference_finish(*listed, params, key))


@pytest.mark.parametrize("row", [(1.0, 0, 1.0, 0.0), (0.0, 0, 1.0, 0.0), (2.0, 0, 1.0, 0.0)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_filters_agree_with_the_reference(row: tuple[float, int, float, float], backend: Backend) -> None:
    listed, params, key = lists(12, 40), row_params(*[row] * 12), keys(12)
    check(finish(backend, listed, params, key), reference_finish(*listed, params, key))


@pytest.mark.parametrize("backend", BACKENDS)
def test_draws_what_the_dense_pass_draws_where_all_others_are_out(backend: Backend) -> None:
    n, vocab_size = (2000, 700) if backend == "torch" else (48, 300)
    grid = [GRID[5 * i % len(GRID)] for i in range(n)]
    base, params, key = normal(n, vocab_size, scale=2.0), row_params(*grid), keys(n, seed=3)
    ids, valid = best_candidates(base, 40, backend="torch")
    valid[1::5, 3:9] = False
    z = base.gather(1, ids) + normal(n, 40, seed=1)
    z[::4] = z[::4].round()
    dense = torch.full_like(base, -INF).scatter_(1, ids, z.masked_fill(~valid, -INF))
    expected = steer_sample(
        dense, params, key, reference=base, measured=torch.ones(n, dtype=torch.bool), backend="torch"
    )
    found = finish(backend, (z, base.log_softmax(dim=1).gather(1, ids), valid, ids), params, key)
    assert torch.equal(found.token, expected.token)
    assert torch.equal(found.changed, expected.changed)
    assert 0 < int(found.changed.sum()) < n
    for name in ("logprob", "base_logprob", "entropy", "kl", "top1"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=3e-5, atol=3e-5)


def test_tokens_appear_as_often_as_they_should() -> None:
    n = 20_000
    z, base, valid, ids = (each[1:2].expand(n, -1) for each in lists(2, 30, seed=4))  # a row without ties
    token = finish("torch", (z, base, valid, ids), row_params(*[(1.5, 12, 0.9, 0.02)] * n), keys(n, seed=5)).token
    scores = z[0].double().masked_fill(~valid[0], -INF) / 1.5
    best = scores.topk(12)
    probs = best.values.softmax(0)
    keep = best.indices[probs.cumsum(0) - probs < 0.9]
    probs = scores[keep].softmax(0)
    counts = torch.stack([(token == ids[0, slot]).sum() for slot in keep]).double()
    assert counts.sum() == n
    chi_square = ((counts - n * probs) ** 2 / (n * probs)).sum()
    assert chi_square < len(keep) + 10 * math.sqrt(2 * len(keep))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_depends_on_nothing_but_itself_and_a_list_on_no_order(backend: Backend) -> None:
    grid = GRID[:: 4 if backend == "triton" else 1]
    n = len(grid)
    listed, key = lists(n, 40, seed=2), keys(n)
    whole = finish(backend, listed, row_params(*grid), key)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(n, generator=generator)[: n // 2]
    shuffle = torch.randperm(40, generator=generator)
    moved = tuple(each[rows][:, shuffle] for each in listed)
    z, base, valid, ids = moved
    part = finish(backend, (z, base, valid, ids), row_params(*[grid[row] for row in rows]), some(key, rows))
    assert torch.equal(part.token, whole.token[rows])
    check(part, Finished(*(each[rows] for each in whole)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_to_the_lowest_id_wherever_it_is_listed(backend: Backend) -> None:
    ids = torch.tensor([[9, 4, 30, 7]]).repeat(3, 1)
    z = torch.tensor([[1.0, 1.0, 0.0, 1.0]]).repeat(3, 1)
    listed = (z, torch.zeros(3, 4), torch.ones(3, 4, dtype=torch.bool), ids)
    found = finish(backend, listed, row_params((0.0, 0, 1.0, 0.0), (1.0, 1, 1.0, 0.0), (1.0, 0, 0.2, 0.0)), keys(3))
    assert found.token.tolist() == [4, 4, 4]
    assert found.changed.tolist() == [False] * 3  # the base's best is the lowest of equals as well


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_base_may_prefer_what_is_no_candidate_or_not_listed(backend: Backend) -> None:
    ids, valid = torch.tensor([[3, 8, 5]]), torch.tensor([[True, True, False]])
    base = torch.tensor([[-2.0, -3.0, -1.0]])
    listed, params = (torch.tensor([[2.0, 1.0, 5.0]]), base, valid, ids), row_params((1.0, 0, 1.0, 0.0))
    assert finish(backend, listed, params, keys(1)).changed.tolist() == [True]
    assert finish(backend, listed, params, keys(1), torch.tensor([3])).changed.tolist() == [False]
    assert finish(backend, listed, params, keys(1), torch.tensor([99])).changed.tolist() == [True]


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_a_candidate_draw_nothing_and_leave_others_alone(backend: Backend) -> None:
    grid = [(1.0, 0, 1.0, 0.0), (0.0, 0, 1.0, 0.0), (1.0, 3, 0.9, 0.1), (1.0, 3, 0.9, 0.1)]
    listed, params = lists(4, 20, seed=6), row_params(*grid)
    z, _, valid, _ = listed
    free = finish(backend, listed, params, keys(4))
    valid[0], z[1], z[2] = False, -INF, NAN
    found = finish(backend, listed, params, keys(4))
    assert found.token.tolist() == [-1, -1, -1, free.token[3].item()]
    assert found.nan.tolist() == [False, False, True, False]
    assert not found.changed[:3].any()
    for name in ("logprob", "base_logprob", "entropy", "kl", "top1"):
        assert getattr(found, name)[:3].isnan().all()
        assert getattr(found, name)[3] == getattr(free, name)[3]


def test_no_rows_draw_nothing() -> None:
    none = torch.zeros(0, 5)
    params = RowParams(
        *(torch.zeros(0, dtype=dtype) for dtype in (torch.float32, torch.long, torch.float32, torch.float32))
    )
    assert finish("torch", (none, none, none.bool(), none.long()), params, keys(0)).token.shape == (0,)
