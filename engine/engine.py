"""The engine: one tick after the other over all live requests, in one thread, knowing nothing of HTTP."""

import logging
from collections.abc import Mapping
from time import perf_counter

from trimtab.engine.errors import Cancelled, GuideError, TrimtabError
from trimtab.engine.job import Job, Request
from trimtab.engine.program import Answer, Context, Extend, Score
from trimtab.engine.results import Deliver, Delta, EngineStats, Event, Failure
from trimtab.engine.rewards import Pair, Reward
from trimtab.engine.runner import ModelRunner
from trimtab.engine.sampler import Draw, Sampler
from trimtab.engine.scheduler import Scheduler
from trimtab.engine.sequence import Sequence
from trimtab.engine.settings import EngineSettings

logger = logging.getLogger(__name__)

BASE = "base"
"""name of the base model in usage reports"""


class Engine:
    """Decodes all live requests in shared batches. Not thread-safe: one thread calls everything."""

    def __init__(
        self, runner: ModelRunner, rewards: Mapping[str, Reward], settings: EngineSettings, stats: EngineStats
    ) -> None:
        self.runner = runner
        self.rewards = rewards
        self.stats = stats
        self.scheduler = Scheduler(
            runner.pool, stats, max_rows=settings.max_rows, prefill_tokens=settings.prefill_tokens
        )
        self._sampler = Sampler()
        self._score_pairs = settings.score_pairs
        self._jobs: dict[object, Job] = {}
        self._ended: list[Job] = []

    @property
    def idle(self) -> bool:
        return not self._jobs

    def submit(self, request: Request) -> None:
        job = Job.of(request, self.runner.pool)
        self._jobs[request.handle] = job
        self.scheduler.waiting.append(job)

    def cancel(self, handle: object) -> None:
        """End a request now, whatever it is doing; unknown handles (already ended ones) are fine."""
        if handle in self._jobs:
            self._fail(self._jobs[handle], Cancelled("cancelled"))

    def tick(self) -> None:
        """Admit, prefill one budget of tokens, decode one token per row, score one batch per reward, deliver."""
        self.scheduler.admit()
        self._prefill()
        self._start_programs()
        self._decode()
        self._score()
        self.deliver()
        self._count()

    def fail_all(self, error: Exception) -> None:
        """End every request with `error`; the engine is empty afterwards."""
        for job in list(self._jobs.values()):
            self._fail(job, error)
        self.deliver()
        self._count()

    def deliver(self) -> None:
        """Hand what happened since the last delivery to the callers, in one call per distinct `deliver`."""
        batches: dict[Deliver, list[tuple[object, Event]]] = {}
        for job in [*self._jobs.values(), *self._ended]:
            if job.events:
                batch = batches.setdefault(job.request.deliver, [])
                batch.extend((job.request.handle, event) for event in job.events)
                job.events = []
        self._ended.clear()
        for send, batch in batches.items():
            send(batch)

    def _prefill(self) -> None:
        planned = self.scheduler.prefill()
        if not planned:
            return
        self.runner.prefill([chunk for _, chunk in planned])
        for (job, sequence), (table, tokens) in planned:
            table.stored(sequence.tokens, table.length + len(tokens))
            _charge(job, len(tokens))
            self.stats.prompt_tokens += len(tokens)

    def _start_programs(self) -> None:
        for job in list(self.scheduler.running):
            if job.run is None and job.prompt.unstored == 0:
                job.end_phase("prefill")
                job.run = job.request.program.run(Context(job.prompt, job.request.choices))
                self._resume(job, None)

    def _decode(self) -> None:
        planned = self.scheduler.decode()
        if not planned:
            return
        rows = [sequence for (_, sequence), _ in planned]
        draws = self._sampler.draw(rows, self.runner.decode([chunk for _, chunk in planned]))
        self.stats.steps += 1
        self.stats.decode_rows += len(rows)
        for ((job, sequence), _), draw in zip(planned, draws, strict=True):
            if job.request.handle not in self._jobs:  # another of its rows has just failed
                continue
            _charge(job, 1)
            sequence.table.stored(sequence.tokens, len(sequence.tokens))
            if draw.id < 0:
                self.runner.scrub(job.own_pages)
                self._fail(job, TrimtabError("the model gave no finite logit"))
            else:
                self._append(job, sequence, draw)
        for job in {id(job): job for (job, _), _ in planned}.values():
            if isinstance(job.op, Extend) and not job.targets and job.request.handle in self._jobs:
                self._resume(job, None)

    def _append(self, job: Job, sequence: Sequence, draw: Draw) -> None:
        """Add a drawn token to its sequence, see whether the sequence ends, and stream the text that is certain."""
        plan = sequence.plan
        sequence.tokens.append(draw.id)
        self.stats.generation_tokens += 1
        if draw.logprob is not None:
            sequence.logprobs.append(draw.logprob)
        text = ""
        stop_ids = plan.sampling.stop_token_ids
        if draw.id in plan.eos_ids or draw.id in stop_ids:
            sequence.finish = "stop"
            sequence.stop_reason = draw.id if draw.id in stop_ids else None
        else:
            text = sequence.text.push(draw.id)
            if sequence.text.stopped is not None:
                sequence.finish, sequence.stop_reason = "stop", sequence.text.stopped
        job.settle(sequence)
        if sequence.finish is not None:
            text += sequence.text.flush()
        if sequence.choice is not None:
            report = None if draw.logprob is None else (draw.logprob,)
            job.events.append(Delta(sequence.choice, text, (draw.id,), report))

    def _score(self) -> None:
        """One batch per reward guide over all requests that wait for it, in the order of their arrival."""
        waiting: dict[str, list[Job]] = {}
        for job in self.scheduler.running:
            if isinstance(job.op, Score):
                waiting.setdefault(job.op.reward, []).append(job)
        for name, jobs in waiting.items():
            self._score_shares(name, self._shares(jobs))

    def _score_shares(self, name: str, shares: list[tuple[Job, list[Pair]]]) -> None:
        """Score one batch; if that fails, one request at a time finds whose answer it is, and the others go on."""
        began = perf_counter()
        try:
            rewards = self.rewards[name].score([pair for _, pairs in shares for pair in pairs])
        except Exception as error:
            if len(shares) > 1:
                for share in shares:
                    self._score_shares(name, [share])
                return
            _add(self.stats.guide_errors, name, 1)
            if not isinstance(error, GuideError):
                logger.exception("guide %r failed", name)
                error = GuideError(name, type(error).__name__)
            self._fail(shares[0][0], error)
            return
        _add(self.stats.score_seconds, name, perf_counter() - began)
        _add(self.stats.score_batches, name, 1)
        _add(self.stats.score_items, name, len(rewards))
        for job, pairs in shares:
            assert isinstance(job.op, Score)
            job.rewards += rewards[: len(pairs)]
            rewards = rewards[len(pairs) :]
            _add(job.usage.forwards, name, 1)
            if len(job.rewards) == len(job.op.sequences):
                self._resume(job, job.rewards)

    def _shares(self, jobs: list[Job]) -> list[tuple[Job, list[Pair]]]:
        """Unscored answers of `jobs`, up to the batch limit."""
        shares: list[tuple[Job, list[Pair]]] = []
        room = self._score_pairs
        for job in jobs:
            assert isinstance(job.op, Score)
            left = job.op.sequences[len(job.rewards) :][:room]
            if left:
                shares.append((job, [Pair(job.request.messages, sequence.text.text) for sequence in left]))
                room -= len(left)
        return shares

    def _resume(self, job: Job, value: object) -> None:
        """Answer the program's op, and its next ones as long as they are done at once."""
        assert job.run is not None
        try:
            while True:
                if job.op is not None:
                    job.end_phase("decode" if isinstance(job.op, Extend) else "score")
                op = job.run.send(value)
                if not job.begin(op):
                    return
                value = [] if isinstance(op, Score) else None
        except StopIteration as stop:
            self._finish(job, stop.value)
        except Exception as error:  # a mistake in one program ends its own request, not its neighbours'
            if not isinstance(error, TrimtabError):
                logger.exception("the program of a request failed")
            self._fail(job, error)

    def _finish(self, job: Job, answer: Answer) -> None:
        result = job.result(answer)
        for index, (sequence, choice) in enumerate(zip(answer.choices, result.choices, strict=True)):
            if sequence.choice is None:
                job.events.append(Delta(index, choice.text, choice.token_ids, choice.logprobs))
        job.events.append(result)
        self._end(job)

    def _fail(self, job: Job, error: Exception) -> None:
        job.events.append(Failure(error))
        self._end(job)

    def _end(self, job: Job) -> None:
        self.scheduler.release(job)
        del self._jobs[job.request.handle]
        self._ended.append(job)
        if self.idle and self.runner.pool.used:
            logger.error("%d pages are still referred to, but no request is live", self.runner.pool.used)

    def _count(self) -> None:
        pool, stats = self.runner.pool, self.stats
        stats.running, stats.waiting = len(self.scheduler.running), len(self.scheduler.waiting)
        stats.rows = sum(len(job.targets) for job in self.scheduler.running)
        stats.pages_total, stats.pages_used, stats.pages_cached = pool.total, pool.used, pool.cached
        stats.forks = pool.forks


def _charge(job: Job, tokens: int) -> None:
    """Note one forward of the base over `tokens` of this job's tokens."""
    _add(job.usage.forwards, BASE, 1)
    _add(job.usage.model_tokens, BASE, tokens)


def _add(counter: dict[str, int] | dict[str, float], name: str, amount: float) -> None:
    counter[name] = counter.get(name, 0) + amount  # type: ignore[assignment]
