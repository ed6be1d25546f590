"""What a step drew, and what steering did to it: log-probabilities, entropies and the divergence from the base."""

from dataclasses import dataclass

import torch
from torch import Tensor

PACKED = (
    "token",
    "logprob",
    "base_logprob",
    "entropy",
    "base_entropy",
    "kl",
    "top1",
    "base_top1",
    "changed",
    "nan",
)
"""columns of what the Triton kernel gives, (B, 10) int32; numbers keep their float32 bits, nan where not asked for"""


@dataclass(frozen=True)
class SteerOut:
    """What a step drew, and of what: (B,) each, in nats; nan for what was not asked for or allows nothing.

    The steered distribution is what the token was drawn from: after temperature, min-p, top-k and top-p, normalised
    again; for a greedy row the distribution at temperature 1 without filters. The base's is softmax(reference).
    """

    token: Tensor  # int64, -1 where nothing is allowed
    nan: Tensor  # bool, rows whose logits held a NaN
    logprob: Tensor  # of the token when steered
    base_logprob: Tensor  # of the token under the base
    entropy: Tensor
    base_entropy: Tensor
    kl: Tensor  # KL(steered || base), inf where the steered distribution has mass that the base lacks
    top1: Tensor  # probability of the most likely token, steered
    base_top1: Tensor
    changed: Tensor  # bool, whether the best token before filters differs; ties by lower id

    @staticmethod
    def of(token: Tensor, nan: Tensor, **known: Tensor) -> "SteerOut":
        """With nan for all that is not `known`."""
        unknown = torch.full(token.shape, float("nan"), device=token.device)
        columns = dict.fromkeys(PACKED[1:8], unknown) | {"changed": torch.zeros_like(nan)} | known
        return SteerOut(token=token, nan=nan, **columns)

    @staticmethod
    def unpacked(packed: Tensor) -> "SteerOut":
        """From the kernel's columns."""
        columns = dict(zip(PACKED, packed.unbind(1), strict=True))
        floats = {name: columns[name].view(torch.float32) for name in PACKED[1:8]}
        return SteerOut(columns["token"].long(), columns["nan"].bool(), **floats, changed=columns["changed"].bool())


def reference_statistics(steered: Tensor, base: Tensor, token: Tensor) -> dict[str, Tensor]:
    """The numbers of `SteerOut`, float64, by dense sums over two log-distributions (B, V): their specification."""
    p, q = steered.exp(), base.exp()
    of_token = token.clamp(min=0)[:, None]
    return {
        "logprob": steered.gather(1, of_token)[:, 0],
        "base_logprob": base.gather(1, of_token)[:, 0],
        "entropy": -torch.where(p == 0, 0.0, p * steered).sum(dim=1),
        "base_entropy": -torch.where(q == 0, 0.0, q * base).sum(dim=1),
        "kl": torch.where(p == 0, 0.0, p * (steered - base)).sum(dim=1),
        "top1": p.amax(dim=1),
        "base_top1": q.amax(dim=1),
    }


def mean(probs: Tensor, mass: Tensor, values: Tensor) -> Tensor:
    """Mean (R, 1) float64 of `values` (R, V) under `probs` (R, V) of mass `mass` (R, 1); probability 0 is nothing."""
    total: Tensor = torch.linalg.vecdot(probs, values)
    if not bool(total.isfinite().all()):  # 0 * -inf, or a true infinity
        total = (probs * values).masked_fill_(probs == 0, 0.0).sum(dim=1)
    return total[:, None].double() / mass
