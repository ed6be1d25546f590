import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from trimtab.kernels.philox import uniforms
from trimtab.kernels.statistics import Statistics, base_statistics, reference_statistics, steer_statistics
from trimtab.kernels.steer_sample import steer_sample
from trimtab.kernels.survivors import RowParams

INF, NAN = math.inf, math.nan
GRID = list(product((0.0, 0.7, 1.0, 2.0), (0, 1, 3, 80, 2000), (1.0, 0.9, 0.3), (0.0, 0.05)))
NUMBERS = ("logprob", "base_logprob", "entropy", "base_entropy", "kl")


def row_params(*rows: tuple[float, int, float, float]) -> RowParams:
    temperature, top_k, top_p, min_p = zip(*rows, strict=True)
    return RowParams(
        torch.tensor(temperature, dtype=torch.float32),
        torch.tensor(top_k),
        torch.tensor(top_p, dtype=torch.float32),
        torch.tensor(min_p, dtype=torch.float32),
    )


def normal(rows: int, vocab_size: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 3


def drawn(scores: Tensor, params: RowParams) -> Tensor:
    n = len(scores)
    u = uniforms(np.full(n, 7), np.zeros(n, dtype=np.int64), np.arange(n))
    return steer_sample(scores, params, torch.from_numpy(u)).token


def restated(scores: np.ndarray, base: np.ndarray, token: int, row: tuple[float, int, float, float]) -> list[float]:
    """The five numbers of one row from dense probabilities."""
    temperature, k, p, min_p = row
    if temperature == 0:
        temperature, k, p, min_p = 1.0, 0, 1.0, 0.0
    weights = np.exp((scores - scores.max()) / np.float32(temperature))
    order = np.argsort(-scores, kind="stable")
    order = order[weights[order] >= np.float32(min_p)][: k or None]
    if p < 1:
        before = np.cumsum(weights[order]) - weights[order]
        order = order[before < np.float32(p) * weights[order].sum()]
    steered = np.zeros_like(weights)
    steered[order] = weights[order] / weights[order].sum()
    plain = np.exp(base - base.max())
    plain /= plain.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(steered > 0, steered * np.log(steered), 0).sum()
        base_entropy = -np.where(plain > 0, plain * np.log(plain), 0).sum()
        kl = np.where(steered > 0, steered * (np.log(steered) - np.log(plain)), 0).sum()
        return [np.log(steered[token]), np.log(plain[token]), entropy, base_entropy, kl]


def check(scores: Tensor, base: Tensor, params: RowParams, token: Tensor) -> Statistics:
    """Equal to the reference, infinities and nan included."""
    found, expected = steer_statistics(scores, base, token, params), reference_statistics(scores, base, token, params)
    for name in NUMBERS:
        torch.testing.assert_close(
            getattr(found, name).double(), getattr(expected, name), rtol=3e-5, atol=3e-5, equal_nan=True
        )
    assert torch.equal(found.top1_changed, expected.top1_changed)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [1, 7, 1000, 5003])
def test_statistics_are_those_of_the_dense_distributions(vocab_size: int, dtype: torch.dtype) -> None:
    params, base = row_params(*GRID), normal(len(GRID), vocab_size).to(dtype)
    scores = base.float() + normal(len(GRID), vocab_size, seed=1)
    token = drawn(scores, params)
    found = check(scores, base, params, token)
    for i, row in enumerate(GRID):
        expected = restated(scores[i].double().numpy(), base[i].double().numpy(), int(token[i]), row)
        np.testing.assert_allclose([getattr(found, name)[i].item() for name in NUMBERS], expected, rtol=3e-5, atol=3e-5)


def test_an_unsteered_row_diverges_from_nothing() -> None:
    base, params = normal(2, 500), row_params((1.0, 0, 1.0, 0.0), (0.0, 5, 0.5, 0.1))
    base[:, ::3] = -INF
    found = steer_statistics(base, base, drawn(base, params), params)
    assert found.kl.tolist() == [0.0, 0.0]
    assert torch.equal(found.entropy, found.base_entropy)
    assert torch.equal(found.logprob, found.base_logprob)
    assert not found.top1_changed.any()


