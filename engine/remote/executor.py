"""The ops of programs, carried out by a base that another server runs: the second executor beside the decode step.

An Extend is a call for completions of token ids; forks that stand alike are one call. What comes back is pushed token
by token as if it had been drawn here, so that stop strings, steps and limits mean the same; what a remote wrote behind
the end of a step is dropped. LogProbs are a reading of the tokens. Programs notice nothing.
"""

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import replace

from torch import Tensor

from trimtab.engine.errors import InvalidRequest, RemoteError, RemoteUnavailable, TrimtabError
from trimtab.engine.job import Job
from trimtab.engine.measure import Measure
from trimtab.engine.plan import BASE
from trimtab.engine.program import Extend, LogProbs
from trimtab.engine.remote.base import RemoteBase
from trimtab.engine.remote.flights import Flight, Flights, reading
from trimtab.engine.remote.voices import RemoteVoices, listening
from trimtab.engine.remote.wire import Ask, Token
from trimtab.engine.results import EngineStats, TokenLogprob, TokenTrace, add
from trimtab.engine.sampler import TRACE_TOP, Drawn
from trimtab.engine.sequence import Sequence

logger = logging.getLogger(__name__)

MOST_STOPS = 4
"""stop strings of one call; what they miss is cut here"""
TOGETHER = 32
"""continuations of one call at most: servers bound n"""


