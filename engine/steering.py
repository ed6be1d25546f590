"""From the forwards of one tick to the scores that tokens are drawn from, for the whole batch at once.

The order is that of `SteerPlan`: mixture, edits, candidate set, value terms; hidden-state edits are done before, and
temperature and filters after it.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trimtab.engine.errors import GuideError
from trimtab.engine.guides.base import Guide, HeadGuide, ScorerGuide
from trimtab.engine.lane import Lane
from trimtab.engine.model import Model
from trimtab.engine.outputs import Outputs
from trimtab.engine.plan import Transform, ValueTerm
from trimtab.engine.sequence import Sequence as Row
from trimtab.kernels.candidates import best_candidates, candidate_mask
from trimtab.kernels.edits import Edits, apply_edits
from trimtab.kernels.mixing import Aux, mix, power_mean, transform_values

Scorer = Callable[[ScorerGuide, Sequence[Lane], Sequence[Sequence[int]]], Tensor]
"""Reads candidates (base ids) after lanes of one guide; (R, k) float32 padded to the longest list"""


@dataclass(frozen=True, slots=True)
class Scores:
    """What the tokens of a batch are drawn from."""

    steered: Tensor  # (B, V) float32, edits applied
    reference: Tensor  # (B, V) what reports call the base's logits
    values: dict[int, dict[str, dict[int, float]]] = field(default_factory=dict)
    """raw values of traced rows: row, guide, token"""
    failed: dict[int, GuideError] = field(default_factory=dict)
    """rows whose guide gave no number"""


@dataclass(frozen=True, slots=True)
class _Term:
    row: int
    term: ValueTerm


class Steering:
    """The parts of a batch's scores that are more than the base model; built when the batch changes."""

    def __init__(self, rows: list[Row], guides: Mapping[str, Guide], device: torch.device) -> None:
        self._rows = rows
        self._guides = guides
        self._device = device
        plans = [row.plan for row in rows]
        self._base_weight = torch.tensor([plan.base_weight for plan in plans], device=device)
        self._mixed: dict[Model, list[tuple[int, Lane, float]]] = defaultdict(list)
        self._powered = [i for i, plan in enumerate(plans) if plan.power and plan.mixture]
        for i, row in enumerate(rows):
            for mixed in () if row.plan.power else row.plan.mixture:
                lane = row.lanes[1 + mixed.lane]
                self._mixed[lane.model].append((i, lane, mixed.weight))
        self._references = [
            (i, row.lanes[1 + row.plan.reference]) for i, row in enumerate(rows) if row.plan.reference is not None
        ]
        self._hidden = [i for i, plan in enumerate(plans) if plan.hidden is not None]
        self._chosen = [i for i, plan in enumerate(plans) if plan.candidates is not None]
        self._place = {row: at for at, row in enumerate(self._chosen)}
        sets = [plan.candidates for plan in plans if plan.candidates is not None]
        self._top_k = torch.tensor([each.top_k for each in sets], device=device)
        self._top_p = torch.tensor([each.top_p for each in sets], device=device)
        self._alpha = torch.tensor([each.alpha for each in sets], device=device)
        self._keep_others = torch.tensor([each.keep_others for each in sets], dtype=torch.bool, device=device)[:, None]
        self._terms: dict[tuple[str, Transform], list[_Term]] = defaultdict(list)
        for i, plan in enumerate(plans):
            for term in plan.values:
                self._terms[term.guide, term.transform].append(_Term(i, term))

    def apply(self, base: Tensor, edits: Edits | None, outputs: Outputs, score: Scorer) -> Scores:
        """Scores of every row from the base's logits (B, V); rows that nothing steers keep theirs, edited."""
        z = self._mixture(base, outputs)
        if edits is not None:
            apply_edits(z, edits)
        scores = Scores(z, self._reference(base, outputs))
        if self._chosen or self._terms:
            mask = self._candidates(base, edits)
            self._add_values(scores, mask, base, edits, outputs, score)
            z[self._chosen] = z[self._chosen].masked_fill(~(mask | self._keep_others), -torch.inf)
        return scores

    def guilty(self, row: int, outputs: Outputs) -> GuideError | None:
        """The guide that left a row with NaN or without any finite score, as an error that names it."""
        sequence = self._rows[row]
        hidden, unedited = sequence.plan.hidden, outputs.unedited(sequence.base)
        if hidden is not None and unedited is not None and not unedited.isnan().any():
            return GuideError(hidden.guide, "moved a hidden state to no number: check its weights, or lower lr or n")
        for mixed in sequence.plan.mixture:
            lane = sequence.lanes[1 + mixed.lane]
            logits = outputs.logits([lane])
            if logits.isnan().any() or not logits.isfinite().any():
                return GuideError(lane.name, "gave logits that are not numbers: check its weights and dtype")
        return None

    def _mixture(self, base: Tensor, outputs: Outputs) -> Tensor:
        aux = []
        for entries in self._mixed.values():
            logits = self._translated([lane for _, lane, _ in entries], outputs)
            rows = torch.tensor([row for row, _, _ in entries], device=self._device)
            aux.append(Aux(logits, rows, torch.tensor([weight for *_, weight in entries], device=self._device)))
        z = mix(base, self._base_weight, aux)
        for i in self._powered:
            row = self._rows[i]
            parts = [(row.lanes[1 + mixed.lane], mixed.weight) for mixed in row.plan.mixture]
            each = [base[i : i + 1], *(self._translated([lane], outputs) for lane, _ in parts)]
            weights = [row.plan.base_weight, *(weight for _, weight in parts)]
            z[i] = power_mean(
                torch.stack([logits.float() for logits in each], dim=1),
                torch.tensor([weights], device=self._device),
                torch.tensor([row.plan.power], device=self._device),
            )[0]
        return z

    def _translated(self, lanes: Sequence[Lane], outputs: Outputs) -> Tensor:
        """Logits (R, V) of lanes of one model in the base's vocabulary."""
        logits, translation = outputs.logits(lanes), lanes[0].translation
        return logits if translation is None else translation.logits(logits)

    def _reference(self, base: Tensor, outputs: Outputs) -> Tensor:
        if not self._hidden and not self._references:
            return base
        reference = base.clone()
        for i in self._hidden:
            unedited = outputs.unedited(self._rows[i].base)
            if unedited is not None:
                reference[i] = unedited
        for i, lane in self._references:
            reference[i] = outputs.logits([lane])[0]
        return reference

    def _candidates(self, base: Tensor, edits: Edits | None) -> Tensor:
        """Which tokens (C, V) the base distribution, with edits, allows in the rows that have a candidate set."""
        return candidate_mask(self._edited(base, edits, self._chosen), self._top_k, self._top_p, self._alpha)

    def _edited(self, base: Tensor, edits: Edits | None, rows: list[int]) -> Tensor:
        index = torch.tensor(rows, dtype=torch.long, device=self._device)
        z = base[index].float()
        if edits is not None:
            apply_edits(z, Edits(edits.ids[index], edits.mul[index], edits.add[index]))
        return z

    def _add_values(
        self, scores: Scores, mask: Tensor, base: Tensor, edits: Edits | None, outputs: Outputs, score: Scorer
    ) -> None:
        for (name, transform), entries in self._terms.items():
            guide = self._guides[name]
            picky = [each for each in entries if self._top(each.row)]
            if whole := [each for each in entries if not self._top(each.row)]:
                assert isinstance(guide, HeadGuide)  # admission: others need a top-k
                self._add_whole(scores, name, guide, transform, whole, mask, outputs)
            if not picky:
                continue
            rows = [each.row for each in picky]
            allowed = mask[[self._place[row] for row in rows]]
            width = max(self._top(row) for row in rows)
            edited = self._edited(base, edits, rows).masked_fill(~allowed, -torch.inf)
            ids, valid = best_candidates(edited, width)  # (R, k)
            if isinstance(guide, HeadGuide):
                values = guide.head.at(outputs.hidden([self._rows[row].base for row in rows]), ids)
            else:
                assert isinstance(guide, ScorerGuide)
                lanes = [self._rows[each.row].lanes[1 + _lane(each.term)] for each in picky]
                known = _known(guide, ids, valid)
                if not bool((known == valid).all()):  # tokens that the guide cannot read are no candidates
                    allowed.scatter_(1, ids, known)
                    mask[[self._place[row] for row in rows]] = allowed
                    valid = known
                counts = valid.sum(dim=1).clamp(min=1).tolist()
                lists = [row[:count] for row, count in zip(ids.tolist(), counts, strict=True)]
                values = torch.zeros(ids.shape, device=self._device)
                found = score(guide, lanes, lists)
                values[:, : found.shape[1]] = found
            self._fail_unless_finite(scores, name, rows, values, valid)
            weights = torch.tensor([each.term.weight for each in picky], device=self._device)[:, None]
            gain = (weights * transform_values(values, valid, transform)).masked_fill(~valid, 0.0)
            index = torch.tensor(rows, device=self._device)[:, None]
            scores.steered.index_put_((index, ids), gain, accumulate=True)
            self._record(scores, name, rows, ids, values, valid)

    def _add_whole(
        self,
        scores: Scores,
        name: str,
        guide: HeadGuide,
        transform: Transform,
        entries: list[_Term],
        mask: Tensor,
        outputs: Outputs,
    ) -> None:
        """Add the values of the whole vocabulary, one product for all rows that want them."""
        rows = [each.row for each in entries]
        allowed = torch.ones((len(rows), scores.steered.shape[1]), dtype=torch.bool, device=self._device)
        for at, row in enumerate(rows):
            if row in self._place:
                allowed[at] = mask[self._place[row]]
        values = guide.head(outputs.hidden([self._rows[row].base for row in rows]))  # (R, V)
        self._fail_unless_finite(scores, name, rows, values, allowed)
        weights = torch.tensor([each.term.weight for each in entries], device=self._device)[:, None]
        gain = (weights * transform_values(values, allowed, transform)).masked_fill(~allowed, 0.0)
        scores.steered.index_add_(0, torch.tensor(rows, device=self._device), gain)
        ids = torch.arange(values.shape[1], device=self._device).expand_as(values)
        self._record(scores, name, rows, ids, values, allowed)

    def _top(self, row: int) -> int:
        candidates = self._rows[row].plan.candidates
        return candidates.top_k if candidates is not None else 0

    def _record(self, scores: Scores, name: str, rows: list[int], ids: Tensor, values: Tensor, valid: Tensor) -> None:
        """Keep the raw values of the rows that are traced."""
        for at, row in enumerate(rows):
            if self._rows[row].plan.trace:
                fine = valid[at]
                known = dict(zip(ids[at, fine].tolist(), values[at, fine].tolist(), strict=True))
                scores.values.setdefault(row, {})[name] = known

    def _fail_unless_finite(self, scores: Scores, name: str, rows: list[int], values: Tensor, valid: Tensor) -> None:
        fine = (values.isfinite() | ~valid).all(dim=1).tolist()
        for row, good in zip(rows, fine, strict=True):
            if not good:
                scores.failed[row] = GuideError(name, "gave a value that is not finite: check its weights and dtype")


def _lane(term: ValueTerm) -> int:
    assert term.lane is not None
    return term.lane


def _known(guide: ScorerGuide, ids: Tensor, valid: Tensor) -> Tensor:
    """Which of the candidates (R, k) the guide's vocabulary holds."""
    if guide.translation is None or guide.translation.identity:
        return valid & (ids < guide.model.runner.vocab_size)
    known = [[guide.translation.token(token) >= 0 for token in row] for row in ids.tolist()]
    return valid & torch.tensor(known, device=ids.device)
