"""From the forwards of one tick to the scores that tokens are drawn from, for the whole batch at once.

The order is that of `SteerPlan`: mixture, edits, candidate set, value terms; hidden-state edits are done before, and
temperature and filters after it. Mixtures, edits and plausibility are done by the pass that draws; batches that need
more get their scores written out.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

import torch
from torch import Tensor

from trimtab.engine.candidates import CandidateSets, Shortlist
from trimtab.engine.errors import GuideError
from trimtab.engine.guides.base import Guide
from trimtab.engine.lane import Lane
from trimtab.engine.limits import StepLimits
from trimtab.engine.model import Model
from trimtab.engine.outputs import Outputs
from trimtab.engine.scores import Scores
from trimtab.engine.sequence import Sequence as Row
from trimtab.engine.values import Scorer, Values
from trimtab.kernels.mixing import Aux, Placement, power_mean
from trimtab.kernels.steer_sample import steered_scores


class Mixture(TypedDict, total=False):
    """What the pass that draws adds to the base's logits, as arguments of `steer_sample`."""

    base_weight: Tensor | None
    aux: list[Aux]
    alpha: Tensor | None
    reference: Tensor | None


class Steering:
    """The parts of a batch's scores that are more than the base model; built when the batch changes."""

    fused: bool
    """the pass that draws can do all of it"""
    short: bool
    """every row draws from its list of candidates"""

    def __init__(self, rows: list[Row], guides: Mapping[str, Guide], device: torch.device) -> None:
        self._rows = rows
        self._device = device
        plans = [row.plan for row in rows]
        weights = torch.tensor([plan.base_weight for plan in plans])
        self._base_weight = None if bool((weights == 1).all()) else weights.to(device)
        mixed_by: dict[Model, list[tuple[int, Lane, float]]] = defaultdict(list)
        self._powered = [i for i, plan in enumerate(plans) if plan.power and plan.mixture]
        for i, row in enumerate(rows):
            for mixed in () if row.plan.power else row.plan.mixture:
                lane = row.lanes[1 + mixed.lane]
                mixed_by[lane.model].append((i, lane, mixed.weight))
        self._mixed: list[tuple[list[Lane], Placement]] = []
        for entries in mixed_by.values():
            places, lanes, shares = zip(*entries, strict=True)
            self._mixed.append((list(lanes), Placement.of(places, shares, len(rows), device)))
        self._references = [
            (i, row.lanes[1 + row.plan.reference]) for i, row in enumerate(rows) if row.plan.reference is not None
        ]
        self._hidden = [i for i, plan in enumerate(plans) if plan.hidden is not None]
        others_are_judged = bool(self._hidden or self._references)
        plausible = [] if others_are_judged else [i for i, plan in enumerate(plans) if plan.plausible]
        self._alpha: Tensor | None = None
        if plausible:
            sets = [plan.candidates if i in plausible else None for i, plan in enumerate(plans)]
            self._alpha = torch.tensor([each.alpha if each else 0.0 for each in sets], device=device)
        self._sets = CandidateSets(rows, device, done=plausible)
        self._values = Values(rows, guides, self._sets, device)
        self.short = all(plan.short for plan in plans)
        self.fused = not (self._powered or self._sets.place or any(plan.values or plan.trace for plan in plans))

    def mixture(self, base: Tensor, outputs: Outputs) -> Mixture:
        """What to add to the base's logits (B, V) while drawing."""
        reference = self._reference(base, outputs)
        return Mixture(
            base_weight=self._base_weight,
            aux=self._aux(outputs),
            alpha=self._alpha,
            reference=None if reference is base else reference,
        )

    def apply(self, base: Tensor, limits: StepLimits, outputs: Outputs, score: Scorer) -> Scores:
        """Scores of every row from the base's logits (B, V), written out; rows that nothing steers keep theirs."""
        aux, reference = self._aux(outputs), self._reference(base, outputs)
        edits, bitmask, _ = limits
        z = steered_scores(
            base, base_weight=self._base_weight, aux=aux, edits=edits, bitmask=bitmask, alpha=self._alpha
        )
        for i, powered in self._power_means(base, outputs):
            own = limits.of(slice(i, i + 1))
            z[i : i + 1] = steered_scores(powered, edits=own.edits, bitmask=own.bitmask)
        scores = Scores(z, reference)
        found = self._sets.find(base, limits)
        self._values.add(scores, found, outputs, score)
        if self._sets.listed.rows:
            z.index_put_((self._sets.listed.index[:, None], found.ids), found.gain, accumulate=True)
        self._sets.exclude(z, found)
        return scores

    def shortlist(self, base: Tensor, limits: StepLimits, outputs: Outputs, score: Scorer) -> tuple[Shortlist, Scores]:
        """The candidates of a batch of short rows, valued; nothing is written for the whole vocabulary."""
        scores = Scores(base, self._reference(base, outputs))
        found = self._sets.find(base, limits)
        self._values.add(scores, found, outputs, score)
        return found, scores

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

    def _power_means(self, base: Tensor, outputs: Outputs) -> Iterator[tuple[int, Tensor]]:
        """Rows whose models meet in a power mean, with its logits (1, V)."""
        for i in self._powered:
            row = self._rows[i]
            parts = [(row.lanes[1 + mixed.lane], mixed.weight) for mixed in row.plan.mixture]
            each = [base[i : i + 1], *(self._translated([lane], outputs) for lane, _ in parts)]
            weights = [row.plan.base_weight, *(weight for _, weight in parts)]
            yield (
                i,
                power_mean(
                    torch.stack([logits.float() for logits in each], dim=1),
                    torch.tensor([weights], device=self._device),
                    torch.tensor([row.plan.power], device=self._device),
                ),
            )

    def _aux(self, outputs: Outputs) -> list[Aux]:
        return [Aux(self._translated(lanes, outputs), placement) for lanes, placement in self._mixed]

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
