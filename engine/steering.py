"""From the forwards of one tick to the scores that tokens are drawn from, for the whole batch at once.

The order is that of `SteerPlan`: mixture, edits, candidate set, value terms; hidden-state edits are done before, and
temperature and filters after it.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trimtab.engine.candidates import CandidateSets
from trimtab.engine.errors import GuideError
from trimtab.engine.guides.base import Guide
from trimtab.engine.lane import Lane
from trimtab.engine.model import Model
from trimtab.engine.outputs import Outputs
from trimtab.engine.scores import Scores
from trimtab.engine.sequence import Sequence as Row
from trimtab.engine.values import Scorer, Values
from trimtab.kernels.edits import Edits, apply_edits
from trimtab.kernels.mixing import Aux, mix, power_mean


class Steering:
    """The parts of a batch's scores that are more than the base model; built when the batch changes."""

    def __init__(self, rows: list[Row], guides: Mapping[str, Guide], device: torch.device) -> None:
        self._rows = rows
        self._device = device
        plans = [row.plan for row in rows]
        self._base_weight = torch.tensor([plan.base_weight for plan in plans], device=device)
        mixed_by: dict[Model, list[tuple[int, Lane, float]]] = defaultdict(list)
        self._powered = [i for i, plan in enumerate(plans) if plan.power and plan.mixture]
        for i, row in enumerate(rows):
            for mixed in () if row.plan.power else row.plan.mixture:
                lane = row.lanes[1 + mixed.lane]
                mixed_by[lane.model].append((i, lane, mixed.weight))
        self._mixed = [
            (
                [lane for _, lane, _ in entries],
                torch.tensor([row for row, _, _ in entries], device=device),
                torch.tensor([weight for *_, weight in entries], device=device),
            )
            for entries in mixed_by.values()
        ]
        self._references = [
            (i, row.lanes[1 + row.plan.reference]) for i, row in enumerate(rows) if row.plan.reference is not None
        ]
        self._hidden = [i for i, plan in enumerate(plans) if plan.hidden is not None]
        self._sets = CandidateSets(rows, device)
        self._values = Values(rows, guides, self._sets, device)

    def apply(self, base: Tensor, edits: Edits | None, outputs: Outputs, score: Scorer) -> Scores:
        """Scores of every row from the base's logits (B, V); rows that nothing steers keep theirs, edited."""
        z = self._mixture(base, outputs)
        if edits is not None:
            apply_edits(z, edits)
        scores = Scores(z, self._reference(base, outputs))
        found = self._sets.find(base, edits)
        self._values.add(scores, found, outputs, score)
        self._sets.exclude(z, found)
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
        aux = [Aux(self._translated(lanes, outputs), rows, weights) for lanes, rows, weights in self._mixed]
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
