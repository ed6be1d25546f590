import math
from itertools import product

import numpy as np
import pytest
import torch
from rows import keys, normal, row_params
from torch import Tensor

from trimtab.kernels.statistics import SteerOut, reference_statistics
from trimtab.kernels.steer_sample import base_at, reference_steer, steer_sample
from trimtab.kernels.survivors import RowParams

INF, NAN = math.inf, math.nan
GRID = list(product((0.0, 0.7, 1.0, 2.0), (0, 1, 3, 80, 2000), (1.0, 0.9, 0.3), (0.0, 0.05)))
NUMBERS = ("logprob", "base_logprob", "entropy", "base_entropy", "kl", "top1", "base_top1")


def measure(scores: Tensor, base: Tensor, params: RowParams) -> SteerOut:
    everyone = torch.ones(len(scores), dtype=torch.bool)
    return steer_sample(scores, params, keys(len(scores), seed=7), reference=base, measured=everyone)


def number(found: SteerOut, name: str) -> Tensor:
    column: Tensor = getattr(found, name)
    return column.double()


def restated(scores: np.ndarray, base: np.ndarray, token: int, row: tuple[float, int, float, float]) -> list[float]:
    """The numbers of one row from dense probabilities."""
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
        logprobs = [np.log(steered[token]), np.log(plain[token])]
        return [*logprobs, entropy, base_entropy, kl, steered.max(), plain.max()]


def check(scores: Tensor, base: Tensor, params: RowParams) -> SteerOut:
    """Equal to the reference, infinities and nan included."""
    found = measure(scores, base, params)
    steered, _ = reference_steer(scores, params)
    plain = base.double().nan_to_num(nan=-INF, neginf=-INF).log_softmax(dim=1)
    expected = reference_statistics(steered, plain, found.token)
    expected["base_logprob"][found.token < 0] = NAN
    for name in NUMBERS:
        torch.testing.assert_close(number(found, name), expected[name], rtol=3e-5, atol=3e-5, equal_nan=True, msg=name)
    best, base_best = (x.double().nan_to_num(nan=-INF, neginf=-INF).argmax(dim=1) for x in (scores, base))
    alive = ~steered[:, 0].isnan() & ~plain[:, 0].isnan()
    assert torch.equal(found.changed, (best != base_best) & alive)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [1, 7, 1000, 5003])
def test_statistics_are_those_of_the_dense_distributions(vocab_size: int, dtype: torch.dtype) -> None:
    params, base = row_params(*GRID), normal(len(GRID), vocab_size).to(dtype)
    scores = base.float() + normal(len(GRID), vocab_size, seed=1)
    found = check(scores, base, params)
    for i, row in enumerate(GRID):
        expected = restated(scores[i].double().numpy(), base[i].double().numpy(), int(found.token[i]), row)
        np.testing.assert_allclose([number(found, name)[i].item() for name in NUMBERS], expected, rtol=3e-5, atol=3e-5)


def test_an_unsteered_row_diverges_from_nothing() -> None:
    base, params = normal(2, 500), row_params((1.0, 0, 1.0, 0.0), (0.0, 5, 0.5, 0.1))
    base[:, ::3] = -INF
    found = measure(base, base, params)
    assert number(found, "kl").tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
    assert torch.equal(number(found, "entropy"), number(found, "base_entropy"))
    torch.testing.assert_close(number(found, "logprob"), number(found, "base_logprob"), rtol=1e-6, atol=1e-6)
    assert not number(found, "changed").any()


def test_uniform_distributions_have_the_entropies_of_their_sizes() -> None:
    params = row_params((1.0, 0, 1.0, 0.0), (1.0, 4, 1.0, 0.0), (1.0, 0, 0.5, 0.0))
    found = measure(torch.zeros(3, 64), torch.zeros(3, 64), params)
    assert number(found, "base_entropy").tolist() == pytest.approx([math.log(64)] * 3)
    assert number(found, "entropy").tolist() == pytest.approx([math.log(n) for n in (64, 4, 32)])
    assert number(found, "top1").tolist() == pytest.approx([1 / n for n in (64, 4, 32)])
    assert number(found, "kl").tolist() == pytest.approx([0.0, math.log(16), math.log(2)], abs=1e-6)


