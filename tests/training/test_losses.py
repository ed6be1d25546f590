"""Every loss against numbers worked out by hand with the functions of `math` alone."""

import math

import pytest
import torch
from torch import Tensor

from trimtab.training import losses


def t(*values: object) -> Tensor:
    return torch.tensor(values)


def test_bradley_terry() -> None:
    # Margins ln 3 and -ln 3: sigma is 3/4 and 1/4, so the mean of -ln 0.75 and -ln 0.25.
    got = losses.bradley_terry(t(math.log(3.0), 1.0), t(0.0, 1.0 + math.log(3.0)))
    assert got.item() == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)


def test_squared_error() -> None:
    # Errors 1 and -3.
    assert losses.squared_error(t(2.0, 0.0), t(1.0, 3.0)).item() == pytest.approx((1 + 9) / 2)


def test_prefix_squared_error_weighs_longer_prefixes() -> None:
    scores = t([9.0, 1.0, 2.0, 4.0], [3.0, 9.0, 9.0, 9.0])
    places = t([0, 1, 2, 3], [1, 0, 0, 0])
    # First text, rating 1: (1*0 + 2*1 + 3*9) / 6. Second, rating 5: 4. The nines count nowhere.
    got = losses.prefix_squared_error(scores, t(1.0, 5.0), places)
    assert got.item() == pytest.approx((29 / 6 + 4) / 2)


def test_value_regression_sums_over_tokens_and_detaches_targets() -> None:
    values, targets = t([1.0, 2.0], [0.0, 7.0]).requires_grad_(), t([3.0, 2.5], [1.0, 0.0]).requires_grad_()
    # 1/2 (4 + 1/4) and 1/2 (1); the seven is masked.
    loss = losses.value_regression(values, targets, t([1, 1], [1, 0]))
    assert loss.item() == pytest.approx((2.125 + 0.5) / 2)
    loss.backward()
    assert targets.grad is None
    assert values.grad is not None
    assert values.grad.tolist() == [[-1.0, -0.25], [-0.5, 0.0]]  # (value - target) / 2 answers


def test_autoregressive_reward() -> None:
    # 0.05 * (-10 + 30) = 1 and 0.05 * (-20 + 20) = 0.
    got = losses.autoregressive_reward(t(-10.0, -20.0), t(-30.0, -20.0), 0.05)
    assert got.item() == pytest.approx((math.log(1 + math.exp(-1)) + math.log(2)) / 2)


def test_direct_preference() -> None:
    # chosen gained 2 over the reference, rejected lost 1: 0.1 * (2 - -1) = 0.3
    got = losses.direct_preference(t(-8.0), t(-6.0), t(-10.0), t(-5.0), 0.1)
    assert got.item() == pytest.approx(math.log(1 + math.exp(-0.3)))


def test_imitation_is_a_mean_over_tokens() -> None:
    # Three tokens count: 1 + 2 + 6.
    got = losses.imitation(t([-1.0, -2.0], [-6.0, -100.0]), t([1, 1], [1, 0]))
    assert got.item() == pytest.approx(3.0)


def test_preference_cross_entropy() -> None:
    weights, targets = t([0.5, 0.5], [0.2, 0.8]), t([1.0, 0.0], [0.25, 0.75])
    got = losses.preference_cross_entropy(weights.log(), targets)
    by_hand = (-math.log(0.5) - 0.25 * math.log(0.2) - 0.75 * math.log(0.8)) / 2
    assert got.item() == pytest.approx(by_hand)
