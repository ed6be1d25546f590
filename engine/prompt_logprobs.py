"""Log-probabilities of a prompt's own tokens, read while the prompt is stored."""

from collections.abc import Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trimtab.engine.lane import Lane
from trimtab.engine.results import EngineStats, TokenLogprob
from trimtab.engine.runner import READ_ROWS, Chunk, ModelRunner

if TYPE_CHECKING:
    from trimtab.engine.job import Job
    from trimtab.engine.scheduler import Turn


@dataclass(slots=True)
class PromptReading:
    """What is known of one prompt; nothing precedes the first token, so nothing is told of it."""

    lane: Lane
    """the base's reading that reports go by"""
    top: int
    """alternatives per token"""
    length: int
    """tokens of the prompt"""
    found: list[TokenLogprob | None] = field(default_factory=lambda: [None])

    @property
    def complete(self) -> bool:
        return len(self.found) == self.length

    @property
    def told(self) -> tuple[TokenLogprob | None, ...]:
        """One entry per token; None too for those that the request ended before."""
        return (*self.found, *[None] * (self.length - len(self.found)))

    def take(self, logits: Tensor, first: int) -> bool:
        """Note what `logits` (N, V), behind the tokens from number `first` on, say of the next ones.

        Tokens that are known are left alone: a preempted prompt is read again. False: a number is not one.
        """
        known = len(self.found) - 1 - first
        z = logits[known:].float()  # (N, V)
        if not len(z):
            return True
        following = list(self.lane.tokens[first + known + 1 :][: len(z)])
        mass = z.logsumexp(dim=1)
        ids = torch.tensor(following, device=z.device)[:, None]
        logprobs = (z.gather(1, ids)[:, 0] - mass).tolist()
        best = z.topk(min(self.top, z.shape[1]), dim=1)
        others = zip(best.indices.tolist(), (best.values - mass[:, None]).tolist(), strict=True)
        for id_, logprob, (indices, values) in zip(following, logprobs, others, strict=True):
            self.found.append(TokenLogprob(id_, logprob, tuple(zip(indices, values, strict=True))))
        return bool(torch.isfinite(mass).all())


def fill(runner: ModelRunner, turns: Many["Turn"], stats: EngineStats) -> list["Job"]:
    """Store the turns' chunks, with logits where a prompt is read; the jobs whose logits are no numbers.

    Logits are there for READ_ROWS tokens at a time, padding counted.
    """
    plain = [turn for turn in turns if not turn.job.reads(turn.lane)]
    if plain:
        runner.prefill([turn.chunk for turn in plain])
    for turn in plain:
        _store(turn, len(turn.chunk.tokens), stats)
    broken = []
    for batch in _batches([turn for turn in turns if turn.job.reads(turn.lane)]):
        logits = runner.read([chunk for _, chunk in batch])
        for turn, chunk in batch:
            count, reading = len(chunk.tokens), turn.job.reading
            assert reading is not None
            if not reading.take(logits[:count], turn.lane.table.length):
                broken.append(turn.job)
            logits = logits[count:]
            _store(turn, count, stats)
    return broken


def _batches(turns: Many["Turn"]) -> Iterator[list[tuple["Turn", Chunk]]]:
    """The turns' chunks in forwards of READ_ROWS tokens at most; each is cut when the one before it is stored."""
    todo = [(turn, turn.lane.table.length + len(turn.chunk.tokens)) for turn in turns]
    while todo:
        batch: list[tuple[Turn, Chunk]] = []
        width = 0
        for turn, end in todo:
            lane = turn.lane
            tokens = lane.tokens[lane.table.length : min(end, lane.table.length + READ_ROWS)]
            width = max(width, len(tokens))
            if batch and (len(batch) + 1) * width > READ_ROWS:
                break
            batch.append((turn, Chunk(lane.table, tokens, lane.variant)))
        yield batch
        todo = [(turn, end) for turn, end in todo if turn.lane.table.length < end]


def _store(turn: "Turn", count: int, stats: EngineStats) -> None:
    turn.lane.table.stored(turn.lane.tokens, turn.lane.table.length + count)
    turn.job.charge(turn.lane, count, stats)
    stats.prompt_tokens += count
