"""Which sequences run in a tick: admission by rows and pages, chunked prefill, preemption by recomputation.

Jobs are served by priority, lower ones first, and those of one priority in the order of their arrival. Priority is
strict: as long as better ones keep coming, the others wait. When pages run out, the last sequences in this order give
theirs back and are prefilled again later; full pages they gave back stay in the prefix cache until someone needs the
room. The first sequence can take every page, and no single sequence is larger than the pool, so every request ends. A
job that has rows keeps them: a better one that comes later waits for rows and pages to be free, then goes first.
"""

from bisect import insort
from collections import Counter
from collections.abc import Iterator
from operator import attrgetter
from typing import NamedTuple

from trimtab.engine.backlog import Backlog
from trimtab.engine.job import Job
from trimtab.engine.lane import Lane
from trimtab.engine.model import Model
from trimtab.engine.pages import OutOfPages, PagePool
from trimtab.engine.program import Prefill
from trimtab.engine.results import EngineStats
from trimtab.engine.runner import Chunk
from trimtab.engine.sequence import Sequence

CATCH_UP = 16
"""A voice that was silent reads so many tokens in one step with its next draw; more are prefilled."""


class Turn(NamedTuple):
    """What one lane of a sequence reads in a forward."""

    job: Job
    sequence: Sequence
    lane: Lane
    chunk: Chunk


