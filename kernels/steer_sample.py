"""The token-level pass: mix, edit, mask, scale, filter and draw one token for every row, and tell what steering did.

Order: mixture, edits, mask, plausibility, then the temperature and filters of `trimtab.kernels.survivors`. A row is
drawn by inverting its cumulative distribution, in the order of the vocabulary, at one uniform number: first a tile,
then a token inside the tile. What a row draws depends on that row alone, never on the rest of the batch.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from trimtab.kernels.backend import Backend, use_triton
from trimtab.kernels.drawing import draw
from trimtab.kernels.edits import Edits, apply_edits
from trimtab.kernels.mixing import Aux, mix, reference_mix
from trimtab.kernels.philox import Keys
from trimtab.kernels.statistics import PACKED, SteerOut, mean
from trimtab.kernels.survivors import RowParams
from trimtab.kernels.tiles import BIGGEST, NEG_INF, allowed, exact_best, first_best, logprobs_of, row_mass


def reference_steer(
    logits: Tensor,
    params: RowParams,
    *,
    base_weight: Tensor | None = None,
    aux: Sequence[Aux] = (),
    edits: Edits | None = None,
    bitmask: Tensor | None = None,
    alpha: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the steered and the base log-distribution, (B, V) float64 each: the specification of this file.

    A greedy row shows its statistics, the distribution at temperature 1. A row with nothing allowed is nan.
    """
    ones = torch.ones(len(logits), device=logits.device)
    z = reference_mix(logits, ones if base_weight is None else base_weight, aux)
    base = edited = logits.double()  # (B, V)
    if edits is not None:
        edited = base.clone()
        apply_edits(z, edits)
        apply_edits(edited, edits)
    if bitmask is not None:
        hidden = ~unpacked_mask(bitmask, logits.shape[1])
        z, edited = z.masked_fill(hidden, NEG_INF), edited.masked_fill(hidden, NEG_INF)
    base, edited, z = (torch.nan_to_num(x, nan=NEG_INF, posinf=BIGGEST, neginf=NEG_INF) for x in (base, edited, z))
    if alpha is not None:
        z = z.masked_fill(edited < edited.amax(dim=1, keepdim=True) + alpha.double().log()[:, None], NEG_INF)
    greedy = params.greedy[:, None].to(z.device)
    temperature, top_k, top_p, min_p = (each[:, None] for each in params.columns(z.device))
    z = z / temperature.double().masked_fill(greedy, 1.0)
    z, order = z.sort(dim=1, descending=True, stable=True)  # stable: lower id first
    weight = (z - z[:, :1]).exp()
    keep = weight >= min_p.double()
    keep &= (torch.arange(z.shape[1], device=z.device) < top_k) | (top_k == 0)
    weight = weight.masked_fill(~keep, 0.0)
    before = weight.cumsum(dim=1) - weight
    keep &= (before < top_p.double() * weight.sum(dim=1, keepdim=True)) | (top_p == 1)
    z = z.masked_fill(~keep & ~greedy, NEG_INF)
    return torch.empty_like(z).scatter_(1, order, z).log_softmax(dim=1), base.log_softmax(dim=1)


