"""What steering did to a step: log-probabilities, entropies and the divergence from the base, for every row."""

from typing import NamedTuple

import torch
from torch import Tensor

from trimtab.kernels.steer_sample import reference_steer
from trimtab.kernels.survivors import Group, RowParams, scaled_probs, survivors
from trimtab.kernels.tiles import NEG_INF, Allowed, allowed, first_best, log_mass


class Statistics(NamedTuple):
    """Of each row's drawn token and distributions, (B,) float32 in nats; nan where a distribution allows nothing.

    The steered distribution is what the token was drawn from: after temperature, min-p, top-k and top-p, normalised
    again. For a greedy row it is the distribution at temperature 1 without filters.
    """

    logprob: Tensor  # of the token when steered, -inf where it is outside
    base_logprob: Tensor  # of the token under softmax(base)
    entropy: Tensor
    base_entropy: Tensor
    kl: Tensor  # KL(steered || base), inf where the steered distribution has mass that the base lacks
    top1_changed: Tensor  # (B,) bool, whether the best token differs from the base's; ties by lower id


def reference_statistics(scores: Tensor, base: Tensor, token: Tensor, params: RowParams) -> Statistics:
    """Return the statistics in float64, by dense sums: the specification of `steer_statistics`."""
    steered, _ = reference_steer(scores, params)
    _, plain = reference_steer(base, params)
    p, q = steered.exp(), plain.exp()
    of_token = token.clamp(min=0)[:, None]
    best, base_best = (x.double().nan_to_num(nan=NEG_INF).argmax(dim=1) for x in (scores, base))
    return Statistics(
        logprob=steered.gather(1, of_token)[:, 0],
        base_logprob=plain.gather(1, of_token)[:, 0],
        entropy=-torch.where(p == 0, 0.0, p * steered).sum(dim=1),
        base_entropy=-torch.where(q == 0, 0.0, q * plain).sum(dim=1),
        kl=torch.where(p == 0, 0.0, p * (steered - plain)).sum(dim=1),
        top1_changed=(best != base_best) & ~p[:, 0].isnan() & ~q[:, 0].isnan(),
    )


def steer_statistics(scores: Tensor, base: Tensor, token: Tensor, params: RowParams) -> Statistics:
    """Return the statistics of `token` (B,) int64, drawn from `scores` (B, V) under `params`.

    `scores` are the mixed and edited logits, `base` (B, V) the base model's own, any floating dtype. NaN logits are
    excluded, as `steer_sample` does.
    """
    steered, plain = allowed(scores.float()), allowed(base.float())
    top, of_token = steered.top, token.clamp(min=0)[:, None]  # (B, 1)
    base_probs, base_mass, base_logprobs = _distribution(plain)
    logprob, entropy, kl = (torch.empty_like(top[:, 0]) for _ in range(3))
    for g in params.groups:
        rows = g.rows
        measure = _ranked if g.ranked else _open
        logprob[rows], entropy[rows], kl[rows] = measure(
            steered.z[rows], top[rows], g, base_logprobs[rows], of_token[rows]
        )
    dead = ~steered.alive
    base_dead = ~plain.alive
    nan = float("nan")
    return Statistics(
        logprob=logprob.masked_fill(dead, nan),
        base_logprob=base_logprobs.gather(1, of_token)[:, 0].masked_fill(base_dead, nan),
        entropy=entropy.masked_fill(dead, nan),
        base_entropy=-_mean(base_probs, base_mass, base_logprobs).masked_fill(base_dead, nan),
        kl=kl.clamp(min=0.0).masked_fill(dead | base_dead, nan),
        top1_changed=(first_best(steered.z, steered.peaks) != first_best(plain.z, plain.peaks)) & ~dead & ~base_dead,
    )


def base_statistics(base: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of `token` (B,) int64 under softmax(base) and its entropy, (B,) float32 each in nats.

    What `steer_statistics` tells of the base (B, V) alone; nan where it allows nothing.
    """
    plain = allowed(base.float())
    probs, mass, logprobs = _distribution(plain)
    found = logprobs.gather(1, token.clamp(min=0)[:, None])[:, 0], -_mean(probs, mass, logprobs)
    return found[0].masked_fill(~plain.alive, float("nan")), found[1].masked_fill(~plain.alive, float("nan"))


def _distribution(plain: Allowed) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities (B, V), their mass (B, 1) float64, which is not quite 1, and log-probabilities (B, V)."""
    probs = plain.z.softmax(dim=1)
    scale, mass = log_mass(probs)
    return probs, mass, (plain.z - plain.top).sub_(scale.float())


def _open(z: Tensor, top: Tensor, g: Group, base_logprobs: Tensor, token: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of `token` (R, 1), entropy and KL, (R,) each, of rows without top-k and top-p."""
    probs = scaled_probs(z, top, g)
    scale, mass = log_mass(probs)
    logprobs = (z - top).mul_(g.inverse_temperature).sub_(scale.float())
    logprob = logprobs.gather(1, token)
    if g.any_min_p:
        logprob = logprob.masked_fill(probs.gather(1, token) < g.min_p * probs.amax(dim=1, keepdim=True), NEG_INF)
    entropy = -_mean(probs, mass, logprobs)
    return logprob[:, 0], entropy, _mean(probs, mass, logprobs.sub_(base_logprobs))


def _ranked(z: Tensor, top: Tensor, g: Group, base_logprobs: Tensor, token: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of `token` (R, 1), entropy and KL, (R,) each, of rows with top-k or top-p."""
    logprob, entropy, kl = (torch.empty_like(top[:, 0]) for _ in range(3))
    for s in survivors(z, top, g):
        inside = torch.arange(s.ids.shape[1], device=z.device) < s.kept
        logprobs = (-s.depth - s.mass.log()).masked_fill(~inside, NEG_INF)  # (R', C) float64
        probs = logprobs.exp()
        relative = logprobs - base_logprobs[s.rows].gather(1, s.ids)
        logprob[s.rows] = logprobs.masked_fill(s.ids != token[s.rows], NEG_INF).amax(dim=1).float()
        entropy[s.rows] = -(probs * logprobs).masked_fill(probs == 0, 0.0).sum(dim=1).float()
        kl[s.rows] = (probs * relative).masked_fill(probs == 0, 0.0).sum(dim=1).float()
    return logprob, entropy, kl


def _mean(probs: Tensor, mass: Tensor, values: Tensor) -> Tensor:
    """Mean (R,) of `values` (R, V) under `probs` (R, V) of mass `mass` (R, 1); probability 0 counts for nothing."""
    total: Tensor = torch.linalg.vecdot(probs, values)
    if not bool(total.isfinite().all()):  # 0 * -inf, or a true infinity
        total = (probs * values).masked_fill_(probs == 0, 0.0).sum(dim=1)
    return (total / mass[:, 0]).float()
