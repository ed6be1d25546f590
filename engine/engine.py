"""The engine: one tick after the other over all live requests, in one thread, knowing nothing of HTTP."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import fsum

from trimtab.engine.backlog import Backlog
from trimtab.engine.budget import Interrupted
from trimtab.engine.circuit import Circuits
from trimtab.engine.duets import Duets
from trimtab.engine.errors import Cancelled, Draining, GuideError, Overloaded, TrimtabError
from trimtab.engine.guides.base import Guide
from trimtab.engine.job import Job
from trimtab.engine.measure import Measure
from trimtab.engine.model import Model
from trimtab.engine.outputs import Outputs
from trimtab.engine.plan import BASE
from trimtab.engine.program import Answer, Extend, Prefill, Propose
from trimtab.engine.prompt_logprobs import fill
from trimtab.engine.rating import Rating
from trimtab.engine.reader import Reader
from trimtab.engine.remote.executor import RemoteExecutor
from trimtab.engine.request import Request
from trimtab.engine.results import Deliver, Delta, EngineStats, Event, Failure, add
from trimtab.engine.rewards import Reward
from trimtab.engine.sampler import Drawn, Sampler, compile_sampler, warm_sampler
from trimtab.engine.scheduler import Scheduler
from trimtab.engine.scoring import Scoring
from trimtab.engine.sequence import Sequence
from trimtab.engine.settings import EngineSettings
from trimtab.engine.weighing import Weighing
from trimtab.kernels.backend import Backend

logger = logging.getLogger(__name__)


class Engine:
    """Decodes all live requests in shared batches. Not thread-safe: one thread calls everything."""

    def __init__(
        self,
        models: Mapping[str, Model],
        guides: Mapping[str, Guide],
        rewards: Mapping[str, Reward],
        settings: EngineSettings,
        stats: EngineStats,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        """`wake` is called from any thread when what the engine waits for has come, so that a tick goes on with it."""
        self.runner = models[BASE].runner
        self.stats = stats
        self.backlog = Backlog(settings)
        self.circuits = Circuits(settings.guide_failures, settings.guide_retry_after, stats.guide_circuit)
        self.scheduler = Scheduler(
            stats, self.backlog, max_rows=settings.max_rows, prefill_tokens=settings.prefill_tokens
        )
        compiled = settings.compile and self.runner.device.type == "cpu"
        if compiled:
            compile_sampler(self.runner.vocab_size)
        elif self.runner.device.type == "cuda":
            warm_sampler(self.runner.vocab_size, self.runner.dtype, self.runner.device)
        self._backend: Backend = "compiled" if compiled else "auto"
        self.scoring = Scoring(
            self.scheduler,
            settings,
            stats,
            self.backlog,
            self.circuits,
            resume=self._resume,
            fail=self._fail,
            wake=wake,
        )
        self._duets = Duets(alive=self._lives, append=self._append, fail=self._fail_row)
        self._weighing = Weighing(
            alive=self._lives, append=self._append, resume=self._resume, fail=self._fail, fail_row=self._fail_row
        )
        self._remote: RemoteExecutor | None = None
        if (base := models[BASE].remote) is not None:
            self._remote = RemoteExecutor(
                base,
                stats,
                append=self._append,
                resume=self._resume,
                fail=self._fail,
                alive=self._lives,
                wake=wake,
            )
        self._worked = False
        """whether the tick has computed something, or made room"""
        self._jobs: dict[object, Job] = {}
        self._ended: list[Job] = []
        self.adopt(models, guides, rewards)

    @property
    def idle(self) -> bool:
        return not self._jobs and not self.scoring.ratings

    @property
    def rests(self) -> bool:
        """Whether a tick has nothing to do before other servers answer."""
        if self._worked or not all(map(self.scoring.waits, self.scoring.ratings)):
            return False
        return all(
            self.scoring.waits(job) or (self._remote is not None and self._remote.waits(job))
            for job in self.scheduler.running
        )

    def adopt(self, models: Mapping[str, Model], guides: Mapping[str, Guide], rewards: Mapping[str, Reward]) -> None:
        """Run these from now on; what is gone must not be in use."""
        self.models, self.guides = models, guides
        for model in models.values():
            model.runner.pool.unpin()  # prefixes under a guide that is gone
        self._reader = Reader(guides)
        self._sampler = Sampler(guides, self._backend)
        self.scoring.adopt(self._reader, guides, rewards)

    def uses(self, guide: str) -> int:
        """How many live requests need a guide."""
        jobs = sum(guide in job.request.guides for job in self._jobs.values())
        return jobs + sum(rating.reward == guide for rating in self.scoring.ratings)

    def submit(self, request: Request) -> None:
        """Queue a request; it ends at once if a guide was unloaded or replaced since it was prepared."""
        if self.idle:
            self.backlog.restart()
        for name, guide in request.guides.items():
            if guide not in (self.guides.get(name), self.scoring.rewards.get(name)):
                self.backlog.leave(request.load)
                request.deliver([(request.handle, Failure(_gone(name)))])
                return
        job = self._jobs[request.handle] = Job.of(request, self.models)
        self.scheduler.add(job)

    def rate(self, rating: Rating) -> None:
        """Queue answers to be scored."""
        if self.idle:
            self.backlog.restart()
        if rating.reward not in self.scoring.rewards:
            rating.fail(_gone(rating.reward))
        self.scoring.ratings.append(rating)

    def cancel(self, handle: object) -> None:
        """End a request now, whatever it is doing; unknown handles (already ended ones) are fine."""
        if handle in self._jobs:
            self._fail(self._jobs[handle], Cancelled("cancelled"))

    def tick(self) -> None:
        """Admit, prefill one budget of tokens, decode one token per row, score one batch per reward, deliver."""
        self._worked = False
        self._enforce_budgets()
        self.scheduler.admit()
        self._prefill()
        self._start_programs()
        running = self.scheduler.running
        if self._remote is not None:
            self._remote.tick(running)
        self._decode()
        self.scoring.tick([job for job in running if self._remote is None or not self._remote.answers(job)])
        self._weighing.draw(running, self._sampler)
        self.deliver()
        self._count()

    def fail_all(self, error: Exception) -> None:
        """End every request with `error`; the engine is empty afterwards."""
        for job in list(self._jobs.values()):
            self._fail(job, error)
        self._fail_ratings(error)
        self.deliver()
        self._count()

    def interrupt_all(self) -> None:
        """End every request soon: searches with the best that they have, all others with Draining."""
        for job in [each for each in self._jobs.values() if each.interrupted is None]:
            if job.has_best:
                self._interrupt(job, "shutdown")
            else:
                self._fail(job, Draining())
        self._fail_ratings(Draining())

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
        broken: dict[Job, GuideError | None] = {}
        for model, turns in self.scheduler.prefill().items():
            self._worked = True
            try:
                broken |= dict.fromkeys(fill(model.runner, turns, self.stats))
            except Exception as error:
                if model.name == BASE:
                    raise
                logger.exception("guide %r failed in a forward", model.name)
                broken |= dict.fromkeys((turn.job for turn in turns), GuideError(model.name, type(error).__name__))
        for job, guilty in broken.items():
            self._fail_row(job, guilty)

    def _start_programs(self) -> None:
        """Start those whose prompt is stored, and go on with those that have waited for other prompts."""
        for job in list(self.scheduler.running):
            unread = self._remote is not None and job.reading is not None and not job.reading.complete
            if job.run is None and job.prompt.stored and not unread:
                job.end_phase("prefill")
                job.prompt.table.pin(job.request.pinned)
                job.tell_prompt()
                job.run = job.request.program.run(job.context(self.models))
                self._resume(job)
            elif isinstance(job.op, Prefill) and job.filled:
                self._resume(job)

    def _enforce_budgets(self) -> None:
        """End the programs of requests that have spent what they may."""
        for job in [*self.scheduler.running, *self.scheduler.waiting]:
            if job.interrupted is None and (reason := job.overspent) is not None:
                self._interrupt(job, reason)

    def _interrupt(self, job: Job, reason: str) -> None:
        """Let a request end with the best that it has, wherever it is."""
        if job.op is not None or job.run is None:
            job.end_phase(job.phase)
        if self._remote is not None:
            self._remote.forget(job)
        if job.run is not None:
            job.run.close()
        else:
            job.tell_prompt()
        job.targets.clear()
        job.draws.clear()
        job.op, job.interrupted = None, reason
        job.run = job.request.program.interrupted(job.context(self.models), reason)
        self._resume(job)

    def _decode(self) -> None:
        turns = self.scheduler.decode()
        elsewhere = {} if self._remote is None else self._remote.heard(self.scheduler.running)
        if not turns and not elsewhere:
            return
        self._worked = True
        self.stats.steps += 1
        outputs = self._reader.read(turns)
        jobs = {turn.sequence: turn.job for turn in turns}
        for sequence, (job, rows) in elsewhere.items():
            outputs.add_remote(sequence.base, rows)
            jobs[sequence] = job
        self.stats.rows_per_step.add(len(jobs))
        self.stats.strategies_per_step.add(len({job.request.strategy for job in jobs.values()}))
        speaking: list[Sequence] = []
        drafting: list[Sequence] = []
        proposing: list[Sequence] = []
        sure: dict[Sequence, Measure] = {}
        for sequence, job in jobs.items():
            if sequence.duet is None:
                for lane in sequence.due:
                    if not lane.scores:
                        lane.table.stored(lane.tokens, len(lane.tokens))
                (proposing if isinstance(job.op, Propose) else speaking).append(sequence)
            elif sequence.duet.speaker == "guide":
                drafting.append(sequence)
            elif (heard := self._duets.listen(job, sequence, outputs)) is not None:
                speaking.append(sequence)
                sure[sequence] = heard
        if speaking:
            self._speak(speaking, jobs, outputs, sure)
        if proposing:
            self._weighing.propose(proposing, jobs, outputs, self._sampler, self._reader.score)
        self._duets.draft(drafting, jobs, outputs, self._sampler)
        for turn in turns:
            count = len(turn.chunk.tokens)
            if not turn.lane.scores or turn.lane in self._reader.asked:
                turn.job.charge(turn.lane, count + len(self._reader.asked.get(turn.lane, ())), self.stats)
        for job in dict.fromkeys(jobs.values()):
            if isinstance(job.op, Extend | Propose) and not job.targets and job.request.handle in self._jobs:
                self._resume(job)

    def _speak(
        self, rows: list[Sequence], jobs: Mapping[Sequence, Job], outputs: Outputs, sure: Mapping[Sequence, Measure]
    ) -> None:
        """Draw the next token of each sequence, as its plan steers it, from the model that speaks.

        `sure` holds what there is to measure of the base's most likely token, of duets.
        """
        rows.sort(key=lambda row: -len(row.tokens))  # as the forward read them: then the logits need no copy
        groups: dict[object, list[Sequence]] = {}
        for row in rows:
            groups.setdefault((row.speaker.model, id(row.speaker.translation)), []).append(row)
        for key, group in groups.items():
            logits = outputs.logits([row.speaker for row in group])
            translation = group[0].speaker.translation
            logits = logits if translation is None else translation.logits(logits)
            draws = self._sampler.draw(group, logits, outputs, self._reader.score, group=key)
            self._take(group, draws, jobs, sure)
        self._reader.keep([row for row in rows if jobs[row].request.handle in self._jobs])

    def _take(
        self, rows: list[Sequence], draws: list[Drawn], jobs: Mapping[Sequence, Job], sure: Mapping[Sequence, Measure]
    ) -> None:
        """Add drawn tokens to their sequences, and settle what that means for their ops."""
        for sequence, draw in zip(rows, draws, strict=True):
            job = jobs[sequence]
            if job.request.handle not in self._jobs:  # another of its rows has just failed
                continue
            if draw.measure is not None and sequence.speaker is not sequence.base:  # the base has not read it yet
                draw = replace(draw, measure=replace(draw.measure, kl=math.nan, changed=True))
            if draw.error is not None or draw.id < 0:
                self._fail_row(job, draw.error or _silent(sequence))
                continue
            if not self.circuits.quiet:
                self.circuits.succeeded(sequence.plan.guides)
            if draw.measure is not None and job.step_ends_before(sequence, draw.measure.base_entropy):
                job.targets.pop(sequence, None)
            elif sequence.duet is None or sequence.duet.take(draw.id):
                if sequence in sure and draw.measure is None:  # a greedy duet: what was heard is all there is
                    draw = replace(draw, measure=sure[sequence])
                self._append(job, sequence, draw)
                job.settle(sequence)
            if sequence.duet is not None:
                self._duets.settle(job, sequence)

    def _append(self, job: Job, sequence: Sequence, draw: Drawn) -> None:
        """Add a token to its sequence, see whether the sequence ends, and stream the text that is certain."""
        text = sequence.push(draw.id)
        self.stats.generation_tokens += 1
        if draw.logprob is not None:
            sequence.logprobs.append(draw.logprob)
        if draw.measure is not None:
            sequence.measures.append(draw.measure)
        if draw.trace is not None:
            sequence.trace.append(draw.trace)
        max_kl = job.request.budget.max_kl
        if max_kl is not None and sequence.finish is None and fsum(each.kl for each in sequence.measures) >= max_kl:
            sequence.finish, sequence.capped = "length", True
            text += sequence.text.flush()
        if sequence.choice is not None:
            logprobs = None if draw.logprob is None else (draw.logprob,)
            trace = None if draw.trace is None else (draw.trace,)
            job.events.append(Delta(sequence.choice, text, (draw.id,), logprobs, trace=trace))

    def _lives(self, job: Job) -> bool:
        return job.request.handle in self._jobs

    def _resume(self, job: Job) -> None:
        """Answer the program's op, and its next ones as long as they are done at once."""
        try:
            answer = self._advance(job)
            if answer is not None:
                self._finish(job, answer)
        except Interrupted as enough:
            self._interrupt(job, enough.reason)
        except Exception as error:  # a mistake in one program ends its own request, not its neighbours'
            if not isinstance(error, TrimtabError):
                logger.exception("the program of a request failed")
            self._fail(job, error)

    def _advance(self, job: Job) -> Answer | None:
        """Run the program up to an op that takes time, or to its answer."""
        assert job.run is not None
        while True:
            if job.op is not None:
                job.end_phase(job.phase)
            try:
                op = job.run.send(job.reply)
            except StopIteration as stop:
                answer: Answer = stop.value
                return answer
            finally:
                job.phases.end("select")
            if job.request.progress and job.op is not None:
                job.events.append(job.progress)
            if not job.begin(op):
                return None

    def _finish(self, job: Job, answer: Answer) -> None:
        streamed = [sequence.text.text for sequence in answer.choices]
        result = job.result(answer)
        for index, (sequence, choice) in enumerate(zip(answer.choices, result.choices, strict=True)):
            if sequence.choice is None:
                job.commit(index, sequence, sequence.generated, last=True)
            elif sequence.finish is None and (held := choice.text[len(streamed[index]) :]):
                job.events.append(Delta(index, held, (), None))
        job.events.append(result)
        self._end(job)

    def _fail_row(self, job: Job, error: Exception | None) -> None:
        """End a request whose numbers are not finite, and clear the pages that may hold them."""
        if isinstance(error, GuideError):
            add(self.stats.guide_errors, error.guide, 1)
            hidden = job.request.plan.hidden
            if hidden is None or hidden.guide != error.guide:  # how far it moves is the caller's choice
                self.circuits.failed(error.guide, job)
        for model in {lane.model for lane in job.prompt.lanes}:
            model.runner.scrub(job.own_pages(model.runner.pool))
        self._fail(job, error or TrimtabError("the model gave no finite logit"))

    def _fail(self, job: Job, error: Exception) -> None:
        job.end_phase(job.phase)
        job.events.append(Failure(error, job.usage))
        self._end(job)

    def _end(self, job: Job) -> None:
        if self._remote is not None:
            self._remote.forget(job)
        self._worked = True
        self.scheduler.release(job)
        job.usage.phases = job.phases.told
        del self._jobs[job.request.handle]
        self._ended.append(job)
        for model in self.models.values() if self.idle else ():
            if model.runner.pool.used:
                logger.error("%d pages of %s are still referred to by nobody", model.runner.pool.used, model.name)

    def _fail_ratings(self, error: Exception) -> None:
        for rating in self.scoring.ratings:
            rating.fail(error)
        self.scoring.sweep()

    def _count(self) -> None:
        self.backlog.note()
        pool, stats = self.runner.pool, self.stats
        stats.running, stats.waiting = len(self.scheduler.running), len(self.scheduler.waiting)
        stats.rows = sum(len(job.targets) for job in self.scheduler.running)
        stats.pages_total, stats.pages_used, stats.pages_cached = pool.total, pool.used, pool.cached
        stats.pages_pinned, stats.forks = pool.pinned, pool.forks


def _silent(sequence: Sequence) -> GuideError | None:
    """The error of a guide that speaks alone and has nothing to say."""
    name = sequence.speaker.name
    return None if name == BASE else GuideError(name, "gave no finite logit")


def _gone(guide: str) -> Overloaded:
    return Overloaded(f"guide {guide!r} was unloaded or replaced while the request came in: send it again")
