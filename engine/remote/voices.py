"""A remote base as one of two voices (nudging, weak-to-strong decoding): what it thinks at the ends of a text.

A duet asks for the base's best token and its probability after each token of a draft, and for the next token where the
base speaks. One call tells all of that from the best log-probabilities: those of the prompt's tokens where there is a
draft, and those of a few tokens that the base writes ahead, greedily, which are the answer as long as it goes on
speaking. Greedy answers alone come out as they would here.
"""

import logging
import math
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trimtab.engine.errors import RemoteError, TrimtabError
from trimtab.engine.job import Job
from trimtab.engine.program import Extend
from trimtab.engine.remote.base import RemoteBase
from trimtab.engine.remote.flights import Flight, Flights, reading
from trimtab.engine.remote.wire import Reply, Token
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.sequence import Sequence

logger = logging.getLogger(__name__)

_AHEAD = SamplingParams(temperature=0.0, ignore_eos=True, skip_special_tokens=False)
"""how the base writes ahead; an end of text is a token like any other, whose probability is told"""


@dataclass(frozen=True, slots=True)
class _Read:
    """What is known of the base's distributions along one text."""

    tokens: "array[int]"
    first: int
    """number of the token whose distribution `thoughts` begins with"""
    thoughts: tuple[Token, ...]
    """what stands at each place from there on, with what the base would have written"""

    def of(self, text: "array[int]", start: int) -> tuple[Token, ...] | None:
        """The distributions at places `start` to `len(text)`, the one behind it included; None: not all are known."""
        end = self.first + len(self.thoughts)
        if start < self.first or len(text) >= end or self.tokens[: len(text)] != text:
            return None
        return self.thoughts[start - self.first : len(text) - self.first + 1]


class RemoteVoices:
    """Readings of a remote base for the duets of all requests. Runs in the engine's thread."""

    def __init__(self, base: RemoteBase, flights: Flights) -> None:
        self._base = base
        self._flights = flights
        self._known: dict[Sequence, _Read] = {}

    def listen(self, jobs: Iterable[Job], fail: Callable[[Job, Exception], None]) -> dict[Sequence, tuple[Job, Tensor]]:
        """Logits (q, V) after the last accepted token of each duet whose base is due, and after those of its draft.

        What is not known is asked for and comes in a later tick; `fail` ends a request whose call failed. They are
        log-probabilities of the best tokens; the rest of the mass is spread evenly, so that no other is the likeliest.
        """
        heard: dict[Sequence, tuple[Job, Tensor]] = {}
        jobs = list(jobs)
        live = {each for job in jobs for each in job.prompt.family}
        for sequence in self._known.keys() - live:
            del self._known[sequence]
        for job in jobs:
            for sequence in listening(job):
                try:
                    thoughts = self._thoughts(job, sequence)
                    if thoughts is not None:
                        heard[sequence] = job, _rows(thoughts, sequence.base.model.runner.vocab_size)
                except Exception as error:  # of one call: it ends its own request, not its neighbours'
                    if not isinstance(error, TrimtabError):
                        logger.exception("a call to the remote base failed")
                    fail(job, error)
                    break
        return heard

    def _thoughts(self, job: Job, sequence: Sequence) -> tuple[Token, ...] | None:
        assert sequence.duet is not None
        text, start = sequence.tokens + array("q", sequence.duet.draft), len(sequence.tokens)
        flights = self._flights
        flight = flights.get(sequence)
        if flight is not None and flight.landed:
            flights.drop(sequence)
            if flight.error is not None:
                raise flight.error
            assert flight.reply is not None
            self._known[sequence] = _read(text, start, flight.reply)
            if self._known[sequence].of(text, start) is None:
                raise RemoteError("the remote base told nothing of what follows the text")
        known = self._known.get(sequence)
        thoughts = None if known is None else known.of(text, start)
        if thoughts is None and flights.get(sequence) is None:
            self._ask(job, sequence, text, drafted=len(text) > start)
        return thoughts

    def _ask(self, job: Job, sequence: Sequence, text: "array[int]", *, drafted: bool) -> None:
        chunk, top = self._base.settings.chunk, self._base.settings.top_logprobs
        ahead = max(1, min(chunk, sequence.limit - len(text)))
        ask = replace(
            reading(job, sequence, top),
            prompt=text,
            max_tokens=ahead,
            sampling=_AHEAD,
            logprobs=top,
            prompt_logprobs=top if drafted else None,
        )
        self._flights.send(Flight(job, [sequence], len(text), ahead, streamed=False), ask)


def listening(job: Job) -> list[Sequence]:
    """Duets under an Extend in which it is a remote base's turn."""
    if job.run is None or not isinstance(job.op, Extend):
        return []
    return [each for each in job.active if each.duet is not None and each.due[0].model.remote is not None]


def _read(text: "array[int]", start: int, reply: Reply) -> _Read:
    """What a call tells of the places from `start` on."""
    (written,) = reply.continuations
    drafted = reply.prompt[start:] if reply.prompt else ()
    thoughts = (*drafted, *written.tokens)
    ahead = array("q", (token.id for token in written.tokens))
    return _Read(text + ahead, start if drafted else len(text), thoughts)


def _rows(thoughts: tuple[Token, ...], size: int) -> Tensor:
    """Log-probabilities (q, V) that sum to one in each row."""
    rows = torch.empty(len(thoughts), size)
    for row, thought in zip(rows, thoughts, strict=True):
        known = dict(thought.top)
        if thought.logprob is not None:
            known[thought.id] = thought.logprob
        left = 1.0 - math.fsum(map(math.exp, known.values()))
        row.fill_(math.log(max(left, 1e-12) / max(1, size - len(known))))
        row[list(known)] = torch.tensor(list(known.values()))
    return rows
