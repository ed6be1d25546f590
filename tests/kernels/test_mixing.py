import math

import numpy as np
import pytest
import torch
from torch import Tensor

from trimtab.kernels.mixing import (
    Aux,
    Placement,
    Transform,
    mix,
    power_mean,
    reference_mix,
    reference_power_mean,
    transform_values,
)

INF, NAN = math.inf, math.nan
SIZES = [1, 7, 1000, 5003]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


def restated_mix(base: Tensor, base_weight: Tensor, aux: list[Aux]) -> np.ndarray:
    """Number by number, from the rules."""
    out = np.zeros(base.shape)
    for row in range(base.shape[0]):
        terms = [(base_weight[row].item(), base[row].double().numpy())]
        for part in aux:
            for target, weight, logits in zip(part.rows.tolist(), part.weights.tolist(), part.logits, strict=True):
                if target == row:
                    terms.append((weight, logits.double().numpy()))
        for token in range(base.shape[1]):
            values = [(weight, logits[token]) for weight, logits in terms if weight != 0]
            if any(math.isnan(value) for _, value in values):
                out[row, token] = NAN
            elif any(value == -INF for _, value in values):
                out[row, token] = -INF
            else:
                out[row, token] = sum(weight * value for weight, value in values)
    return out


def example(vocab_size: int, dtype: torch.dtype, holes: bool) -> tuple[Tensor, Tensor, list[Aux]]:
    """Four rows and three guides; one guide reads row 3 twice, one has weights 0, negative and large."""
    base, first, second = (normal(4, vocab_size, seed=i).to(dtype) for i in range(3))
    if holes:
        for i, logits in enumerate((base, first, second)):
            logits[:, i::5] = -INF
        first[1, :2], second[2, -1:], base[0, :1] = NAN, NAN, NAN
    aux = [
        Aux(first[:3], Placement.of([3, 0, 3], [1.0, -1.0, -0.5], 4, "cpu")),
        Aux(second, Placement.of([0, 1, 2, 3], [1.0, 0.0, 1e4, -2.0], 4, "cpu")),
        Aux(normal(1, vocab_size, seed=4).to(dtype), Placement.of([1], [0.25], 4, "cpu")),
    ]
    return base, torch.tensor([1.0, 1.5, -1.0, 0.0]), aux


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", SIZES)
def test_mix_is_the_weighted_sum(vocab_size: int, dtype: torch.dtype, holes: bool) -> None:
    base, base_weight, aux = example(vocab_size, dtype, holes)
    before = base.clone()
    mixed, reference = mix(base, base_weight, aux), reference_mix(base, base_weight, aux)
    restated = restated_mix(base, base_weight, aux)
    assert mixed.dtype == torch.float32
    np.testing.assert_allclose(reference.numpy(), restated, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(mixed.double().numpy(), restated, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(base, before, equal_nan=True, rtol=0, atol=0)


def test_mix_without_guides_is_a_copy_of_the_base() -> None:
    base = normal(3, 50)
    mixed = mix(base, torch.ones(3), [])
    assert torch.equal(mixed, base)
    mixed.zero_()
    assert base.abs().sum() > 0


def test_a_row_mixes_to_the_same_bits_beside_a_row_that_needs_repair() -> None:
    base, guide, placement = normal(2, 40), normal(2, 40, seed=1), Placement.of([0, 1], [-0.3, -0.7], 2, "cpu")
    alone = mix(base, torch.ones(2), [Aux(guide, placement)])[1]
    guide[0, 5] = -INF
    mixed = mix(base, torch.ones(2), [Aux(guide, placement)])
    assert mixed[0, 5] == -INF
    assert torch.equal(mixed[1], alone)


def test_a_constant_added_to_one_guide_does_not_change_the_distribution() -> None:
    base, base_weight, aux = example(300, torch.float32, holes=False)
    shifted = [aux[0]._replace(logits=aux[0].logits + 7.0), *aux[1:]]
    before, after = (mix(base, base_weight, parts).softmax(dim=1) for parts in (aux, shifted))
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)
    raised = aux[0].logits.clone()
    raised[:, 3] += 7.0
    assert not torch.allclose(mix(base, base_weight, [aux[0]._replace(logits=raised), *aux[1:]]).softmax(dim=1), before)


def test_slots_hold_every_part_once() -> None:
    placement = Placement.of([3, 0, 3, 3], [1.0, -1.0, -0.5, 2.0], 4, "cpu")
    found = {
        (row, part, weight)
        for slot in placement.slots
        for row, (part, weight) in enumerate(zip(slot.index.tolist(), slot.weights.tolist(), strict=True))
        if part >= 0
    }
    assert found == {(3, 0, 1.0), (0, 1, -1.0), (3, 2, -0.5), (3, 3, 2.0)}
    assert len(placement.slots) == 3
    assert all((slot.weights[slot.index < 0] == 0).all() for slot in placement.slots)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_equal_guides_of_opposite_sign_leave_the_base_and_their_bans(sign: float) -> None:
    base, guide = normal(2, 60), normal(2, 60, seed=1)
    guide[:, ::7] = -INF
    mixed = mix(base, torch.ones(2), [Aux(guide, Placement.of([0, 1], [w, w], 2, "cpu")) for w in (sign, -sign)])
    torch.testing.assert_close(mixed, base.masked_fill(guide == -INF, -INF), rtol=1e-5, atol=1e-5)


def restated_power_mean(logits: Tensor, weights: Tensor, power: Tensor) -> np.ndarray:
    """log of (sum w p^-a)^(-1/a), by ratios to the model that dominates, in extended precision."""
    z = logits.double().numpy().astype(np.longdouble)
    z = z - z.max(axis=2, keepdims=True)
    logprobs = z - np.log(np.exp(z).sum(axis=2, keepdims=True))
    out = np.zeros((z.shape[0], z.shape[2]))
    for row, a in enumerate(power.double().numpy().astype(np.longdouble)):
        live = (weights[row] > 0).numpy()
        w, lp = weights[row].numpy().astype(np.longdouble)[live, None], logprobs[row, live]
        pivot = lp.min(axis=0) if a > 0 else lp.max(axis=0)
        with np.errstate(invalid="ignore"):
            mean = pivot - np.log((w / w.sum() * np.exp(-a * (lp - pivot))).sum(axis=0)) / a
        out[row] = np.where(np.isinf(pivot), -INF, mean)
    return out


POWERS = [1.0, 0.5, 3.0, 1e-2, 1e-4, -0.5, -2.0]


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("vocab_size", SIZES)
def test_power_mean_is_its_definition(vocab_size: int, holes: bool) -> None:
    logits = normal(len(POWERS), 3, vocab_size)
    if holes and vocab_size > 1:
        logits[:, 0, ::3], logits[:, 1, ::4] = -INF, -INF
    weights = torch.tensor([[0.5, 0.25, 0.25], [0.9, 0.1, 0.0], [0.0, 1.0, 0.0], [1e-4, 0.9999, 0.0]]).repeat(2, 1)
    weights = weights[: len(POWERS)]
    power = torch.tensor(POWERS)
    mean = power_mean(logits, weights, power).double().numpy()
    np.testing.assert_allclose(mean, restated_power_mean(logits, weights, power), rtol=1e-5, atol=3e-5)
    sure = power.abs() > 1e-3  # float32 weights do not sum to exactly 1, and 1 / a magnifies it
    reference = reference_power_mean(logits, weights, power)
    np.testing.assert_allclose(mean[sure], reference[sure].numpy(), rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize("power", POWERS)
def test_power_mean_of_one_model_is_that_model(power: float) -> None:
    logits = normal(2, 3, 200)
    logits[:, 0] = NAN  # takes no part
    mean = power_mean(logits, torch.tensor([[0.0, 0.0, 1.0]]).repeat(2, 1), torch.full((2,), power))
    torch.testing.assert_close(mean, logits[:, 2].log_softmax(dim=1), rtol=1e-5, atol=1e-5)


def test_power_one_is_the_harmonic_mean_and_power_near_zero_the_weighted_sum() -> None:
    logits, weights = normal(1, 2, 100), torch.tensor([[0.3, 0.7]])
    logprobs = logits.double().log_softmax(dim=2)[0]
    harmonic = -(0.3 / logprobs[0].exp() + 0.7 / logprobs[1].exp()).log()
    torch.testing.assert_close(power_mean(logits, weights, torch.ones(1))[0].double(), harmonic, rtol=1e-5, atol=1e-5)
    limit = 0.3 * logprobs[0] + 0.7 * logprobs[1]
    near = power_mean(logits, weights, torch.tensor([1e-7]))[0].double()
    torch.testing.assert_close(near, limit, rtol=1e-5, atol=1e-4)


def test_a_model_of_little_weight_that_dominates_keeps_its_digits() -> None:
    logits, weights = torch.tensor([[[0.0, 30.0], [0.0, -30.0]]]), torch.tensor([[1e-9, 1.0]])
    mean = power_mean(logits, weights, torch.ones(1))
    assert mean[0].tolist() == pytest.approx([-30.0 - math.log(1e-9 + math.exp(-30.0)), -30.0], rel=1e-5)


def test_a_broken_model_of_a_power_mean_shows() -> None:
    logits = normal(1, 2, 30)
    logits[0, 1, 4] = NAN
    assert power_mean(logits, torch.tensor([[0.5, 0.5]]), torch.ones(1)).isnan().all()


@pytest.mark.parametrize("kind", ["identity", "clamp", "log_sigmoid", "centre"])
def test_values_are_transformed_where_they_are_valid(kind: Transform) -> None:
    values, valid = normal(5, 6), torch.rand(5, 6, generator=torch.Generator().manual_seed(1)) > 0.4
    valid[4] = False
    values = values.masked_fill(~valid, NAN)
    done = transform_values(values, valid, kind)
    assert (done[~valid] == 0).all()
    for row in range(4):
        v = values[row][valid[row]].double().numpy()
        expected = {
            "identity": v,
            "clamp": np.minimum(np.maximum(v, 0), 1),
            "log_sigmoid": -np.log1p(np.exp(-v)),
            "centre": v - v.sum() / len(v),
        }[kind]
        np.testing.assert_allclose(done[row][valid[row]].numpy(), expected, rtol=1e-6, atol=1e-6)


def test_a_value_that_is_no_number_stays_visible() -> None:
    values, valid = torch.tensor([[1.0, NAN, 2.0]]), torch.ones(1, 3, dtype=torch.bool)
    for kind in ("identity", "clamp", "log_sigmoid", "centre"):
        assert transform_values(values, valid, kind).isnan().any(), kind
