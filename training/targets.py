"""What a value is fitted to: targets of the values (B, T) that prefixes of answers have, as formulas over tensors.

A row holds the values of an answer's prefixes in order, the whole answer's last, then padding. The reward (B,) is paid
after the last token, be it an EOS or the last one that there was room for. Nothing is discounted.
"""

import torch
from torch import Tensor


def monte_carlo(rewards: Tensor, mask: Tensor) -> Tensor:
    """The answer's reward at every prefix, (B, T).

    CD-FUDGE (Mudgal et al. 2023, arXiv 2310.17022): the mean of the rewards that answers get from here on.
    """
    return rewards[:, None] * mask


def expected_next(expected: Tensor, rewards: Tensor, mask: Tensor) -> Tensor:
    """`sum_z pi(z | h_t) V(h_t, z)`, which is `expected` (B, T), and the reward at the last prefix, (B, T).

    CD-Q (Mudgal et al. 2023, arXiv 2310.17022). No graph.
    """
    return torch.where(_last(mask), rewards[:, None], expected.detach()) * mask


def td_lambda(values: Tensor, rewards: Tensor, mask: Tensor, trace: float) -> Tensor:
    """The lambda-return: `G_T = r`, `G_t = (1 - lambda) V(h_{t+1}) + lambda G_{t+1}`, (B, T). No graph.

    Sutton and Barto (2018), section 12.1, for a reward that only the step out of the whole answer pays. Trace 1 is
    `monte_carlo`. Trace 0 fits each prefix to the next, and the whole answer to the reward: the loss of RE-Control
    (Kong et al. 2024, arXiv 2406.05954).
    """
    values, last = values.detach(), _last(mask)
    targets = torch.zeros_like(values)
    following = torch.zeros_like(rewards)
    for t in reversed(range(values.shape[1])):
        after = values[:, t + 1] if t + 1 < values.shape[1] else following
        following = torch.where(last[:, t], rewards, (1 - trace) * after + trace * following)
        targets[:, t] = following
    return targets * mask


def _last(mask: Tensor) -> Tensor:
    """Where the whole answers are, (B, T) bool, of a mask with at least one prefix in each row."""
    at = torch.arange(mask.shape[1], device=mask.device)
    return at == (mask.sum(dim=1, dtype=torch.long) - 1)[:, None]