def test_uniform_distributions_have_the_entropies_of_their_sizes() -> None:
    params = row_params((1.0, 0, 1.0, 0.0), (1.0, 4, 1.0, 0.0), (1.0, 0, 0.5, 0.0))
    found = steer_statistics(torch.zeros(3, 64), torch.zeros(3, 64), torch.zeros(3, dtype=torch.long), params)
    assert found.base_entropy.tolist() == pytest.approx([math.log(64)] * 3)
    assert found.entropy.tolist() == pytest.approx([math.log(n) for n in (64, 4, 32)])
    assert found.kl.tolist() == pytest.approx([0.0, math.log(16), math.log(2)], abs=1e-6)


@pytest.mark.parametrize("row", [(1.0, 0, 1.0, 0.0), (0.0, 0, 1.0, 0.0), (1.0, 3, 1.0, 0.0)])
def test_mass_outside_the_base_diverges_without_bound_and_an_excluded_token_counts_for_nothing(
    row: tuple[float, int, float, float],
) -> None:
    base, scores, params = torch.zeros(1, 6), torch.zeros(1, 6), row_params(row)
    scores[0, 4:] = -INF
    assert check(scores, base, params, torch.tensor([0])).kl.isfinite().all()
    base[0, 1] = -INF
    found = check(scores, base, params, torch.tensor([1]))
    assert found.kl.tolist() == [INF]
    assert found.base_logprob.tolist() == [-INF]


def test_very_unlikely_is_not_impossible() -> None:
    base, scores = torch.tensor([[0.0, -500.0]]), torch.tensor([[0.0, 500.0]])
    found = steer_statistics(scores, base, torch.tensor([1]), row_params((1.0, 0, 1.0, 0.0)))
    assert found.kl.item() == pytest.approx(500.0)
    assert found.top1_changed.tolist() == [True]


def test_a_token_that_a_filter_drops_has_no_probability() -> None:
    scores = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().repeat(4, 1)
    params = row_params((1.0, 3, 1.0, 0.0), (1.0, 0, 0.8, 0.0), (1.0, 0, 1.0, 0.3), (0.0, 1, 0.1, 0.9))
    found = check(scores, scores, params, torch.full((4,), 3))
    assert found.logprob[:3].tolist() == [-INF] * 3
    assert found.logprob[3].isfinite()


def test_rows_that_allow_nothing_are_nan_and_do_not_touch_others() -> None:
    rows = [(1.0, 0, 1.0, 0.0), (1.0, 3, 1.0, 0.0), (0.0, 0, 1.0, 0.0), (1.0, 0, 1.0, 0.0)]
    base, params = normal(4, 90), row_params(*rows)
    scores = base + normal(4, 90, seed=1)
    free = steer_statistics(scores, base, torch.tensor([1, 2, 3, 4]), params)
    scores[0], scores[1], base[2] = -INF, NAN, -INF
    found = check(scores, base, params, torch.tensor([-1, -1, 3, 4]))
    assert found.entropy.isnan().tolist() == [True, True, False, False]
    assert found.kl.isnan().tolist() == [True, True, True, False]
    assert [getattr(found, name)[3] for name in NUMBERS] == [getattr(free, name)[3] for name in NUMBERS]


def test_large_logits_keep_their_fraction() -> None:
    params = row_params(*GRID)
    base = 1e4 + normal(len(GRID), 300) / 300
    scores = base + normal(len(GRID), 300, seed=2) / 300
    check(scores, base, params, drawn(scores, params))


def test_best_tokens_that_tie_are_told_apart_by_id() -> None:
    base, scores = torch.zeros(2, 600), torch.zeros(2, 600)
    base[:, [300, 500]] = 1.0
    scores[0, [300, 400]], scores[1, [299, 300]] = 1.0, 1.0
    found = steer_statistics(scores, base, torch.tensor([300, 300]), row_params(*[(1.0, 0, 1.0, 0.0)] * 2))
    assert found.top1_changed.tolist() == [False, True]


def test_the_base_alone_has_the_numbers_that_it_has_beside_steering() -> None:
    base = normal(5, 700, seed=3)
    base[1, 40], base[2, 7:] = NAN, -INF
    base[4] = -INF
    token = torch.tensor([3, 41, 2, 699, 0])
    beside = steer_statistics(normal(5, 700, seed=4), base, token, row_params(*[(1.0, 0, 1.0, 0.0)] * 5))
    logprob, entropy = base_statistics(base, token)
    torch.testing.assert_close(logprob, beside.base_logprob, equal_nan=True)
    torch.testing.assert_close(entropy, beside.base_entropy, equal_nan=True)
    assert logprob[4].isnan()
    assert logprob[0] == pytest.approx(base[0].double().log_softmax(0)[3].item(), abs=1e-6)
