"""Which tokens of the base distribution may be steered towards: C(h), as a mask or as a list, best first."""

import torch
from torch import Tensor

from trimtab.kernels.backend import Backend, use_triton
from trimtab.kernels.survivors import RowParams, survivors
from trimtab.kernels.tiles import BIGGEST, NEG_INF, allowed, exact_best

MOST_TRITON = 128  # more candidates than these are always found by torch


def reference_candidates(z: Tensor, top_k: Tensor, top_p: Tensor, alpha: Tensor) -> Tensor:
    """Return the mask (B, V) bool from its definition in float64: the specification of `candidate_mask`."""
    clean = torch.nan_to_num(z.double(), nan=NEG_INF, posinf=BIGGEST, neginf=NEG_INF)
    probs, order = clean.softmax(dim=1).sort(dim=1, descending=True, stable=True)  # stable: lower id first
    rank = torch.arange(z.shape[1], device=z.device)
    keep = (rank < top_k[:, None]) | (top_k[:, None] == 0)
    keep &= (probs.cumsum(dim=1) - probs < top_p[:, None].double()) | (top_p[:, None] == 1)
    keep &= probs >= alpha[:, None].double() * probs[:, :1]
    mask = torch.empty_like(keep).scatter_(1, order, keep) & (clean > NEG_INF)
    off = (top_k == 0) & (top_p == 1) & (alpha == 0)
    return mask | off[:, None] | z.isnan()


def candidate_mask(z: Tensor, top_k: Tensor, top_p: Tensor, alpha: Tensor) -> Tensor:
    """Return (B, V) bool: tokens of softmax(z) that meet every condition of their row.

    `z` (B, V) are base logits of any floating dtype. Conditions, (B,) each, all on the same unfiltered distribution:
    among the `top_k` int64 best (0: off); in the smallest nucleus of mass `top_p` (1: off); plausible, p >= `alpha`
    times the largest p (0: off; contrastive decoding, arXiv 2210.15097, eq. 3). Ties go to the lower id, except at
    alpha. Tokens at -inf are out, but a row without conditions keeps everything. NaN is always in: a mask over it
    would hide a broken model.
    """
    given = allowed(z.float())
    top = given.top
    mask = given.z - top >= alpha.float().log()[:, None]
    one, none, zero = torch.ones_like(top_p), torch.zeros_like(top_k), torch.zeros_like(alpha)
    for params in (RowParams(one, top_k, one, zero), RowParams(one, none, top_p, zero)):
        for g in params.groups:
            if g.ranked:
                row_z = given.z[g.rows]
                inside = torch.zeros_like(row_z, dtype=torch.bool)
                for s in survivors(row_z, top[g.rows], g):
                    inside[s.rows[:, None], s.ids] = torch.arange(s.ids.shape[1], device=z.device) < s.kept
                mask[g.rows] &= inside
    mask &= given.alive[:, None]
    mask |= ((top_k == 0) & (top_p == 1) & (alpha == 0))[:, None]
    return mask if given.nan is None else mask | z.isnan()


def best_candidates(z: Tensor, k: int, *, backend: Backend = "auto") -> tuple[Tensor, Tensor]:
    """Ids (R, min(k, V)) int64 of the best entries of `z` (R, V), any floating dtype, ties by lower id.

    Also returns which of them are `valid`, (R, min(k, V)) bool: those that are finite. The others, NaN among them,
    stand at the end; +inf stands first.
    """
    k = min(k, z.shape[1])
    if 0 < k <= MOST_TRITON and z.shape[0] and use_triton(z, backend):
        from trimtab.kernels.candidates_triton import best_candidates_triton

        return best_candidates_triton(z, k)
    ids = exact_best(allowed(z.float()).z, k)
    return ids, z.gather(1, ids).isfinite()
