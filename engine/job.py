"""One request while it lives in the engine."""

from array import array
from collections import Counter
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from itertools import count
from time import monotonic
from typing import Any, NamedTuple

from torch import Tensor

from trimtab.engine.alignment import Translation
from trimtab.engine.duet import Duet
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.lane import Lane
from trimtab.engine.model import Model
from trimtab.engine.pages import PagePool
from trimtab.engine.plan import BASE, LanePlan, SteerPlan
from trimtab.engine.program import Answer, Draw, Extend, Op, Program, Propose, Score
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
    translations: Mapping[str, Translation | None] = field(default_factory=dict)
    """of the base's ids, per lane name; filled for guides that number their tokens differently"""
    salt: bytes = b""
    """requests share cached prefixes only with requests of the same salt"""


class Weighed(NamedTuple):
    """What one token is drawn from, as a program weighs it."""

    scores: Mapping[int, float]
    """tokens that are not in it cannot be drawn"""
    reference: Tensor  # (V,) the base's logits
    values: dict[str, dict[int, float]]
    """per guide, for the trace"""


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
    """sequences that still need a forward for the current op; under Extend, the length at which each stops growing"""
    rewards: list[float] = field(default_factory=list)
    """rewards of the current Score so far"""
    proposals: dict[Sequence, tuple[dict[int, float], Tensor]] = field(default_factory=dict)
    """answers to the last Propose, each with the base's logits (V,), until their tokens are drawn"""
    draws: dict[Sequence, Weighed] = field(default_factory=dict)
    """what the current Draw draws from"""
    phase_began: float = field(default_factory=monotonic)
    usage: Usage = field(default_factory=Usage)
    events: list[Event] = field(default_factory=list)
    """what the next delivery carries"""

    @classmethod
    def of(cls, request: Request, models: Mapping[str, Model]) -> "Job":
        plan = request.plan
        own = LanePlan(BASE, BASE, request.prompt, plan.variant)
        lanes = [
            Lane.of(each, models[each.model], request.translations.get(each.name), request.salt)
            for each in (own, *plan.lanes)
        ]
        prompt = Sequence(
            lanes=lanes,
            prompt_length=len(request.prompt),
            limit=len(request.prompt) + request.max_tokens,
            plan=plan,
            text=request.text,
            streams=count(),
            stream=-1,
            duet=None if plan.gate is None else _duet(plan, lanes),
        )
        job = cls(request, prompt)
        job.usage.prompt_tokens = len(request.prompt)
        return job

    @property
    def active(self) -> list[Sequence]:
        """Sequences that need a forward: the prompt until it is stored, then those that the program extends."""
        return [self.prompt] if self.run is None else list(self.targets)

    def own_pages(self, pool: PagePool) -> list[int]:
        """Pages of `pool` that no other request refers to."""
        lanes = (lane for sequence in self.prompt.family for lane in sequence.lanes)
        held = Counter(page for lane in lanes if lane.table.pool is pool for page in lane.table.pages)
        return [page for page, count in held.items() if pool.references[page] == count]

    def end_phase(self, name: str) -> None:
        """Charge the time since the last phase ended to `name`."""
        now = monotonic()
        spent = self.usage.milliseconds
        spent[name] = spent.get(name, 0.0) + (now - self.phase_began) * 1e3
        self.phase_began = now

    @property
    def reply(self) -> object:
        """The answer to the current op, once it is done; None before the first one."""
        match self.op:
            case Score():
                return self.rewards
            case Propose(sequences, _):
                return [self.proposals[each][0] if each in self.proposals else {} for each in sequences]
        return None

    def begin(self, op: Op) -> bool:
        """Start an op; whether it is already done."""
        self.op = op
        match op:
            case Extend(sequences, max_tokens):
                for sequence in sequences:
                    sequence.rewind()
                    target = sequence.limit if max_tokens is None else len(sequence.tokens) + max_tokens
                    self.targets[sequence] = min(target, sequence.limit)
                    self.settle(sequence)
                return not self.targets
            case Score(sequences, _):
                self.rewards = []
                return not sequences
            case Propose(sequences, _):
                self.proposals.clear()
                for sequence in sequences:
                    if sequence.duet is not None:
                        raise InvalidRequest(
                            "a search over next tokens needs one voice: take nudging and wsd out of `steer`",
                            param="decoding.steer",
                        )
                    sequence.rewind()
                    self.targets[sequence] = sequence.limit
                    self.settle(sequence)
                return not self.targets
            case Draw(sequences, scores, values):
                self.draws.clear()
                for index, sequence in enumerate(sequences):
                    if sequence.finish is None:
                        proposed, reference = self.proposals.pop(sequence)
                        if not scores[index].keys() <= proposed.keys():
                            raise ValueError("a Draw may hold only tokens that the last Propose gave")
                        known = {name: dict(each[index]) for name, each in values.items()}
                        self.draws[sequence] = Weighed(scores[index], reference, known)
                return not self.draws

    def settle(self, sequence: Sequence) -> None:
        """Take the sequence out of the current Extend if it is finished or has grown enough."""
        if sequence.finish is None and len(sequence.tokens) >= sequence.limit:
            sequence.finish = "length"
        if sequence.finish is not None or len(sequence.tokens) >= self.targets.get(sequence, 0):
            self.targets.pop(sequence, None)

    def free(self) -> None:
        """Close the program and give back every page."""
        if self.run is not None:
            self.run.close()
        self.targets.clear()
        for sequence in self.prompt.family:
            sequence.release()

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
                steering=sequence.steering,
                trace=tuple(sequence.trace) if sequence.plan.trace else None,
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


def _duet(plan: SteerPlan, lanes: list[Lane]) -> Duet:
    assert plan.gate is not None
    base, guide = lanes[0], lanes[1 + plan.gate.lane]
    return Duet(
        plan.gate,
        base.model.vocabulary,
        guide.model.vocabulary,
        base_eos=plan.eos_ids,
        guide_eos=frozenset() if plan.sampling.ignore_eos else guide.model.eos_ids,
        guide_prompt=guide.tokens,
        guide_context=guide.model.context_length,
    )
