"""Answers that a caller wants scored and nothing else."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import monotonic

from trimtab.engine.backlog import Load
from trimtab.engine.rewards import Judgement, Pair

CHARACTERS = 4
"""of a token, about: nobody has counted the tokens of answers that wait to be scored"""


@dataclass(eq=False, slots=True)
class Rating:
    """A queue entry beside the jobs: pairs for one reward, and the future that gets their judgements.

    The caller makes it and may cancel the future from any thread; `Scoring` takes it in shares of a batch, and drops
    it within a tick once the future is cancelled, which can be done until the last share is judged.
    """

    reward: str
    pairs: Sequence[Pair]
    priority: int = 0
    """lower ones are served first"""
    future: Future[list[Judgement]] = field(default_factory=Future)
    arrived: float = field(default_factory=monotonic)
    judgements: list[Judgement] = field(default_factory=list)
    """of the pairs so far, in the order in which they are scored; filled by the engine"""
    _order: list[int] = field(init=False)
    """of the pairs, by length: then batches hold little padding"""

    def __post_init__(self) -> None:
        self._order = sorted(range(len(self.pairs)), key=lambda index: _characters(self.pairs[index]))

    @property
    def ended(self) -> bool:
        return self.future.done()

    @property
    def load(self) -> Load:
        """What it adds to the queue."""
        return Load(1, 1, -(-sum(map(_characters, self.pairs)) // CHARACTERS))

    @property
    def tokens(self) -> int:
        """What has been read for it so far."""
        return sum(judgement.tokens for judgement in tuple(self.judgements))

    def unscored(self, limit: int) -> list[Pair]:
        """The next pairs to score, at most `limit`."""
        return [self.pairs[index] for index in self._order[len(self.judgements) :][:limit]]

    def take(self, judgements: Sequence[Judgement]) -> None:
        """Add the judgements of a share; the last one ends the rating."""
        self.judgements += judgements
        if len(self.judgements) == len(self.pairs) and self._claim():
            judged = dict(zip(self._order, self.judgements, strict=True))
            self.future.set_result([judged[index] for index in range(len(self.pairs))])

    def fail(self, error: Exception) -> None:
        """End with `error`, unless the caller was faster."""
        if self._claim():
            self.future.set_exception(error)

    def _claim(self) -> bool:
        """Whether the caller still waits; from then on the future cannot be cancelled."""
        return not self.ended and self.future.set_running_or_notify_cancel()


def _characters(pair: Pair) -> int:
    return len(pair.answer) + sum(len(message["content"]) for message in pair.messages)
