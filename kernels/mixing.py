"""Several models' logits become one: weighted sums, power means of probabilities, and the values of candidates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from trimtab.kernels.tiles import NEG_INF

Transform = Literal["identity", "clamp", "log_sigmoid", "centre"]


@dataclass(frozen=True, eq=False)
class Slot:
    """At most one part per batch row, as a kernel reads it."""

    index: Tensor  # (B,) int32, the part's row of the guide's logits; -1: none
    weights: Tensor  # (B,) float32, 0 where there is none


@dataclass(frozen=True, eq=False)
class Placement:
    """Where the rows of a guide's logits are added, and with which weights; made once per batch composition."""

    rows: Tensor  # (R,) int64, may name a row twice
    weights: Tensor  # (R,) float32
    slots: tuple[Slot, ...]  # the same, no row twice in one slot

    @staticmethod
    def of(rows: Sequence[int], weights: Sequence[float], batch: int, device: torch.device | str) -> "Placement":
        """Row i of the logits goes to row `rows[i]` of `batch` ones, times `weights[i]`."""
        turns: list[dict[int, int]] = []
        for part, row in enumerate(rows):
            free = next((turn for turn in turns if row not in turn), None)
            if free is None:
                turns.append(free := {})
            free[row] = part
        slots = []
        for turn in turns:
            index, scale = torch.full((batch,), -1, dtype=torch.int32), torch.zeros(batch)
            for row, part in turn.items():
                index[row], scale[row] = part, weights[part]
            slots.append(Slot(index.to(device), scale.to(device)))
        return Placement(
            torch.tensor(rows, dtype=torch.long).to(device),
            torch.tensor(weights, dtype=torch.float32).to(device),
            tuple(slots),
        )


class Aux(NamedTuple):
    """Logits of one guide model and the batch rows that they are added to."""

    logits: Tensor  # (R, V), any floating dtype
    placement: Placement

    @property
    def rows(self) -> Tensor:
        return self.placement.rows

    @property
    def weights(self) -> Tensor:
        return self.placement.weights


def reference_mix(base: Tensor, base_weight: Tensor, aux: Sequence[Aux]) -> Tensor:
    """Return the mixture (B, V) float64, row by row: the specification of `mix`."""
    mixed = []
    for row in range(base.shape[0]):
        terms = [(base_weight[row].double(), base[row].double())]
        for part in aux:
            for i in (part.rows == row).nonzero()[:, 0].tolist():
                terms.append((part.weights[i].double(), part.logits[i].double()))
        total = torch.zeros_like(base[row], dtype=torch.float64)
        out = torch.zeros_like(total, dtype=torch.bool)
        for weight, logits in terms:
            if weight != 0:
                barred = logits == NEG_INF
                total += weight * logits.masked_fill(barred, 0.0)
                out |= barred
        mixed.append(torch.where(out & ~total.isnan(), NEG_INF, total))
    return torch.stack(mixed)


def mix(base: Tensor, base_weight: Tensor, aux: Sequence[Aux]) -> Tensor:
    """Return base_weight * base + sum of weight * logits, a fresh (B, V) float32.

    `base` (B, V) has any floating dtype, `base_weight` (B,) is float32. What has weight 0 takes no part. A token at
    -inf in any part is -inf in the sum, whatever the weights' signs: no model that takes part may be overruled about
    what is impossible. NaN stays NaN, so that the guilty model can be looked for; +inf follows IEEE.
    """
    z = _weighted_sum(base, base_weight, aux)
    # -inf times a positive weight is right as it is. Everything else that can go wrong (a negative weight, 0 * inf,
    # inf - inf, NaN) shows as +inf or NaN, and a maximum passes both on.
    if bool((z.amax(dim=1) < float("inf")).all()):
        return z
    out = (base == NEG_INF) & (base_weight != 0)[:, None]
    for part in aux:
        barred = (part.logits == NEG_INF) & (part.weights != 0)[:, None]
        # Not by indexed assignment: a row may occur twice.
        out |= torch.zeros_like(z).index_add_(0, part.rows, barred.float()) > 0
    z = _weighted_sum(
        _harmless(base, base_weight),
        base_weight,
        [Aux(_harmless(part.logits, part.weights), part.placement) for part in aux],
    )
    return z.masked_fill_(out & ~z.isnan(), NEG_INF)


