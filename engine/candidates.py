"""Candidate sets of the rows of a batch: the tokens that the base's distribution allows, listed where they are few."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.engine.limits import StepLimits
from trimtab.engine.sequence import Sequence as Row
from trimtab.kernels.candidates import best_candidates, candidate_mask


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of one kind, with the conditions of their candidate sets as tensors."""

    rows: list[int]
    index: Tensor  # (R,) int64
    top_k: Tensor  # (R,) int64
    top_p: Tensor  # (R,) float32
    alpha: Tensor  # (R,) float32
    strict: list[int]
    """those of them, by their place here, whose other tokens are banned"""

    @classmethod
    def of(cls, batch: list[Row], rows: list[int], device: torch.device) -> "_Rows":
        sets = [candidates for row in rows if (candidates := batch[row].plan.candidates) is not None]
        return cls(
            rows,
            torch.tensor(rows, dtype=torch.long, device=device),
            torch.tensor([each.top_k for each in sets], dtype=torch.long, device=device),
            torch.tensor([each.top_p for each in sets], device=device),
            torch.tensor([each.alpha for each in sets], device=device),
            [at for at, each in enumerate(sets) if not each.keep_others],
        )

    @property
    def filtered(self) -> bool:
        """Whether some row has a condition other than its top-k."""
        return bool((self.top_p < 1).any() or (self.alpha > 0).any())


@dataclass(frozen=True, slots=True)
class Shortlist:
    """The candidate sets of one step."""

    ids: Tensor  # (L, K) of the rows with a top-k, best first
    valid: Tensor  # (L, K) bool: the entry is a candidate; cleared for what a guide cannot read
    scores: Tensor  # (L, K) float32, the base's edited logits
    gain: Tensor  # (L, K) float32, what value terms add
    mask: Tensor  # (M, V) bool, of the rows without a top-k


class CandidateSets:
    """The constant part: which rows have a set, and by which conditions."""

    listed: _Rows
    """rows with a top-k"""

    def __init__(self, batch: list[Row], device: torch.device, *, done: Sequence[int] = ()) -> None:
        """The rows `done` have a set that is seen to elsewhere."""
        top_k = {
            i: row.plan.candidates.top_k
            for i, row in enumerate(batch)
            if row.plan.candidates is not None and i not in done
        }
        self.listed = _Rows.of(batch, [i for i, k in top_k.items() if k], device)
        self.open = _Rows.of(batch, [i for i, k in top_k.items() if not k], device)
        self.place = {row: at for rows in (self.listed, self.open) for at, row in enumerate(rows.rows)}
        """where a row stands among those of its kind"""
        self._width = int(self.listed.top_k.max()) if self.listed.rows else 0
        self._filtered = self.listed.filtered

    def find(self, base: Tensor, limits: StepLimits) -> Shortlist:
        """The candidates of this step, from the base's logits (B, V) under the answer's limits."""
        ids = valid = mask = base.new_zeros((0, 0), dtype=torch.long)
        scores = base.new_zeros((0, 0), dtype=torch.float32)
        if self.listed.rows:
            z = self._edited(base, limits, self.listed)
            if self._filtered:
                z = z.masked_fill(~self._mask(z, self.listed), -torch.inf)
            ids, valid = best_candidates(z, self._width)
            scores = z.gather(1, ids)
            valid &= torch.arange(ids.shape[1], device=z.device) < self.listed.top_k[:, None]
        if self.open.rows:
            mask = self._mask(self._edited(base, limits, self.open), self.open)
        return Shortlist(ids, valid, scores, torch.zeros_like(scores), mask)

    def exclude(self, z: Tensor, found: Shortlist) -> None:
        """Ban what is no candidate, in place, but in rows that keep the others."""
        if strict := self.listed.strict:
            rows, ids = self.listed.index[strict], found.ids[strict]
            kept = z[rows].gather(1, ids).masked_fill(~found.valid[strict], -torch.inf)
            z[rows] = torch.full((len(rows), z.shape[1]), -torch.inf, device=z.device).scatter_(1, ids, kept)
        if strict := self.open.strict:
            rows = self.open.index[strict]
            z[rows] = z[rows].masked_fill_(~found.mask[strict], -torch.inf)

    def _mask(self, z: Tensor, rows: _Rows) -> Tensor:
        return candidate_mask(z, rows.top_k, rows.top_p, rows.alpha)

    def _edited(self, base: Tensor, limits: StepLimits, rows: _Rows) -> Tensor:
        """The base's logits of these rows under their limits, (R, V) float32."""
        limited = limits.edits is not None or limits.bitmask is not None
        everyone = len(rows.rows) == len(base)
        z = base.to(torch.float32, copy=limited) if everyone else base[rows.index].float()
        limits.of(rows.index).apply(z)
        return z
