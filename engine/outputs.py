"""What the forwards of one tick gave, by lane."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trimtab.engine.lane import Lane
from trimtab.engine.model import Model
from trimtab.engine.runner import Decoded
from trimtab.engine.scheduler import Turn
from trimtab.engine.staging import place


class Outputs:
    """Logits and hidden states of the lanes that read in this tick; valid until the model's next decode forward."""

    def __init__(self) -> None:
        self._decoded: dict[Model, Decoded] = {}
        self._rows: dict[Lane, range] = {}
        self._chosen: dict[Lane, int] = {}
        self._unedited: dict[Lane, Tensor] = {}
        self._remote: dict[Lane, Tensor] = {}

    def add(self, model: Model, turns: Sequence[Turn], decoded: Decoded, edited: Sequence[Lane]) -> None:
        """Take in a forward of `model` over the chunks of `turns`, in their order."""
        start = 0
        for turn in turns:
            self._rows[turn.lane] = range(start, start + len(turn.chunk.tokens))
            start += len(turn.chunk.tokens)
        self._decoded[model] = decoded
        self._unedited.update(zip(edited, decoded.unedited, strict=True))

    def add_remote(self, lane: Lane, rows: Tensor) -> None:
        """Take in what another server told of a lane: log-probabilities (q, V), known of the best tokens alone."""
        self._remote[lane] = rows
        self._rows[lane] = range(len(rows))

    def guessed(self, lane: Lane) -> bool:
        """Whether only the best tokens of the lane's distributions are known."""
        return lane in self._remote

    def logits(self, lanes: Sequence[Lane]) -> Tensor:
        """Logits after the last token of lanes of one model, (R, V) in its dtype."""
        if lanes[0] in self._remote:
            return torch.stack([self._remote[lane][self._chosen.get(lane, -1)] for lane in lanes])
        return self._last(self._decoded[lanes[0].model].logits, lanes)

    def hidden(self, lanes: Sequence[Lane]) -> Tensor:
        """Last hidden states of lanes of one model, before any edit, (R, D)."""
        return self._last(self._decoded[lanes[0].model].hidden, lanes)

    def unedited(self, lane: Lane) -> Tensor | None:
        """Logits (V,) without the lane's hidden-state edit; None where there was none."""
        return self._unedited.get(lane)

    def choose(self, lane: Lane, row: int) -> None:
        """Let the row after the lane's token number `row` of this tick stand for its last one."""
        self._chosen[lane] = self._rows[lane].start + row

    def every(self, lane: Lane) -> Tensor:
        """Logits after each token that the lane read, (q, V)."""
        rows = self._rows[lane]
        if lane in self._remote:
            return self._remote[lane]
        return self._decoded[lane.model].logits[rows.start : rows.stop]

    def _last(self, values: Tensor, lanes: Sequence[Lane]) -> Tensor:
        rows = [self._chosen.get(lane, self._rows[lane].stop - 1) for lane in lanes]
        if rows == list(range(rows[0], rows[0] + len(rows))):  # neighbours: no copy
            return values[rows[0] : rows[0] + len(rows)]
        return values.index_select(0, place([np.array(rows)], values.device)[0])
