"""Runs the models over what the lanes of a tick have pending, one forward per model."""

from collections.abc import Mapping
from collections.abc import Sequence as Many
from functools import partial

import torch
from torch import Tensor

from trimtab.engine.guides.base import Guide, HeadGuide, ScorerGuide
from trimtab.engine.lane import Lane
from trimtab.engine.lm_head import Edit
from trimtab.engine.model import Model
from trimtab.engine.outputs import Outputs
from trimtab.engine.pages import PageTable
from trimtab.engine.plan import HiddenEdit
from trimtab.engine.runner import Chunk, ModelRunner
from trimtab.engine.scheduler import Turn
from trimtab.engine.sequence import Sequence


class Reader:
    """The forwards of an engine's models: language-model lanes in lockstep, then scorers of candidates."""

    def __init__(self, guides: Mapping[str, Guide]) -> None:
        self._guides = guides
        self.asked: dict[Lane, list[int]] = {}
        """candidates (base ids) that each scoring lane read in this tick"""

    def read(self, turns: Many[Turn]) -> Outputs:
        """One forward per model over the pending tokens of its lanes; scorers wait for their candidates."""
        self.asked.clear()
        groups: dict[Model, list[Turn]] = {}
        for turn in turns:
            if not turn.lane.scores:
                groups.setdefault(turn.lane.model, []).append(turn)
        outputs = Outputs()
        for model, group in groups.items():
            # Rows of one adapter together, and rows of like length, which are attended together.
            group.sort(key=lambda turn: (turn.lane.variant.adapter or "", -len(turn.lane.tokens)))
            edits, edited = self._edits(group, model)
            outputs.add(model, group, model.runner.decode([turn.chunk for turn in group], edits), edited)
        return outputs

    def score(self, guide: ScorerGuide, lanes: Many[Lane], candidates: Many[Many[int]]) -> Tensor:
        """Scores (R, k) float32 of candidates (base ids) as next tokens of a guide's lanes, padded to the longest."""
        chunks = [Chunk(lane.table, lane.pending, lane.variant) for lane in lanes]
        ids = candidates
        if guide.translation is not None:
            ids = [[guide.translation.token(token) for token in row] for row in candidates]
        hidden = guide.model.runner.score(chunks, ids)  # (R, k, D)
        for lane, row in zip(lanes, candidates, strict=True):
            lane.table.stored(lane.tokens, len(lane.tokens))
            self.asked[lane] = list(row)
        return guide.head(hidden).float()

    def keep(self, sequences: Many[Sequence]) -> None:
        """Keep the keys and values of the candidates that were drawn, the last tokens of `sequences`."""
        moves: dict[ModelRunner, list[tuple[PageTable, int, int]]] = {}
        for sequence in sequences:
            for lane in sequence.lanes:
                candidates, last = self.asked.get(lane, []), len(lane.tokens) - 1
                if sequence.tokens[-1] in candidates and lane.table.length == last:
                    winner = candidates.index(sequence.tokens[-1])
                    if winner:
                        moves.setdefault(lane.model.runner, []).append((lane.table, last + winner, last))
                    lane.table.stored(lane.tokens, last + 1)
        for runner, each in moves.items():
            runner.keep(each)

    def _edits(self, turns: list[Turn], model: Model) -> tuple[list[Edit], list[Lane]]:
        """Edits of the last hidden states of the base's own lanes, and those lanes in the edits' order."""
        groups: dict[HiddenEdit, list[tuple[int, Lane]]] = {}
        row = -1
        for turn in turns:
            row += len(turn.chunk.tokens)
            hidden = turn.sequence.plan.hidden
            if hidden is not None and turn.lane is turn.sequence.base:
                groups.setdefault(hidden, []).append((row, turn.lane))
        edits = []
        for hidden, rows in groups.items():
            guide = self._guides[hidden.guide]
            assert isinstance(guide, HeadGuide)  # admission
            ascend = partial(guide.head.ascend, rate=hidden.rate, steps=hidden.steps)
            edits.append(Edit(torch.tensor([row for row, _ in rows], device=model.runner.device), ascend))
        return edits, [lane for rows in groups.values() for _, lane in rows]
