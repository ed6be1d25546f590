"""Judges answers: rewards of texts, values of hidden states, log-probabilities under one model.

Programs ask by their ops, and callers by a `Rating`. Both queue for a reward by priority, then in the order of arrival,
and share batches. Rewards that another server judges are not waited for: what comes back is taken at a later tick.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import monotonic, perf_counter
from typing import TypeVar
from weakref import WeakSet

from trimtab.engine.away import Asker, Away, Sent, Share
from trimtab.engine.backlog import Backlog
from trimtab.engine.circuit import Circuits
from trimtab.engine.errors import GuideError, InvalidRequest, Overloaded, RemoteError, RemoteUnavailable
from trimtab.engine.guides.base import Guide, HeadGuide, PreferenceGuide
from trimtab.engine.job import Job
from trimtab.engine.pages import OutOfPages
from trimtab.engine.plan import BASE
from trimtab.engine.program import LogProbs, Preferences, Score
from trimtab.engine.rating import Rating
from trimtab.engine.reader import Charge, Passage, Reader
from trimtab.engine.results import EngineStats, add
from trimtab.engine.rewards import Judgement, Pair, Reward
from trimtab.engine.rewards.far import FarReward
from trimtab.engine.scheduler import Scheduler
from trimtab.engine.settings import EngineSettings
from trimtab.engine.tally import ROWS, SECONDS, Tally

logger = logging.getLogger(__name__)

T = TypeVar("T")
LAST_WORD = 0.5
"""seconds that a search whose time is up still waits for a far reward; answers without one count as the worst"""


class Scoring:
    """One batch per guide and tick over all requests that wait for it; `resume` and `fail` go on with a job."""

    def __init__(
        self,
        scheduler: Scheduler,
        settings: EngineSettings,
        stats: EngineStats,
        backlog: Backlog,
        circuits: Circuits,
        *,
        resume: Callable[[Job], None],
        fail: Callable[[Job, Exception], None],
        wake: Callable[[], None],
    ) -> None:
        """`wake` is called from any thread when a far reward has answered."""
        self.rewards: Mapping[str, Reward] = {}
        self.ratings: list[Rating] = []
        self._scheduler = scheduler
        self._stats = stats
        self._backlog = backlog
        self._circuits = circuits
        self._pairs = settings.score_pairs
        self._losing = settings.reward_errors == "lose"
        self._resume = resume
        self._fail = fail
        self._away = Away(wake)
        self._single: WeakSet[Job] = WeakSet()
        """those of which a far reward failed on some answer: theirs are asked for one by one, to find it"""

    def adopt(self, reader: Reader, guides: Mapping[str, Guide], rewards: Mapping[str, Reward]) -> None:
        """Ask these guides from now on."""
        for name, reward in self.rewards.items():
            if isinstance(reward, FarReward) and rewards.get(name) is not reward:
                reward.close()
                self._stats.remotes.pop(name, None)
        self._stats.remotes |= {name: each.stats for name, each in rewards.items() if isinstance(each, FarReward)}
        self.rewards, self._reader, self._guides = rewards, reader, guides

    @property
    def waiting(self) -> bool:
        """Whether far rewards still have to answer, or have answered since the last tick."""
        return self._away.waiting

    def waits(self, asked: Asker) -> bool:
        """Whether a job or a rating can only go on once a far reward has answered."""
        wanted = asked if isinstance(asked, Rating) else asked.op
        if not isinstance(wanted, Rating | Score):
            return False
        reward = self.rewards.get(wanted.reward)
        return isinstance(reward, FarReward) and (self._away.holds(asked) or reward.room(1) == 0)

    def tick(self, jobs: Sequence[Job]) -> None:
        """Answer what the jobs wait for; rewards in the order of service, as many answers as a batch takes."""
        self._land()
        alive = set(self._scheduler.running)
        jobs = [job for job in jobs if job in alive]  # what has just come may have ended some
        waiting: dict[str, list[Asker]] = {}
        for rating in self.ratings:
            if not rating.ended:
                waiting.setdefault(rating.reward, []).append(rating)
        for job in jobs:
            if isinstance(job.op, LogProbs | Preferences) or (
                isinstance(job.op, Score) and isinstance(self._guides.get(job.op.reward), HeadGuide)
            ):
                self._reread(job)
            elif isinstance(job.op, Score):
                if isinstance(self.rewards.get(job.op.reward), FarReward) and _late(job):
                    job.rewards += [math.nan] * (len(job.op.sequences) - len(job.rewards))
                    self._resume(job)
                else:
                    waiting.setdefault(job.op.reward, []).append(job)
        for name, each in waiting.items():
            room, reward = self._pairs, self.rewards.get(name)
            if isinstance(reward, FarReward):
                each = [asked for asked in each if not self._away.holds(asked)]
                room = reward.room(room)
            if shares := self._shares(sorted(each, key=lambda asked: (asked.priority, asked.arrived)), room):
                self._score(name, shares)
        self.sweep()

    def sweep(self) -> None:
        """Forget the ratings that have ended."""
        for rating in self.ratings:
            if rating.ended:
                self._backlog.leave(rating.load)
        self.ratings = [rating for rating in self.ratings if not rating.ended]

    def _reread(self, job: Job) -> None:
        """Read the end of answers, or of the prompt, again for what a model says of it."""
        op = job.op
        assert isinstance(op, LogProbs | Preferences | Score)
        name = op.model if isinstance(op, LogProbs) else op.guide if isinstance(op, Preferences) else op.reward
        passages = []
        for index, sequence in enumerate((job.prompt,) if isinstance(op, Preferences) else op.sequences):
            lane = sequence.base
            start = sequence.generated  # behind the last token, whose hidden state is wanted
            if isinstance(op, LogProbs):
                lane = sequence.lane(op.model)
                start = op.start if isinstance(op.start, int) else op.start[index]
            passages.append(Passage(sequence, lane, len(lane.tokens) - sequence.generated + start))
        try:
            if isinstance(op, LogProbs):
                job.logprobs = self._in_room(job, passages, self._reader.logprobs)
            elif isinstance(op, Preferences):
                weigher = self._guides[op.guide]
                assert isinstance(weigher, PreferenceGuide)  # admission
                (job.preferences,) = self._in_room(job, passages, partial(self._reader.preferences, weigher))
            else:
                guide = self._guides[op.reward]
                assert isinstance(guide, HeadGuide)
                job.rewards = self._in_room(job, passages, partial(self._reader.values, guide))
        except GuideError as error:
            self._fail(job, self._blame(error.guide, error, job))
            return
        except Exception as error:
            if name == BASE:
                raise
            self._fail(job, self._blame(name, error, job))
            return
        self._circuits.succeeded((name,))
        self._resume(job)

    def _blame(self, name: str, error: Exception, asked: Asker) -> Exception:
        """Count that a guide failed on what was asked; the error that its requests end with."""
        add(self._stats.guide_errors, name, 1)
        refused = isinstance(error, RemoteError) and error.refused
        refused |= isinstance(error.__cause__, InvalidRequest)  # by its chat template
        if not refused and not isinstance(error, _Crowded):
            self._circuits.failed(name, asked)
        if isinstance(error, GuideError | RemoteUnavailable | RemoteError):
            return error
        logger.error("guide %r failed", name, exc_info=error)
        return GuideError(name, type(error).__name__)

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
            raise _Crowded(passages[0].lane.name) from None

    def _score(self, name: str, shares: list[Share]) -> None:
        """Score one batch; if that fails, one request at a time finds whose answer it is, and the others go on."""
        began, reward = perf_counter(), self.rewards.get(name)
        if reward is None:
            for asked, _ in shares:
                self._end(asked, Overloaded(f"guide {name!r} was unloaded: send the request again"))
            return
        if isinstance(reward, FarReward):
            self._away.send(name, reward, shares)
            return
        judged: list[Judgement] = []
        failure = None
        try:
            judged = reward.judge([pair for _, pairs in shares for pair in pairs])
        except Exception as error:
            failure = error
        if failure is not None:
            self._bear(name, shares, failure)
        else:
            self._count(name, judged, perf_counter() - began)
            self._share(name, shares, judged)

    def _land(self) -> None:
        """Take what far rewards have answered; nobody may wait for it any more."""
        alive = set(self._scheduler.running)
        for sent, shares in self._away.landed():
            if self.rewards.get(sent.name) is not sent.reward:
                continue
            wanted = [share for share in shares if isinstance(share[0], Rating) or share[0] in alive]
            failure = sent.judged.exception()
            if isinstance(failure, Exception):
                self._miss(sent, wanted, failure)
            else:
                self._keep(sent, wanted)
            alive = set(self._scheduler.running)

    def _keep(self, sent: Sent, wanted: list[Share]) -> None:
        """Share out what a far reward has judged."""
        judged = sent.judged.result()
        self._count(sent.name, judged, perf_counter() - sent.began)
        askers, kept = {asked for asked, _ in wanted}, list[Judgement]()
        for asked, pairs in sent.shares:
            mine, judged = judged[: len(pairs)], judged[len(pairs) :]
            kept += mine if asked in askers else ()
        self._share(sent.name, wanted, kept)

    def _miss(self, sent: Sent, wanted: list[Share], error: Exception) -> None:
        """Ask again for less where an answer may be at fault; a server that is gone fails all of them at once."""
        if isinstance(error, RemoteUnavailable) or not wanted:
            for asked, _ in sent.shares if not wanted else ():
                self._blame(sent.name, error, asked)
            for share in wanted:
                self._lose(sent.name, share, error)
            return
        self._bear(sent.name, wanted, error)

    def _count(self, name: str, judged: list[Judgement], seconds: float) -> None:
        """Note that a batch did not fail."""
        self._circuits.succeeded((name,))
        self._stats.reward_latency.setdefault(name, Tally(SECONDS)).add(seconds)
        self._stats.reward_batch_size.setdefault(name, Tally(ROWS)).add(len(judged))
        if read := sum(each.tokens - each.cached for each in judged):
            add(self._stats.model_tokens, name, read)

    def _share(self, name: str, shares: list[Share], judged: list[Judgement]) -> None:
        """Give everybody the judgements of their answers."""
        each = sum(each.tokens - each.cached for each in judged) / max(1, len(judged))
        for asked, pairs in shares:  # what answers share is read once, so that their parts are equal
            mine, judged = judged[: len(pairs)], judged[len(pairs) :]
            if isinstance(asked, Rating):
                asked.take(mine)
            else:
                self._take(asked, name, [judgement.score for judgement in mine], round(each * len(pairs)))

    def _bear(self, name: str, shares: list[Share], error: Exception) -> None:
        """Make room for a batch that found none, or find the request, or under `lose` the answer, that it failed on."""
        if isinstance(error, OutOfPages):  # rewards that read over pages share them with lanes
            if self._scheduler.preempt(error.pool):
                self._score(name, shares)
            else:
                self._end(shares[0][0], _Crowded(name))
            return
        if len(shares) > 1:
            for share in shares:
                self._score(name, [share])
            return
        ((asked, pairs),) = shares
        if self._losing and isinstance(asked, Job) and len(pairs) > 1:
            if isinstance(self.rewards.get(name), FarReward):
                self._single.add(asked)
                return
            for pair in pairs:
                self._score(name, [(asked, [pair])])
            return
        refused = error.__cause__
        if isinstance(asked, Rating) and isinstance(refused, InvalidRequest):  # the caller's mistake, not the guide's
            asked.fail(InvalidRequest(str(error), param=refused.param, code=refused.code))
            return
        self._lose(name, shares[0], error)

    def _lose(self, name: str, share: Share, error: Exception) -> None:
        """Let the answers of a share lose, or end their request."""
        asked, pairs = share
        error = self._blame(name, error, asked)
        if self._losing and isinstance(asked, Job):
            logger.warning("%s; the answer loses", error)
            self._take(asked, name, [math.nan] * len(pairs), 0)
        else:
            self._end(asked, error)

    def _end(self, asked: Asker, error: Exception) -> None:
        """End a request with `error`."""
        if isinstance(asked, Rating):
            asked.fail(error)
        else:
            self._fail(asked, error)

    def _take(self, job: Job, name: str, scores: list[float], tokens: int) -> None:
        """Give a job its part of a batch."""
        assert isinstance(job.op, Score)
        job.rewards += scores
        add(job.usage.forwards, name, 1)
        if tokens:
            add(job.usage.model_tokens, name, tokens)
        if len(job.rewards) == len(job.op.sequences):
            self._resume(job)

    def _shares(self, waiting: list[Asker], room: int) -> list[Share]:
        """Unscored answers of those who wait, up to the batch limit."""
        shares: list[Share] = []
        for asked in waiting:
            pairs = _unscored(asked, min(room, 1) if asked in self._single else room)
            if pairs:
                shares.append((asked, pairs))
                room -= len(pairs)
        return shares


def _late(job: Job) -> bool:
    """Whether a request has no time left to wait for other servers."""
    return job.interrupted in ("deadline_ms", "shutdown") and monotonic() - job.phase_began > LAST_WORD


def _unscored(asked: Asker, room: int) -> list[Pair]:
    """The next answers to score, at most `room`."""
    if isinstance(asked, Rating):
        return asked.unscored(room)
    assert isinstance(asked.op, Score)
    sequences = asked.op.sequences[len(asked.rewards) :][:room]
    request = asked.request
    return [Pair(request.messages, sequence.text.text, request.salt) for sequence in sequences]


class _Crowded(GuideError):
    """An answer is too long for the pages of a guide, which says nothing about other answers."""

    def __init__(self, guide: str) -> None:
        super().__init__(guide, "its page pool is too small for one answer: raise pool_tokens")
