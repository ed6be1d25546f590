"""Which sequences run in a tick: admission by rows and pages, chunked prefill, preemption by recomputation.

Jobs are served in the order of their arrival. When pages run out, the youngest sequences give theirs back and are
prefilled again later; full pages they gave back stay in the prefix cache until someone needs the room. The oldest
sequence can take every page, and no single sequence is larger than the pool, so every request ends.
"""

from collections import deque
from collections.abc import Iterator

from trimtab.engine.job import Job
from trimtab.engine.pages import OutOfPages, PagePool
from trimtab.engine.results import EngineStats
from trimtab.engine.runner import Chunk
from trimtab.engine.sequence import Sequence

Planned = tuple[Job, Sequence]


class Scheduler:
    """Waiting and running jobs of one engine and the page pool they share."""

    def __init__(self, pool: PagePool, stats: EngineStats, *, max_rows: int, prefill_tokens: int) -> None:
        self.pool = pool
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self._stats = stats
        self._max_rows = max_rows
        self._prefill_tokens = prefill_tokens

    def admit(self) -> None:
        """Move jobs from waiting to running while there are rows and pages for them."""
        rows = sum(job.request.rows for job in self.running)
        while self.waiting:
            job = self.waiting[0]
            pages = self.pool.pages_for(len(job.request.prompt)) + job.request.rows
            crowded = rows + job.request.rows > self._max_rows or pages > self.pool.available
            if self.running and crowded:
                break
            self.waiting.popleft()
            self.running.append(job)
            rows += job.request.rows
            job.end_phase("queue")
            job.usage.cached_tokens = self._match(job.prompt)

    def prefill(self) -> list[tuple[Planned, Chunk]]:
        """Chunks of prompts, and of sequences that were preempted, within the token budget (padding counted)."""
        chunks: list[tuple[Planned, Chunk]] = []
        width, older = 0, False
        for job, sequence in list(self._active()):
            if sequence.unstored == 0:
                older = True
                continue
            if not sequence.table.pages:
                # Behind older ones, a sequence starts only when all of it fits; else it would lose its pages again.
                if older and self.pool.pages_for(len(sequence.tokens)) > self.pool.available:
                    continue
                self._match(sequence)
            older = True
            start = sequence.table.length
            count = min(sequence.unstored, self._prefill_tokens)
            if chunks and (len(chunks) + 1) * max(width, count) > self._prefill_tokens:
                break
            if count and self._reserve(sequence, start + count):
                width = max(width, count)
                chunks.append(((job, sequence), (sequence.table, sequence.tokens[start : start + count])))
        return chunks

    def decode(self) -> list[tuple[Planned, Chunk]]:
        """The last token of every sequence that can decode, longest sequences first."""
        chunks: list[tuple[Planned, Chunk]] = []
        for job, sequence in self._active():
            if job.run is not None and sequence.unstored == 0 and self._reserve(sequence, len(sequence.tokens)):
                chunks.append(((job, sequence), (sequence.table, sequence.tokens[-1:])))
        return sorted(chunks, key=lambda chunk: -len(chunk[0][1].tokens))

    def release(self, job: Job) -> None:
        """Forget a job, wherever it is, and free its pages."""
        job.free()
        if job in self.running:
            self.running.remove(job)
        elif job in self.waiting:
            self.waiting.remove(job)

    def _active(self) -> Iterator[Planned]:
        for job in self.running:
            for sequence in job.active:
                yield job, sequence

    def _match(self, sequence: Sequence) -> int:
        """Take what the prefix cache has of the sequence; its last token is always left to decode."""
        found = sequence.table.match(sequence.tokens[:-1])
        self._stats.prefix_queries += len(sequence.tokens) - 1
        self._stats.prefix_hits += found
        return found

    def _reserve(self, sequence: Sequence, length: int) -> bool:
        """Make room for the sequence up to `length`, taking pages from idle and younger ones if need be.

        Sequences are planned from the oldest on, so none that is planned already can lose its pages.
        """
        while True:
            try:
                sequence.table.reserve(length)
                return True
            except OutOfPages:
                victim = self._victim(sequence)
                if victim is None:
                    return False
                job, loser = victim
                loser.table.free()
                job.usage.preemptions += 1
                self._stats.preemptions += 1

    def _victim(self, sequence: Sequence) -> Planned | None:
        """The youngest sequence with pages that decodes nothing now, else the youngest active one after `sequence`."""
        active = [planned for planned in self._active() if planned[1].table.pages]
        busy = {member for _, member in active} | {sequence}
        for job in reversed(self.running):
            for member in reversed(job.prompt.family):
                if member.table.pages and member not in busy:
                    return job, member
        last = active[-1] if active else None
        order = [member for _, member in self._active()]
        if last is None or order.index(last[1]) <= order.index(sequence):
            return None
        return last