@pytest.mark.parametrize("row", [(1.0, 0, 1.0, 0.0), (0.0, 0, 1.0, 0.0), (1.0, 3, 1.0, 0.0)])
def test_mass_outside_the_base_diverges_without_bound_and_an_excluded_token_counts_for_nothing(
    row: tuple[float, int, float, float],
) -> None:
    base, scores, params = torch.zeros(1, 6), torch.zeros(1, 6), row_params(row)
    scores[0, 4:] = -INF
    assert number(check(scores, base, params), "kl").isfinite().all()
    base[0, 0:2] = -INF
    found = check(scores, base, params)
    assert number(found, "kl").tolist() == [INF]
    assert (number(found, "base_logprob") == -INF).item() == (found.token.item() < 2)


def test_very_unlikely_is_not_impossible() -> None:
    base, scores = torch.tensor([[0.0, -500.0]]), torch.tensor([[0.0, 500.0]])
    found = measure(scores, base, row_params((1.0, 0, 1.0, 0.0)))
    assert number(found, "kl").item() == pytest.approx(500.0)
    assert number(found, "base_logprob").item() == pytest.approx(-500.0)
    assert number(found, "changed").tolist() == [1.0]


def test_only_the_rows_asked_for_are_measured() -> None:
    params, base = row_params(*GRID), normal(len(GRID), 700)
    scores = base + normal(len(GRID), 700, seed=1)
    everyone = measure(scores, base, params)
    some = torch.arange(len(GRID)) % 3 == 1
    found = steer_sample(scores, params, keys(len(GRID), seed=7), reference=base, measured=some, logprobs=True)
    assert torch.equal(found.token, everyone.token)
    for name in NUMBERS:
        mine, theirs = number(found, name), number(everyone, name)
        torch.testing.assert_close(mine[some], theirs[some], rtol=1e-6, atol=1e-6, msg=name)
        if "logprob" in name:
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5, msg=name)
        else:
            assert mine[~some].isnan().all()
    alone = steer_sample(scores, params, keys(len(GRID), seed=7), reference=base, measured=some)
    torch.testing.assert_close(alone.base_logprob[some], everyone.base_logprob[some], rtol=1e-6, atol=1e-6)
    assert alone.base_logprob[~some].isnan().all()


def test_rows_that_allow_nothing_are_nan_and_do_not_touch_others() -> None:
    rows = [(1.0, 0, 1.0, 0.0), (1.0, 3, 1.0, 0.0), (0.0, 0, 1.0, 0.0), (1.0, 0, 1.0, 0.0)]
    base, params = normal(4, 90), row_params(*rows)
    scores = base + normal(4, 90, seed=1)
    free = measure(scores, base, params)
    scores[0], scores[1], base[2] = -INF, NAN, -INF
    found = check(scores, base, params)
    assert found.token[:2].tolist() == [-1, -1]
    assert number(found, "entropy").isnan().tolist() == [True, True, False, False]
    assert number(found, "kl").isnan().tolist() == [True, True, True, False]
    assert [number(found, name)[3] for name in NUMBERS] == [number(free, name)[3] for name in NUMBERS]


def test_large_logits_keep_their_fraction() -> None:
    params = row_params(*GRID)
    base = 1e4 + normal(len(GRID), 300) / 300
    scores = base + normal(len(GRID), 300, seed=2) / 300
    check(scores, base, params)


def test_best_tokens_that_tie_are_told_apart_by_id() -> None:
    base, scores = torch.zeros(2, 600), torch.zeros(2, 600)
    base[:, [300, 500]] = 1.0
    scores[0, [300, 400]], scores[1, [299, 300]] = 1.0, 1.0
    found = measure(scores, base, row_params(*[(1.0, 0, 1.0, 0.0)] * 2))
    assert number(found, "changed").tolist() == [0.0, 1.0]


def test_the_base_alone_has_the_numbers_that_it_has_beside_steering() -> None:
    base = normal(5, 700, seed=3)
    base[1, 40], base[2, 7:] = NAN, -INF
    base[4] = -INF
    beside = measure(normal(5, 700, seed=4), base, row_params(*[(1.0, 0, 1.0, 0.0)] * 5))
    alone = base_at(base, beside.token[:, None])
    logprob = alone.logprobs[:, 0]
    torch.testing.assert_close(logprob.double(), number(beside, "base_logprob"), equal_nan=True)
    torch.testing.assert_close(alone.entropy.double(), number(beside, "base_entropy"), equal_nan=True)
    torch.testing.assert_close(alone.top1.double(), number(beside, "base_top1"), equal_nan=True)
    assert torch.equal(alone.best[:4], base[:4].nan_to_num(nan=-INF).argmax(dim=1))
    assert logprob[4].isnan()
    expected = base[0].double().log_softmax(0)[beside.token[0]]
    assert logprob[0] == pytest.approx(expected.item(), abs=1e-6)