def _weighted_sum(base: Tensor, base_weight: Tensor, aux: Sequence[Aux]) -> Tensor:
    z = base.float() * base_weight[:, None]
    for part in aux:
        weighted = part.logits.float() * part.weights[:, None]
        if z.is_cuda:  # index_add_ adds in an order of chance there, and a row may occur twice
            z.index_put_((part.rows,), weighted, accumulate=True)
        else:
            z.index_add_(0, part.rows, weighted)
    return z


def _harmless(logits: Tensor, weights: Tensor) -> Tensor:
    """`logits` (R, V) with zeros at -inf and in rows of weight 0."""
    return logits.masked_fill((logits == NEG_INF) | (weights == 0)[:, None], 0.0)


def reference_power_mean(logits: Tensor, weights: Tensor, power: Tensor) -> Tensor:
    """Return the power mean (R, V) float64 from its definition: the specification of `power_mean`."""
    a = power.double()[:, None, None]
    terms = weights.double().log()[:, :, None] - a * logits.double().log_softmax(dim=2)
    terms = torch.where(weights[:, :, None] > 0, terms, NEG_INF)
    return -terms.logsumexp(dim=1) / a[:, 0]


def power_mean(logits: Tensor, weights: Tensor, power: Tensor) -> Tensor:
    """Return log of (sum of w_m * p_m^-a)^(-1/a) for p_m = softmax(logits_m), (R, V) float32, not normalised.

    `logits` (R, M, V) has any floating dtype; `weights` (R, M) are at least 0 and sum to 1, weight 0 takes no part;
    `power` (R,) is a, not 0. MOD's closed form (arXiv 2406.18853) token by token, for the regulariser among the
    f-divergences whose f'(x) is, up to constants, -x^-a: the alpha-divergences. a = 1 is forward KL, the harmonic
    mean; a -> 0 is reverse KL, the weighted sum of log-probabilities. For a > 0 a token that one model excludes is
    excluded. A NaN in a model that takes part makes the whole row NaN.
    """
    a = power[:, None]  # (R, 1)
    scaled = logits.float().log_softmax(dim=2) * -a[:, :, None]  # (R, M, V)
    scaled = scaled.masked_fill_((weights == 0)[:, :, None], NEG_INF)
    top = scaled.amax(dim=1)  # (R, V)
    gap = scaled.sub_(top[:, None])
    # With a near 0 the sum of w * exp(gap) is near 1, and its logarithm is divided by a: it needs all digits of the
    # difference. Far from 1 the sum of its small parts needs them instead.
    share = torch.einsum("rm,rmv->rv", weights, gap.expm1())
    near_one = share.log1p()
    far = torch.einsum("rm,rmv->rv", weights, gap.exp_()).log_()
    mean = -(top + torch.where(share > -0.5, near_one, far)) / a
    return mean.masked_fill_(top.isinf(), NEG_INF)


def transform_values(values: Tensor, valid: Tensor, kind: Transform) -> Tensor:
    """Transform the candidates' `values` (R, K) float32; where not `valid` (R, K) the result is 0.

    clamp: into [0, 1] (RAD, arXiv 2310.09520); log_sigmoid: FUDGE's log-probability of the attribute (2104.05218);
    centre: minus the mean over the valid candidates (VAS, 2405.06639).
    """
    values = values.masked_fill(~valid, 0.0)
    match kind:
        case "identity":
            return values
        case "clamp":
            return values.clamp(0.0, 1.0)
        case "log_sigmoid":
            return torch.nn.functional.logsigmoid(values).masked_fill(~valid, 0.0)
        case "centre":
            mean = values.sum(dim=1, keepdim=True) / valid.sum(dim=1, keepdim=True).clamp(min=1)
            return (values - mean).masked_fill(~valid, 0.0)