class RemoteExecutor:
    """Asks a remote base for what the live programs want of it. Runs in the engine's thread.

    `append` adds a token to its sequence, `resume` goes on with a program, `fail` ends a request, `alive` tells whether
    it has not ended.
    """

    def __init__(
        self,
        base: RemoteBase,
        stats: EngineStats,
        *,
        append: Callable[[Job, Sequence, Drawn], None],
        resume: Callable[[Job], None],
        fail: Callable[[Job, Exception], None],
        alive: Callable[[Job], bool],
        wake: Callable[[], None],
    ) -> None:
        self.base = base
        self.flights = Flights(base, wake)
        self._voices = RemoteVoices(base, self.flights)
        self._stats = stats
        self._append = append
        self._resume = resume
        self._fail = fail
        self._alive = alive

    def tick(self, jobs: Iterable[Job]) -> None:
        """Take in what has come, go on with whom that is enough for, and send what is wanted next."""
        for flight in self.flights.land():
            self._charge(flight)
        jobs = list(jobs)
        self.flights.sweep(each for job in jobs for each in job.prompt.family)
        for job in jobs:
            while self._alive(job) and self._goes_on(job):
                self._resume(job)

    def heard(self, jobs: Iterable[Job]) -> dict[Sequence, tuple[Job, Tensor]]:
        """Logits (q, V) of the base for the duets whose turn of the base can go on; see `RemoteVoices`."""
        return self._voices.listen(jobs, self._fail)

    def answers(self, job: Job) -> bool:
        """Whether the job's op is this executor's and nobody else's."""
        return isinstance(job.op, LogProbs) and job.op.model == BASE

    def waits(self, job: Job) -> bool:
        """Whether nothing can go on with a job before something comes."""
        wanted = _wanted(job)
        return bool(wanted) and all(not _due(self.flights.get(each)) for each in wanted)

    def forget(self, job: Job) -> None:
        """Give up what is under way for a request that has ended, or is to end; what it cost so far is charged."""
        for flight in self.flights.of(job):
            self._charge(flight)
        self.flights.forget(job)

    def _goes_on(self, job: Job) -> bool:
        """Use what has come for a job and send what it lacks; whether its op is done."""
        try:
            if job.run is None:
                self._read_prompt(job)
                return False
            if self.answers(job):
                return self._read(job)
            return isinstance(job.op, Extend) and self._extend(job)
        except Exception as error:  # of one call: it ends its own request, not its neighbours'
            if not isinstance(error, TrimtabError):
                logger.exception("a call to the remote base failed")
            self._fail(job, error)
        return False

    def _extend(self, job: Job) -> bool:
        """Let the sequences under an Extend grow; whether that is done."""
        assert isinstance(job.op, Extend)
        if job.op.first:
            self._grow_evenly(job)
        else:
            for sequence in _writing(job):
                self._take(job, sequence)
        if job.targets and self._alive(job):
            self._send(job, [each for each in _writing(job) if self.flights.get(each) is None])
        return not job.targets

    def _grow_evenly(self, job: Job) -> None:
        """Push a token to each sequence as long as all have one: who is first does not depend on whose call was."""
        while job.targets and self._alive(job):
            writing = _writing(job)
            flights = [self.flights.get(each) for each in writing]
            if any(flight is None or not flight.ready(each) for flight, each in zip(flights, writing, strict=True)):
                return
            for sequence in writing:
                self._take(job, sequence, 1)

    def _take(self, job: Job, sequence: Sequence, most: int | None = None) -> None:
        """Push what has come for a sequence, as far as it is wanted, and `most` tokens at most."""
        flight = self.flights.get(sequence)
        if flight is None or not self._alive(job):
            return
        assert isinstance(job.op, Extend)
        index, pushed = flight.sequences.index(sequence), 0
        if not flight.fits(index):  # it was cut back, or written to, since
            self._drop(sequence, flight)
            return
        while pushed != most and (token := flight.next(index)) is not None:
            pushed += 1
            flight.taken[index] += 1
            self._append(job, sequence, _drawn(sequence, token))
            job.settle(sequence)
            # Where the first to finish ends the op, the others keep what has come for when they go on.
            if sequence.finish is not None or not (job.op.first or sequence in job.targets):
                self._drop(sequence, flight)
                return
        if flight.landed and flight.next(index) is None and sequence in job.targets:
            self.flights.drop(sequence)
            self._ended(job, sequence, flight, index)

    def _ended(self, job: Job, sequence: Sequence, flight: Flight, index: int) -> None:
        """All of a continuation was taken, and the sequence wants more."""
        if flight.error is not None:
            broken = isinstance(flight.error, RemoteUnavailable) and any(flight.taken)
            if broken and not _counts_answer(sequence):
                return  # a stream that broke off: what has come stands, and the next call goes on behind it
            raise flight.error
        assert flight.reply is not None
        ending = flight.reply.continuations[index]
        ends = sequence.plan.eos_ids
        if ending.finish == "stop" and ending.stop_reason is None and ends:
            self._append(job, sequence, _drawn(sequence, Token(min(ends), math.nan)))
            job.settle(sequence)
        elif not flight.taken[index]:
            raise RemoteError(f"the remote base wrote none of {flight.wanted} tokens: its context may be too short")

    def _send(self, job: Job, sequences: list[Sequence]) -> None:
        """Call for the rest of what sequences are to grow by; those that stand alike are one call."""
        if job.overspent is not None:  # the next tick ends the request
            return
        alone = not self.base.capabilities.many
        groups: list[list[Sequence]] = []
        for sequence in sorted(sequences, key=lambda each: each.stream):
            last = groups[-1] if groups and not alone else None
            if last is not None and len(last) < TOGETHER and self._alike(job, last[-1], sequence):
                last.append(sequence)
            else:
                groups.append([sequence])
        budget = job.request.budget
        most = None
        if budget.max_model_tokens is not None and sequences:
            unread = 0 if BASE in job.usage.forwards else job.prompt.prompt_length
            left = budget.max_model_tokens - sum(job.usage.model_tokens.values()) - unread
            most = max(1, left // len(sequences))
        for group in groups:
            first = group[0]
            wanted = job.targets[first] - len(first.tokens)
            if most is not None:
                wanted = min(wanted, most)
            # Where time may run out, what was written until then counts, so that all of it is heard as it comes.
            streamed = first.choice is not None or budget.deadline_ms is not None
            flight = Flight(job, group, len(first.tokens), wanted, streamed)
            self.flights.send(flight, self._ask(job, first, wanted, len(group)))

    def _alike(self, job: Job, one: Sequence, other: Sequence) -> bool:
        """Whether the second can be another continuation of a call for the first."""
        neighbours = other.stream == one.stream + 1 or not self.base.capabilities.streams
        same = one.plan is other.plan and (one.choice is None) == (other.choice is None)
        return neighbours and same and job.targets[one] == job.targets[other] and one.tokens == other.tokens

    def _ask(self, job: Job, sequence: Sequence, wanted: int, n: int) -> Ask:
        plan = sequence.plan
        sampling = plan.sampling
        until = job.op.until if isinstance(job.op, Extend) else None
        steps = () if until is None else (*until.strings, *until.endings)
        # A server that cuts its text before a stop string cannot be asked for one: texts are cut here in any case.
        stops = tuple(dict.fromkeys((*sampling.stop, *steps)))
        told = [0] if plan.measured else []
        told += [] if sampling.logprobs is None else [sampling.logprobs]
        told += [TRACE_TOP] if plan.trace else []
        return replace(
            reading(job, sequence),
            max_tokens=wanted,
            sampling=sampling,
            seed=plan.seed,
            stream=sequence.stream,
            n=n,
            stop=stops[:MOST_STOPS] if self.base.capabilities.include_stop else (),
            stop_token_ids=sampling.stop_token_ids,
            min_tokens=max(0, min(wanted, sampling.min_tokens - sequence.generated)),
            logprobs=max(told, default=None),
            prompt_logprobs=None,
        )

    def _read(self, job: Job) -> bool:
        """Log-probabilities of answers under the base; whether all are known."""
        assert isinstance(job.op, LogProbs)
        if self.base.capabilities.prompt_logprobs < 0:
            raise InvalidRequest(
                f"{job.request.strategy} reads log-probabilities of what is written, and the server that runs the base "
                "does not tell them: use another strategy, or load the base here",
                param="decoding.strategy",
            )
        done = [self._tokens_of(job, each) for each in job.op.sequences]
        if any(each is None for each in done):
            return False
        starts = job.op.start
        for index, (sequence, tokens) in enumerate(zip(job.op.sequences, done, strict=True)):
            assert tokens is not None
            self.flights.drop(sequence)
            start = starts if isinstance(starts, int) else starts[index]
            job.logprobs.append([_known(token) for token in tokens[sequence.prompt_length + start :]])
        return True

    def _read_prompt(self, job: Job) -> None:
        """Log-probabilities of the prompt, where the request wants to be told them."""
        known = job.reading
        if known is None or known.complete:
            return
        tokens = self._tokens_of(job, job.prompt, known.top)
        if tokens is not None:
            self.flights.drop(job.prompt)
            known.found.extend(TokenLogprob(each.id, _known(each), each.top[: known.top]) for each in tokens[1:])

    def _tokens_of(self, job: Job, sequence: Sequence, top: int = 0) -> tuple[Token, ...] | None:
        """What the base thinks of a sequence's tokens; None: it was asked."""
        flight = self.flights.get(sequence)
        if flight is None:
            flight = Flight(job, [sequence], len(sequence.tokens), 0, streamed=False)
            self.flights.send(flight, reading(job, sequence, top))
        if flight.error is not None:
            raise flight.error
        return None if flight.reply is None else flight.reply.prompt

    def _charge(self, flight: Flight) -> None:
        """Note what a call has had the server do so far.

        Where it is given up before its end nobody tells what was cached: all but what the request has not sent before.
        """
        job, read = flight.job, 0
        if not self._alive(job):  # what it cost is told
            return
        if flight.charged < 0:
            first = BASE not in job.usage.forwards
            known = flight.length - 1 if flight.reply is None and not first else 0
            cached = known if flight.reply is None else flight.reply.cached
            read = max(0, flight.length - cached)
            if first:
                job.usage.cached_tokens = cached
            add(job.usage.forwards, BASE, 1)
            self._stats.prompt_tokens += read
            self._stats.steps += 1
            flight.charged = 0
        written = sum(map(len, flight.come))
        add(job.usage.model_tokens, BASE, read + written - flight.charged)
        add(self._stats.model_tokens, BASE, read + written - flight.charged)
        flight.charged = written

    def _drop(self, sequence: Sequence, flight: Flight) -> None:
        """Nothing more is wanted of a call for one of its sequences."""
        self._charge(flight)
        self.flights.drop(sequence)


def _writing(job: Job) -> list[Sequence]:
    """Sequences under an Extend that the base writes alone."""
    return [each for each in job.active if each.duet is None and each.due[0].model.remote is not None]


def _wanted(job: Job) -> list[Sequence]:
    """Sequences that a job waits for the remote base to write or to read."""
    if job.run is None:
        return [] if job.reading is None or job.reading.complete else [job.prompt]
    if isinstance(job.op, LogProbs) and job.op.model == BASE:
        return list(job.op.sequences)
    return [*_writing(job), *listening(job)] if isinstance(job.op, Extend) else []


def _due(flight: Flight | None) -> bool:
    """Whether a tick would do something with a flight, or for want of one."""
    return flight is None or flight.landed


def _counts_answer(sequence: Sequence) -> bool:
    """Whether penalties count the answer's tokens, which stand in the prompt of every call but the first."""
    sampling = sequence.plan.sampling
    return bool(sampling.presence_penalty or sampling.frequency_penalty)


def _known(token: Token) -> float:
    if token.logprob is None:
        raise RemoteError("the remote base left out a log-probability that it was asked for")
    return token.logprob


def _drawn(sequence: Sequence, token: Token) -> Drawn:
    """A token of the remote base, with as much as can be known of its distribution."""
    plan, wanted = sequence.plan, sequence.plan.sampling.logprobs
    if wanted is None and not plan.measured and not plan.trace:
        return Drawn(token.id)
    logprob = _known(token)
    given = plan.drawn_as_given
    return Drawn(
        token.id,
        None if wanted is None else TokenLogprob(token.id, logprob, token.top[:wanted]),
        Measure(logprob if given else math.nan, logprob, 0.0 if given else math.nan, changed=False),
        TokenTrace(
            token.id,
            "base",
            logprob,
            logprob if given else None,
            entropy=None,
            entropy_base=None,
            kl=0.0 if given else None,
            top_base=token.top[:TRACE_TOP],
        )
        if plan.trace
        else None,
    )
