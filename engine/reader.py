"""Runs the models over what the lanes of a tick have pending, one forward per model."""

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from collections.abc import Sequence as Many
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from math import isfinite, isnan
from typing import NamedTuple

import torch
from torch import Tensor

from trimtab.engine.errors import GuideError
from trimtab.engine.guides.base import Guide, HeadGuide, PreferenceGuide, ScorerGuide
from trimtab.engine.lane import Lane
from trimtab.engine.lm_head import Edit
from trimtab.engine.model import Model
from trimtab.engine.outputs import Outputs
from trimtab.engine.pages import PageTable
from trimtab.engine.plan import BASE, HiddenEdit
from trimtab.engine.runner import READ_ROWS, Chunk, Decoded, ModelRunner
from trimtab.engine.scheduler import Turn
from trimtab.engine.sequence import Sequence

logger = logging.getLogger(__name__)


class Passage(NamedTuple):
    """The end of one reading of a sequence, from token `first` of the lane on."""

    sequence: Sequence
    lane: Lane
    first: int


Charge = Callable[[Lane, int], None]
"""notes that a lane has read so many tokens in a forward"""


class Reader:
    """The forwards of an engine's models: language-model lanes in lockstep, then scorers of candidates.

    A guide's forward that raises counts as one that gave no numbers, so that the requests of others go on.
    """

    def __init__(self, guides: Mapping[str, Guide]) -> None:
        self._guides = guides
        self.asked: dict[Lane, list[int]] = {}
        """candidates (base ids) that each scoring lane read in this tick"""
        self._streams: defaultdict[Model, torch.cuda.Stream] = defaultdict(torch.cuda.Stream)

    def read(self, turns: Many[Turn]) -> Outputs:
        """One forward per model over the pending tokens of its lanes; scorers wait for their candidates."""
        self.asked.clear()
        groups: dict[Model, list[Turn]] = {}
        for turn in turns:
            if not turn.lane.scores:
                groups.setdefault(turn.lane.model, []).append(turn)
        outputs = Outputs()
        with self._side_by_side(groups) as on_its_stream:
            for model, group in groups.items():
                # Rows of one adapter together, and rows of like length, which are attended together.
                group.sort(key=lambda turn: (turn.lane.variant.adapter or "", -len(turn.lane.tokens)))
                edits, edited = self._edits(group)
                with on_its_stream(model):
                    outputs.add(model, group, _decode(model, [turn.chunk for turn in group], edits), edited)
        return outputs

    def score(self, guide: ScorerGuide, lanes: Many[Lane], candidates: Many[Many[int]]) -> Tensor:
        """Scores (R, k) float32 of candidates (base ids) as next tokens of a guide's lanes, padded to the longest."""
        chunks = [Chunk(lane.table, lane.pending, lane.variant) for lane in lanes]
        ids = candidates
        if guide.translation is not None:
            ids = [[guide.translation.token(token) for token in row] for row in candidates]
        try:
            scores = guide.head(guide.model.runner.score(chunks, ids)).float()  # of hidden states (R, k, D)
        except Exception:
            logger.exception("guide %r failed on candidates", guide.name)
            scores = torch.full((len(ids), max(map(len, ids))), torch.nan, device=guide.model.runner.device)
        for lane, row in zip(lanes, candidates, strict=True):
            lane.table.stored(lane.tokens, len(lane.tokens))
            self.asked[lane] = list(row)
        return scores

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

    def logprobs(self, passages: Many[Passage], charge: Charge) -> list[list[float]]:
        """Log-probabilities of the passages' tokens under the models that read them; raises OutOfPages, GuideError.

        Afterwards a lane holds all but its last token, as after decoding.
        """
        self._catch_up(passages, charge)
        found: dict[Lane, list[float]] = {passage.lane: [] for passage in passages}
        while todo := [each.lane for each in passages if each.lane.unstored > 0]:
            model, room = todo[0].model, READ_ROWS
            chunks: dict[Lane, Chunk] = {}
            for lane in (lane for lane in todo if lane.model is model and room):
                end = lane.table.length + min(room, lane.unstored)
                chunks[lane] = Chunk(lane.table, lane.tokens[lane.table.length : end], lane.variant)
                room -= len(chunks[lane].tokens)
            following = [lane.tokens[lane.table.length + 1 :][: len(chunk.tokens)] for lane, chunk in chunks.items()]
            logits = model.runner.decode(list(chunks.values())).logits.float()  # (N, V)
            ids = torch.tensor([token for tokens in following for token in tokens], device=logits.device)
            told = (logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(dim=1)).tolist()
            for lane, chunk in chunks.items():
                mine, told = told[: len(chunk.tokens)], told[len(chunk.tokens) :]
                if any(map(isnan, mine)):
                    raise GuideError(lane.name, "gave logits that are not numbers: check its weights and dtype")
                found[lane] += mine
                lane.table.stored(lane.tokens, lane.table.length + len(mine))
                charge(lane, len(mine))
        return [found[passage.lane] for passage in passages]

    def values(self, guide: HeadGuide, passages: Many[Passage], charge: Charge) -> list[float]:
        """What a value head says of answers whose passages begin behind the end; raises OutOfPages, GuideError."""
        values: list[float] = guide.head(self._ends(passages, charge)).tolist()
        if not all(map(isfinite, values)):
            raise GuideError(guide.name, "gave a value that is not finite: check its weights and dtype")
        return values

    def preferences(self, guide: PreferenceGuide, passages: Many[Passage], charge: Charge) -> list[dict[str, float]]:
        """Weights by reward of prompts whose passages begin behind the end; raises OutOfPages, GuideError."""
        rows: list[list[float]] = guide.head(self._ends(passages, charge)).tolist()
        if not all(isfinite(weight) for row in rows for weight in row):
            raise GuideError(guide.name, "gave a weight that is not finite: check its weights and dtype")
        return [dict(zip(guide.head.rewards, row, strict=True)) for row in rows]

    def _ends(self, passages: Many[Passage], charge: Charge) -> Tensor:
        """Last hidden states (N, D) of passages that begin behind the end; raises OutOfPages."""
        self._catch_up(passages, charge)
        lanes = [passage.lane for passage in passages]
        hidden = lanes[0].model.runner.hidden([Chunk(each.table, each.tokens[-1:], each.variant) for each in lanes])
        for lane in lanes:
            lane.table.stored(lane.tokens, len(lane.tokens))
            charge(lane, 1)
        return hidden

    def _catch_up(self, passages: Many[Passage], charge: Charge) -> None:
        """Store every passage's tokens before the one in front of it, with room for all of them; raises OutOfPages."""
        for _, lane, first in passages:
            if not lane.table.pages:
                lane.table.match(lane.tokens[: first - 1])
            lane.table.trim(first - 1)
            lane.table.reserve(len(lane.tokens))
        while todo := [(lane, first - 1) for _, lane, first in passages if lane.table.length < first - 1]:
            model = todo[0][0].model
            lanes = [(lane, end) for lane, end in todo if lane.model is model]
            step = max(1, READ_ROWS // len(lanes))
            chunks = [
                Chunk(lane.table, lane.tokens[lane.table.length : min(end, lane.table.length + step)], lane.variant)
                for lane, end in lanes
            ]
            model.runner.prefill(chunks)
            for (lane, _), chunk in zip(lanes, chunks, strict=True):
                lane.table.stored(lane.tokens, lane.table.length + len(chunk.tokens))
                charge(lane, len(chunk.tokens))

    @contextmanager
    def _side_by_side(self, models: Collection[Model]) -> Iterator[Callable[[Model], AbstractContextManager[object]]]:
        """Let the forwards of several models on a GPU overlap, each on a stream of its own.

        They start after what is queued now, and what is queued afterwards waits for them: so memory that one stream has
        freed is never written by another too early.
        """
        if len(models) < 2 or any(model.runner.device.type != "cuda" for model in models):
            yield lambda model: nullcontext()
            return
        main = torch.cuda.current_stream()
        streams = [self._streams[model] for model in models]
        for stream in streams:
            stream.wait_stream(main)
        try:
            yield lambda model: torch.cuda.stream(self._streams[model])
        finally:
            for stream in streams:
                main.wait_stream(stream)

    def _edits(self, turns: list[Turn]) -> tuple[list[Edit], list[Lane]]:
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
            edits.append(Edit(torch.tensor([row for row, _ in rows]), ascend))
        return edits, [lane for rows in groups.values() for _, lane in rows]


def _decode(model: Model, chunks: list[Chunk], edits: list[Edit]) -> Decoded:
    """A decode forward; NaN logits, and hidden states of no width, where a guide's raises."""
    try:
        return model.runner.decode(chunks, edits)
    except Exception:
        if model.name == BASE:
            raise
        logger.exception("guide %r failed in a forward", model.name)
        rows, runner = sum(len(chunk.tokens) for chunk in chunks), model.runner
        nothing = torch.full((rows, runner.vocab_size), torch.nan, device=runner.device)
        return Decoded(nothing, nothing[:, :0], nothing[:0])
