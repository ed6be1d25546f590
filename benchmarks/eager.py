"""What the sampler pass is measured against: the same step in plain torch, as anyone would write it."""

from collections.abc import Sequence

import torch
from torch import Tensor


def eager_chain(
    base: Tensor, aux: Sequence[Tensor], weights: Tensor, temperature: Tensor, *, statistics: bool = True
) -> tuple[Tensor, ...]:
    """Mix `base` (B, V) with `aux`, scale, draw, and tell what that did, one torch operation after another.

    `weights` (B, 1 + len(aux)) float32, `temperature` (B,). Returns the tokens (B,) and their log-probabilities
    steered and under the base; with `statistics` also both entropies, KL(steered || base), both best probabilities
    and whether the best token changed.
    """
    raw = base.float()
    z = raw * weights[:, :1]
    for i, logits in enumerate(aux, start=1):
        z = z + weights[:, i : i + 1] * logits.float()
    steered = torch.log_softmax(z / temperature[:, None], dim=-1)
    plain = torch.log_softmax(raw, dim=-1)
    p = steered.exp()
    token = (p / torch.empty_like(p).exponential_()).argmax(dim=-1)  # torch.multinomial for one draw, without its sync
    found = (token, *(each.gather(1, token[:, None])[:, 0] for each in (steered, plain)))
    if not statistics:
        return found
    q = plain.exp()
    return (
        *found,
        -(p * steered.clamp(min=-1e4)).sum(dim=-1),
        -(q * plain.clamp(min=-1e4)).sum(dim=-1),
        (p * (steered - plain).clamp(min=-1e4)).sum(dim=-1),
        p.amax(dim=-1),
        q.amax(dim=-1),
        z.argmax(dim=-1) != raw.argmax(dim=-1),
    )