class Scheduler:
    """Waiting and running jobs of one engine."""

    def __init__(self, stats: EngineStats, backlog: Backlog, *, max_rows: int, prefill_tokens: int) -> None:
        self.waiting: list[Job] = []
        """those served first come first"""
        self.running: list[Job] = []
        """in the same order"""
        self._stats = stats
        self._backlog = backlog
        self._max_rows = max_rows
        self._prefill_tokens = prefill_tokens

    def add(self, job: Job) -> None:
        """Let a job wait."""
        insort(self.waiting, job, key=attrgetter("priority"))

    def admit(self) -> None:
        """Move jobs from waiting to running while there are rows and pages for them."""
        rows = sum(job.request.rows for job in self.running)
        while self.waiting:
            job = self.waiting[0]
            wanted: Counter[PagePool] = Counter()
            for lane in job.prompt.lanes:
                pool = lane.table.pool
                wanted[pool] += pool.pages_for(len(lane.tokens)) + job.request.rows
            crowded = any(pages > pool.available for pool, pages in wanted.items())
            if self.running and (crowded or rows + job.request.rows > self._max_rows):
                break
            del self.waiting[0]
            self._backlog.leave(job.request.load)
            insort(self.running, job, key=attrgetter("priority"))
            rows += job.request.rows
            job.end_phase("queue")
            for lane in job.prompt.lanes:
                found = 0 if lane.model.remote is not None else self._match(job, lane)
                if lane is job.prompt.base:
                    job.usage.cached_tokens = found

    def prefill(self) -> dict[Model, list[Turn]]:
        """Chunks of prompts, and of lanes that were preempted, within a token budget per model (padding counted)."""
        turns: dict[Model, list[Turn]] = {}
        widths: dict[Model, int] = {}
        first: dict[PagePool, Sequence] = {}
        for job, sequence in list(self._active()):
            filling = job.run is None or isinstance(job.op, Prefill)
            for lane in sequence.lanes if filling else sequence.due:
                pool, model = lane.table.pool, lane.model
                behind = first.setdefault(pool, sequence) is not sequence
                if lane.unstored <= 0 or (sequence.duet and job.run and lane.unstored <= CATCH_UP):
                    continue
                if not lane.table.pages:
                    # Behind other sequences a lane starts only when all of it fits: it would lose its pages again.
                    if behind and pool.pages_for(len(lane.tokens)) > pool.available:
                        continue
                    self._match(job, lane)
                start, planned = lane.table.length, turns.get(model, [])
                count = min(lane.unstored, self._prefill_tokens)
                width = max(widths.get(model, 0), count)
                if planned and (len(planned) + 1) * width > self._prefill_tokens:
                    continue
                if count > 0 and self._reserve(sequence, lane, start + count):
                    widths[model] = width
                    chunk = Chunk(lane.table, lane.tokens[start : start + count], lane.variant)
                    turns.setdefault(model, []).append(Turn(job, sequence, lane, chunk))
        return turns

    def decode(self) -> list[Turn]:
        """The turns of every sequence that can go on, those of one sequence together."""
        turns: list[Turn] = []
        for job, sequence in self._active():
            if job.run is None or isinstance(job.op, Prefill):
                continue
            if sequence.due[0].model.remote is not None:  # the base reads and writes elsewhere
                continue
            if all(self._ready(sequence, lane) for lane in sequence.due):
                for lane in sequence.due:
                    tokens = lane.pending
                    if sequence.duet is not None and lane is sequence.base:
                        tokens.extend(sequence.duet.draft)
                    turns.append(Turn(job, sequence, lane, Chunk(lane.table, tokens, lane.variant)))
        return turns

    def _ready(self, sequence: Sequence, lane: Lane) -> bool:
        """Whether the lane can read what is pending now; makes room for it."""
        room = len(lane.tokens)
        if lane.scores:
            room += sequence.plan.candidate_count
        if sequence.duet is None:
            return lane.unstored <= 0 and self._reserve(sequence, lane, room)
        if lane is sequence.base:
            room += len(sequence.duet.draft)
        return lane.unstored <= CATCH_UP and self._reserve(sequence, lane, room)

    def release(self, job: Job) -> None:
        """Forget a job, wherever it is, and free its pages."""
        job.free()
        if job in self.running:
            self.running.remove(job)
        elif job in self.waiting:
            self.waiting.remove(job)
            self._backlog.leave(job.request.load)

    def _active(self) -> Iterator[tuple[Job, Sequence]]:
        for job in self.running:
            for sequence in job.active:
                yield job, sequence

    def _match(self, job: Job, lane: Lane) -> int:
        """Take what the prefix cache has of the lane; its last token is always left to decode."""
        known = job.skippable(lane)
        found = lane.table.match(lane.tokens[:known])
        self._stats.prefix_queries += known
        self._stats.prefix_hits += found
        return found

    def _reserve(self, sequence: Sequence, lane: Lane, length: int) -> bool:
        """Make room for the lane up to `length`, taking pages from idle sequences and later ones if need be.

        Sequences are planned from the first on, so none that is planned already can lose its pages.
        """
        while True:
            try:
                lane.table.reserve(length)
                return True
            except OutOfPages:
                if not self.preempt(lane.table.pool, sequence):
                    return False

    def preempt(self, pool: PagePool, keep: Sequence | None = None) -> bool:
        """Take the pages of one sequence in `pool`, not those of `keep` and of earlier ones; False: no one is left."""
        victim = self._victim(keep, pool)
        if victim is None:
            return False
        job, loser = victim
        for lane in loser.lanes:
            if lane.table.pool is pool:
                lane.table.free()
        job.usage.preemptions += 1
        self._stats.preemptions += 1
        return True

    def _victim(self, keep: Sequence | None, pool: PagePool) -> tuple[Job, Sequence] | None:
        """The last sequence with pages that decodes nothing now, else the last active one after `keep`."""
        active = list(self._active())
        busy = {member for _, member in active if _holds(member, pool)} | {keep}
        for job in reversed(self.running):
            for member in reversed(job.prompt.family):
                if _holds(member, pool) and member not in busy:
                    return job, member
        for job, member in reversed(active):
            if member is keep:
                break
            if _holds(member, pool):
                return job, member
        return None


def _holds(sequence: Sequence, pool: PagePool) -> bool:
    return any(lane.table.pages and lane.table.pool is pool for lane in sequence.lanes)
