"""One request while it lives in the engine."""

from array import array
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from itertools import count
from time import monotonic
from typing import Any

from trimtab.engine.pages import PagePool, PageTable
from trimtab.engine.plan import SteerPlan
from trimtab.engine.program import Answer, Extend, Op, Program, Score
from trimtab.engine.results import Candidate, Choice, Deliver, Event, Result, Usage
from trimtab.engine.sequence import Sequence
from trimtab.engine.vocabulary import Message, TextStream


@dataclass(frozen=True, slots=True)
class Request:
    """What the engine is asked to do: everything is validated, the prompt is tokens."""

    handle: object
    deliver: Deliver
    prompt: "array[int]"
    messages: tuple[Message, ...]
    """the conversation as rewards see it"""
    program: Program
    plan: SteerPlan
    text: TextStream
    choices: int
    rows: int
    max_tokens: int
    salt: bytes = b""


@dataclass(eq=False)
class Job:
    """A request with its program's state. Made when the request arrives; the scheduler and the engine fill it."""

    request: Request
    prompt: Sequence
    arrived: float = field(default_factory=monotonic)
    run: Generator[Op, Any, Answer] | None = None
    """the running program; None until the prompt is stored"""
    op: Op | None = None
    targets: dict[Sequence, int] = field(default_factory=dict)
    """sequences that still decode under the current Extend, with the length at which each stops growing"""
    rewards: list[float] = field(default_factory=list)
    """rewards of the current Score so far"""
    phase_began: float = field(default_factory=monotonic)
    usage: Usage = field(default_factory=Usage)
    events: list[Event] = field(default_factory=list)
    """what the next delivery carries"""

    @classmethod
    def of(cls, request: Request, pool: PagePool) -> "Job":
        streams = count()
        prompt = Sequence(
            tokens=request.prompt,
            prompt_length=len(request.prompt),
            limit=len(request.prompt) + request.max_tokens,
            table=PageTable(pool, request.salt),
            plan=request.plan,
            text=request.text,
            streams=streams,
            stream=-1,
        )
        job = cls(request, prompt)
        job.usage.prompt_tokens = len(request.prompt)
        return job

    @property
    def active(self) -> list[Sequence]:
        """Sequences that need a forward: the prompt until it is stored, then those that the program extends."""
        return [self.prompt] if self.run is None else list(self.targets)

    @property
    def own_pages(self) -> list[int]:
        """Pages that no other request refers to."""
        held = Counter(page for sequence in self.prompt.family for page in sequence.table.pages)
        references = self.prompt.table.pool.references
        return [page for page, count in held.items() if references[page] == count]

    def end_phase(self, name: str) -> None:
        """Charge the time since the last phase ended to `name`."""
        now = monotonic()
        spent = self.usage.milliseconds
        spent[name] = spent.get(name, 0.0) + (now - self.phase_began) * 1e3
        self.phase_began = now

    def begin(self, op: Op) -> bool:
        """Start an op; whether it is already done."""
        self.op = op
        match op:
            case Extend(sequences, max_tokens):
                for sequence in sequences:
                    target = sequence.limit if max_tokens is None else len(sequence.tokens) + max_tokens
                    self.targets[sequence] = min(target, sequence.limit)
                    self.settle(sequence)
                return not self.targets
            case Score(sequences, _):
                self.rewards = []
                return not sequences

    def settle(self, sequence: Sequence) -> None:
        """Take the sequence out of the current Extend if it is finished or has grown enough."""
        if sequence.finish is None and len(sequence.tokens) >= sequence.limit:
            sequence.finish = "length"
        if sequence.finish is not None or len(sequence.tokens) >= self.targets[sequence]:
            del self.targets[sequence]

    def free(self) -> None:
        """Close the program and give back every page."""
        if self.run is not None:
            self.run.close()
        self.targets.clear()
        for sequence in self.prompt.family:
            sequence.table.free()

    def result(self, answer: Answer) -> Result:
        """The program's answer as the caller gets it."""
        place = {sequence: index for index, sequence in enumerate(answer.choices)}
        choices = tuple(
            Choice(
                text=sequence.text.text,
                token_ids=tuple(sequence.answer),
                finish_reason=sequence.finish or "length",
                stop_reason=sequence.stop_reason,
                logprobs=None if sequence.plan.sampling.logprobs is None else tuple(sequence.logprobs),
            )
            for sequence in answer.choices
        )
        candidates = tuple(
            Candidate(
                text=sequence.text.text,
                tokens=sequence.generated,
                finish_reason=sequence.finish or "length",
                reward=reward,
                choice=place.get(sequence),
            )
            for sequence, reward in answer.candidates
        )
        self.usage.completion_tokens = sum(len(choice.token_ids) for choice in choices)
        self.usage.milliseconds["total"] = (monotonic() - self.arrived) * 1e3
        return Result(choices, candidates, self.usage, self.request.plan.seed, "finished")