def unpacked_mask(bitmask: Tensor, vocab_size: int) -> Tensor:
    """(B, vocab_size) bool from (B, ceil(V / 32)) int32, lowest bit first."""
    ids = torch.arange(vocab_size, device=bitmask.device)
    return (bitmask[:, ids // 32] >> (ids % 32)) & 1 == 1


def steer_sample(
    base: Tensor,
    params: RowParams,
    keys: Keys,
    *,
    base_weight: Tensor | None = None,
    aux: Sequence[Aux] = (),
    edits: Edits | None = None,
    bitmask: Tensor | None = None,
    alpha: Tensor | None = None,
    reference: Tensor | None = None,
    logprobs: bool = False,
    measured: Tensor | None = None,
    backend: Backend = "auto",
) -> SteerOut:
    """Draw one token per row of the mixture of `base` (B, V) and `aux`, any floating dtype, left as they are.

    Tensors lie on the device of `base`. Absent, `base_weight` (B,) float32 is 1. `bitmask` (B, ceil(V / 32)) int32
    has a bit for every token that is allowed, lowest first. `alpha` (B,) float32 keeps tokens whose probability under
    the edited and masked base is at least alpha times the largest one (contrastive decoding, arXiv 2210.15097, eq. 3;
    0: off). Statistics compare with `reference` (B, V), or the base as given, for the rows `measured` (B,) bool names.
    NaN logits are excluded. Raises ValueError for `alpha` together with `reference`.
    """
    if alpha is not None and reference is not None:
        raise ValueError("plausibility is judged by the base: give either alpha or reference")
    if use_triton(base, backend):
        from trimtab.kernels.steer_sample_triton import steer_sample_triton

        packed = steer_sample_triton(
            base,
            params,
            keys,
            base_weight=base_weight,
            aux=aux,
            edits=edits,
            bitmask=bitmask,
            alpha=alpha,
            reference=reference,
            full=measured is not None,
        )
        return SteerOut.unpacked(packed.cpu())  # one copy, which waits for the draw
    z = steered_scores(
        base, base_weight=base_weight, aux=aux, edits=edits, bitmask=bitmask, alpha=alpha, backend="torch", copy=False
    )
    return draw(
        z,
        base if reference is None else reference,
        params,
        keys,
        logprobs=logprobs,
        measured=measured,
        compiled=backend == "compiled",
    )


def steered_scores(
    base: Tensor,
    *,
    base_weight: Tensor | None = None,
    aux: Sequence[Aux] = (),
    edits: Edits | None = None,
    bitmask: Tensor | None = None,
    alpha: Tensor | None = None,
    copy: bool = True,
    backend: Backend = "auto",
) -> Tensor:
    """The scores (B, V) float32 that `steer_sample` would draw from, before temperature and filters.

    Without `copy` it may be `base` itself, where nothing changes it.
    """
    if use_triton(base, backend) and alpha is None:
        from trimtab.kernels.mixing_triton import mix_triton

        return mix_triton(base, base_weight, aux, edits, bitmask)
    mixed = base_weight is not None or bool(aux)
    if not (copy or mixed) and edits is None and bitmask is None and alpha is None:
        return base
    if mixed:
        z = mix(base, torch.ones(len(base), device=base.device) if base_weight is None else base_weight, aux)
    else:
        z = base.to(torch.float32, copy=True)
    judged = base.to(torch.float32, copy=True) if mixed and alpha is not None else z
    hidden = None if bitmask is None else ~unpacked_mask(bitmask, base.shape[1])
    for each in (z,) if judged is z else (z, judged):
        if edits is not None:
            apply_edits(each, edits)
        if hidden is not None:
            each.masked_fill_(hidden, NEG_INF)
    if alpha is not None:
        fine = allowed(judged)
        implausible = fine.z < fine.top + alpha.log()[:, None]
        z.masked_fill_(implausible if fine.nan is None else implausible & ~z.isnan(), NEG_INF)
    return z


class BaseAt(NamedTuple):
    """A distribution at some tokens, and how sure it is; nan where it allows nothing."""

    logprobs: Tensor  # (B, K) float32
    entropy: Tensor  # (B,) float32
    top1: Tensor  # (B,) float32
    best: Tensor  # (B,) int64, lowest id first


def base_at(base: Tensor, ids: Tensor, *, backend: Backend = "auto") -> BaseAt:
    """Log-probabilities of the tokens `ids` (B, K) under softmax(base), (B, V) of any floating dtype."""
    if use_triton(base, backend):
        from trimtab.kernels.steer_sample_triton import steer_sample_triton

        params, keys = _greedy(len(base), base.device)
        packed = steer_sample_triton(base, params, keys, full=True)
        best = packed[:, PACKED.index("token")].long()
        logprob, entropy, top1 = (
            packed[:, PACKED.index(name)].view(torch.float32) for name in ("logprob", "base_entropy", "base_top1")
        )
        at_best = base.gather(1, best.clamp(min=0)[:, None]).float()
        return BaseAt(base.gather(1, ids).float() - at_best + logprob[:, None], entropy, top1, best)
    plain = allowed(base.float())
    probs = plain.z.softmax(dim=1)
    log_mass, mass = row_mass(probs)
    entropy = log_mass - mean(probs, mass, plain.z - plain.top)
    logprobs = (plain.z.gather(1, ids) - plain.top).double() - log_mass
    columns = (
        each.float().masked_fill_(~plain.alive[:, None], float("nan"))
        for each in (logprobs, entropy, (-log_mass).exp())
    )
    told, entropy, top1 = columns
    return BaseAt(told, entropy[:, 0], top1[:, 0], first_best(plain.z, plain.peaks))


@lru_cache(maxsize=64)
def _greedy(rows: int, device: torch.device) -> tuple[RowParams, Keys]:
    """Parameters of rows that take their best token."""
    none = torch.zeros(rows)
    params = RowParams(temperature=none, top_k=none.long(), top_p=torch.ones(rows), min_p=none)
    return params, Keys(*torch.zeros(3, rows, dtype=torch.int64, device=device))


def top_logprobs(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return values and ids, (B, k) each, of the k best entries of log_softmax(logits), ties by lower id.

    NaN logits are excluded; `k` is at most V.
    """
    given = allowed(logits.float())
    ids = exact_best(given.z, k)
    return logprobs_of(ids, given.z, given.top), ids
