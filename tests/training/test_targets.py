"""Targets of values, worked out by hand, and what they converge to on a chain whose values are known."""

import pytest
import torch

from trimtab.training.targets import expected_next, monte_carlo, td_lambda

# Two answers, of three prefixes and of two; 9 stands in the padding and must reach nothing.
VALUES = torch.tensor([[0.2, 0.4, 0.8], [0.5, 0.6, 9.0]])
REWARDS = torch.tensor([1.0, -2.0])
MASK = torch.tensor([[True, True, True], [True, True, False]])


def test_monte_carlo_is_the_reward_at_every_prefix() -> None:
    assert monte_carlo(REWARDS, MASK).tolist() == [[1.0, 1.0, 1.0], [-2.0, -2.0, 0.0]]


def test_trace_zero_is_the_next_value() -> None:
    expected = torch.tensor([[0.4, 0.8, 1.0], [0.6, -2.0, 0.0]])
    torch.testing.assert_close(td_lambda(VALUES, REWARDS, MASK, 0.0), expected)


def test_trace_one_is_monte_carlo() -> None:
    torch.testing.assert_close(td_lambda(VALUES, REWARDS, MASK, 1.0), monte_carlo(REWARDS, MASK))


def test_trace_between() -> None:
    # G_3 = 1, G_2 = (0.8 + 1) / 2 = 0.9, G_1 = (0.4 + 0.9) / 2 = 0.65; G_2 = -2, G_1 = (0.6 - 2) / 2 = -0.7
    expected = torch.tensor([[0.65, 0.9, 1.0], [-0.7, -2.0, 0.0]])
    torch.testing.assert_close(td_lambda(VALUES, REWARDS, MASK, 0.5), expected)


@pytest.mark.parametrize("trace", [0.0, 0.3, 0.95])
def test_the_return_is_the_mixture_of_all_steps(trace: float) -> None:
    """Sutton and Barto's sum: (1 - lambda) sum_n lambda^(n - 1) G_{t:t+n} + lambda^(T - t) G_t, and G_{t:t+n} = V."""
    length = 5
    values, reward = torch.randn(1, length, generator=torch.Generator().manual_seed(0)), torch.tensor([0.7])
    found = td_lambda(values, reward, torch.ones(1, length, dtype=torch.bool), trace)[0]
    for t in range(length):
        steps = length - 1 - t  # to the whole answer, from which one more pays the reward
        parts = [(1 - trace) * trace ** (n - 1) * values[0, t + n].item() for n in range(1, steps + 1)]
        assert found[t].item() == pytest.approx(sum(parts) + trace**steps * 0.7, abs=1e-6)


def test_expected_next_pays_the_reward_at_the_end_alone() -> None:
    expected = torch.tensor([[0.1, 0.3, 7.0], [0.2, 7.0, 9.0]])
    told = expected_next(expected, REWARDS, MASK)
    torch.testing.assert_close(told, torch.tensor([[0.1, 0.3, 1.0], [0.2, -2.0, 0.0]]))


def test_no_target_has_a_graph() -> None:
    values = VALUES.clone().requires_grad_()
    assert not td_lambda(values, REWARDS, MASK, 0.5).requires_grad
    assert not expected_next(values, REWARDS, MASK).requires_grad


def test_the_targets_of_a_chain_lead_to_its_values() -> None:
    """From s0 to s1 or s2, from each to one of two ends; every value is a mean that can be worked out on paper."""
    after = torch.tensor([0.25, 0.75])  # s0 -> s1, s2
    ends = torch.tensor([[0.5, 0.5], [0.2, 0.8]])  # s1, s2 -> the two ends
    paid = torch.tensor([[1.0, 3.0], [-1.0, 4.0]])
    exact = torch.tensor([2.75, 2.0, 3.0])  # s1: 2, s2: -0.2 + 3.2 = 3, s0: 0.5 + 2.25
    # CD-Q: the rows are the answers s0 s1 e, s0 s2 e; each prefix takes the mean over what may follow.
    values = torch.zeros(3)
    for _ in range(3):
        expected = torch.stack([after @ values[1:], *(ends * paid).sum(dim=1)])
        rows = torch.stack([expected[[0, 1]], expected[[0, 2]]])
        mask = torch.ones(2, 3, dtype=torch.bool)
        padded = torch.cat((rows, torch.zeros(2, 1)), dim=1)
        told = expected_next(padded, torch.zeros(2), mask)
        values = torch.stack([told[0, 0], told[0, 1], told[1, 1]])
    torch.testing.assert_close(values, exact)
    # TD: the mean over all four answers of the target at s0, with s1 and s2 known, is the value for every trace.
    for trace in (0.0, 0.5, 1.0):
        mean = torch.zeros(())
        for s in range(2):
            for e in range(2):
                along = torch.tensor([[0.0, exact[1 + s], paid[s, e]]])
                target = td_lambda(along, paid[s, e][None], torch.ones(1, 3, dtype=torch.bool), trace)
                mean = mean + after[s] * ends[s, e] * target[0, 0]
        torch.testing.assert_close(mean, exact[0])
