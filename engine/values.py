"""Value terms of a batch: what heads and scorers say of the candidates, added to the scores."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.engine.candidates import CandidateSets, Shortlist
from trimtab.engine.errors import GuideError
from trimtab.engine.guides.base import Guide, HeadGuide, ScorerGuide
from trimtab.engine.lane import Lane
from trimtab.engine.outputs import Outputs
from trimtab.engine.plan import ValueTerm
from trimtab.engine.scores import Scores
from trimtab.engine.sequence import Sequence as Row
from trimtab.kernels.mixing import Transform, transform_values

Scorer = Callable[[ScorerGuide, Sequence[Lane], Sequence[Sequence[int]]], Tensor]
"""Reads candidates (base ids) after lanes of one guide; (R, k) float32 padded to the longest list"""


@dataclass(frozen=True, slots=True)
class _Entries:
    """The terms of one guide and transform, over rows that list their candidates or over rows that do not."""

    guide: Guide
    transform: Transform
    rows: list[int]
    index: Tensor  # (R,) int64
    weights: Tensor  # (R, 1) float32
    lanes: list[Lane]
    """of a scorer, one per row"""


class Values:
    """The constant part: who values the tokens of which row."""

    def __init__(
        self, batch: list[Row], guides: Mapping[str, Guide], sets: CandidateSets, device: torch.device
    ) -> None:
        self._batch = batch
        self._sets = sets
        terms: dict[tuple[bool, str, Transform], list[tuple[int, ValueTerm]]] = defaultdict(list)
        listed = set(sets.listed.rows)
        for i, row in enumerate(batch):
            for term in row.plan.values:
                terms[i in listed, term.guide, term.transform].append((i, term))
        self._listed: list[_Entries] = []
        self._whole: list[_Entries] = []
        for (lists, name, transform), each in terms.items():
            entries = _Entries(
                guides[name],
                transform,
                [row for row, _ in each],
                torch.tensor([row for row, _ in each], device=device),
                torch.tensor([term.weight for _, term in each], device=device)[:, None],
                [batch[row].lanes[1 + term.lane] for row, term in each if term.lane is not None],
            )
            (self._listed if lists else self._whole).append(entries)

    def add(self, scores: Scores, found: Shortlist, outputs: Outputs, score: Scorer) -> None:
        """Add every term to the scores; candidates that a scorer cannot read are taken out of `found`."""
        for entries in self._whole:
            self._add_whole(scores, entries, found, outputs)
        for entries in self._listed:
            self._add_listed(scores, entries, found, outputs, score)

    def _add_listed(self, scores: Scores, entries: _Entries, found: Shortlist, outputs: Outputs, score: Scorer) -> None:
        guide, places = entries.guide, [self._sets.place[row] for row in entries.rows]
        ids, valid = found.ids[places], found.valid[places]  # (R, K)
        order = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        if isinstance(guide, HeadGuide):
            values = guide.head.at(self._hidden(entries, outputs), ids)
        else:
            assert isinstance(guide, ScorerGuide)  # admission
            valid = _known(guide, ids, valid)
            found.valid[places] = valid
            counts = valid.sum(dim=1).clamp(min=1).tolist()
            # What it cannot read may stand anywhere in the list: the candidates go first.
            order = valid.to(torch.int8).argsort(dim=1, descending=True, stable=True)
            ids, valid = ids.gather(1, order), valid.gather(1, order)
            lists = [row[:count] for row, count in zip(ids.tolist(), counts, strict=True)]
            values = torch.zeros(ids.shape, device=ids.device)
            some = score(guide, entries.lanes, lists)
            values[:, : some.shape[1]] = some
        self._check(scores, entries, values.masked_fill(~valid, 0.0))
        gain = (entries.weights * transform_values(values, valid, entries.transform)).masked_fill(~valid, 0.0)
        found.gain[torch.tensor(places, device=ids.device)[:, None], order] += gain
        self._record(scores, entries, ids, values, valid)

    def _add_whole(self, scores: Scores, entries: _Entries, found: Shortlist, outputs: Outputs) -> None:
        """Add the values of the whole vocabulary, one product for all rows that want them."""
        assert isinstance(entries.guide, HeadGuide)  # admission: scorers need a top-k
        values = entries.guide.head(self._hidden(entries, outputs))  # (R, V)
        allowed = None
        if any(row in self._sets.place for row in entries.rows):
            allowed = torch.ones_like(values, dtype=torch.bool)
            for at, row in enumerate(entries.rows):
                if row in self._sets.place:
                    allowed[at] = found.mask[self._sets.place[row]]
            values = values.masked_fill(~allowed, 0.0)
        self._check(scores, entries, values)
        gain = values
        if entries.transform != "identity":
            valid = torch.ones_like(values, dtype=torch.bool) if allowed is None else allowed
            gain = transform_values(values, valid, entries.transform)
        if len(entries.rows) == len(scores.steered):
            scores.steered.addcmul_(gain, entries.weights)
        else:
            scores.steered.index_add_(0, entries.index, entries.weights * gain)
        if any(self._batch[row].plan.trace for row in entries.rows):
            ids = torch.arange(values.shape[1], device=values.device).expand_as(values)
            self._record(scores, entries, ids, values, torch.ones_like(ids) if allowed is None else allowed)

    def _hidden(self, entries: _Entries, outputs: Outputs) -> Tensor:
        return outputs.hidden([self._batch[row].base for row in entries.rows])

    def _record(self, scores: Scores, entries: _Entries, ids: Tensor, values: Tensor, valid: Tensor) -> None:
        """Keep the raw values of the rows that are traced."""
        for at, row in enumerate(entries.rows):
            if self._batch[row].plan.trace:
                fine = valid[at].bool()
                known = dict(zip(ids[at, fine].tolist(), values[at, fine].tolist(), strict=True))
                scores.values.setdefault(row, {})[entries.guide.name] = known

    def _check(self, scores: Scores, entries: _Entries, values: Tensor) -> None:
        """Note the rows whose guide gave something that is no number; any of them shows in the sum."""
        for row, total in zip(entries.rows, values.sum(dim=1, dtype=torch.float64).tolist(), strict=True):
            if not math.isfinite(total):
                scores.failed[row] = GuideError(
                    entries.guide.name, "gave a value that is not finite: check its weights and dtype"
                )


def _known(guide: ScorerGuide, ids: Tensor, valid: Tensor) -> Tensor:
    """Which of the candidates (R, k) the guide's vocabulary holds."""
    if guide.translation is None or guide.translation.identity:
        return valid & (ids < guide.model.runner.vocab_size)
    known = [[guide.translation.token(token) >= 0 for token in row] for row in ids.tolist()]
    return valid & torch.tensor(known, device=ids.device)
