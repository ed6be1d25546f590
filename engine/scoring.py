"""Answers the ops that judge answers: rewards of texts, values of hidden states, log-probabilities under one model."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import TypeVar

from trimtab.engine.errors import GuideError
from trimtab.engine.guides.base import Guide, HeadGuide
from trimtab.engine.job import Job
from trimtab.engine.pages import OutOfPages
from trimtab.engine.program import LogProbs, Score
from trimtab.engine.reader import Charge, Passage, Reader
from trimtab.engine.results import EngineStats, add
from trimtab.engine.rewards import Pair, Reward
from trimtab.engine.scheduler import Scheduler
from trimtab.engine.settings import EngineSettings

logger = logging.getLogger(__name__)

Share = tuple[Job, list[Pair]]
T = TypeVar("T")


class Scoring:
    """One batch per guide and tick over all requests that wait for it; `resume` and `fail` go on with a job."""

    def __init__(
        self,
        scheduler: Scheduler,
        reader: Reader,
        guides: Mapping[str, Guide],
        rewards: Mapping[str, Reward],
        settings: EngineSettings,
        stats: EngineStats,
        *,
        resume: Callable[[Job], None],
        fail: Callable[[Job, Exception], None],
    ) -> None:
        self.rewards = rewards
        self._scheduler = scheduler
        self._reader = reader
        self._guides = guides
        self._stats = stats
        self._pairs = settings.score_pairs
        self._losing = settings.reward_errors == "lose"
        self._resume = resume
        self._fail = fail

    def tick(self, jobs: Sequence[Job]) -> None:
        """Answer what the jobs wait for; rewards in the order of arrival, as many answers as a batch takes."""
        waiting: dict[str, list[Job]] = {}
        for job in jobs:
            if isinstance(job.op, LogProbs) or (
                isinstance(job.op, Score) and isinstance(self._guides.get(job.op.reward), HeadGuide)
            ):
                self._reread(job)
            elif isinstance(job.op, Score):
                waiting.setdefault(job.op.reward, []).append(job)
        for name, each in waiting.items():
            self._score(name, self._shares(each))

    def _reread(self, job: Job) -> None:
        """Read the end of answers again, for what a model says of it."""
        op = job.op
        assert isinstance(op, LogProbs | Score)
        passages = []
        for index, sequence in enumerate(op.sequences):
            lane = sequence.base
            start = sequence.generated  # behind the last token, whose hidden state is wanted
            if isinstance(op, LogProbs):
                lane = sequence.lane(op.model)
                start = op.start if isinstance(op.start, int) else op.start[index]
            passages.append(Passage(sequence, lane, len(lane.tokens) - sequence.generated + start))
        try:
            if isinstance(op, LogProbs):
                job.logprobs = self._in_room(job, passages, self._reader.logprobs)
            else:
                guide = self._guides[op.reward]
                assert isinstance(guide, HeadGuide)
                job.rewards = self._in_room(job, passages, partial(self._reader.values, guide))
        except GuideError as error:
            add(self._stats.guide_errors, error.guide, 1)
            self._fail(job, error)
            return
        self._resume(job)

    def _in_room(self, job: Job, passages: list[Passage], read: Callable[[list[Passage], Charge], list[T]]) -> list[T]:
        """Read passages together or, where their pages do not fit beside each other, half by half."""
        try:
            return read(passages, lambda lane, tokens: job.charge(lane, tokens, self._stats))
        except OutOfPages as full:
            if len(passages) > 1:
                half = len(passages) // 2
                return self._in_room(job, passages[:half], read) + self._in_room(job, passages[half:], read)
            if self._scheduler.preempt(full.pool, passages[0].sequence):
                return self._in_room(job, passages, read)
            raise _crowded(passages[0].lane.name) from None

    def _score(self, name: str, shares: list[Share]) -> None:
        """Score one batch; if that fails, one request at a time finds whose answer it is, and the others go on."""
        began, reward = perf_counter(), self.rewards[name]
        read, scores, failure = reward.tokens_read, [], None
        try:
            scores = reward.score([pair for _, pairs in shares for pair in pairs])
        except Exception as error:
            failure = error
        if failure is not None:
            self._bear(name, shares, failure)
            return
        read = reward.tokens_read - read
        add(self._stats.score_seconds, name, perf_counter() - began)
        add(self._stats.score_batches, name, 1)
        add(self._stats.score_items, name, len(scores))
        if read:
            add(self._stats.model_tokens, name, read)
        each = read / len(scores)  # what answers share is read once, so that their parts are equal
        for job, pairs in shares:
            self._take(job, name, scores[: len(pairs)], round(each * len(pairs)))
            scores = scores[len(pairs) :]

    def _bear(self, name: str, shares: list[Share], error: Exception) -> None:
        """Make room for a batch that found none, or find the request, or under `lose` the answer, that it failed on."""
        if isinstance(error, OutOfPages):  # rewards that read over pages share them with lanes
            if self._scheduler.preempt(error.pool):
                self._score(name, shares)
            else:
                self._fail(shares[0][0], _crowded(name))
            return
        if len(shares) > 1:
            for share in shares:
                self._score(name, [share])
            return
        ((job, pairs),) = shares
        if self._losing and len(pairs) > 1:
            for pair in pairs:
                self._score(name, [(job, [pair])])
            return
        add(self._stats.guide_errors, name, 1)
        if not isinstance(error, GuideError):
            logger.error("guide %r failed", name, exc_info=error)
            error = GuideError(name, type(error).__name__)
        if self._losing:
            logger.warning("%s; the answer loses", error)
            self._take(job, name, [math.nan], 0)
        else:
            self._fail(job, error)

    def _take(self, job: Job, name: str, scores: list[float], tokens: int) -> None:
        """Give a job its part of a batch."""
        assert isinstance(job.op, Score)
        job.rewards += scores
        add(job.usage.forwards, name, 1)
        if tokens:
            add(job.usage.model_tokens, name, tokens)
        if len(job.rewards) == len(job.op.sequences):
            self._resume(job)

    def _shares(self, jobs: list[Job]) -> list[Share]:
        """Unscored answers of `jobs`, up to the batch limit."""
        shares: list[Share] = []
        room = self._pairs
        for job in jobs:
            assert isinstance(job.op, Score)
            left = job.op.sequences[len(job.rewards) :][:room]
            if left:
                shares.append((job, [Pair(job.request.messages, sequence.text.text) for sequence in left]))
                room -= len(left)
        return shares


def _crowded(guide: str) -> GuideError:
    return GuideError(guide, "its page pool is too small for one answer: raise pool_tokens")
