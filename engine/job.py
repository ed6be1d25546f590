"""One request while it lives in the engine."""

from collections import Counter
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from itertools import count, islice
from secrets import token_hex
from time import monotonic
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from trimtab.engine.duet import Duet
from trimtab.engine.lane import Lane
from trimtab.engine.lineage import Lineage, Trail
from trimtab.engine.model import Model
from trimtab.engine.outgoing import Outgoing
from trimtab.engine.pages import PagePool
from trimtab.engine.phases import Phases
from trimtab.engine.plan import BASE, LanePlan, SteerPlan
from trimtab.engine.program import (
    Answer,
    Context,
    Conversation,
    Draw,
    Extend,
    LogProbs,
    Op,
    Preferences,
    Prefill,
    Propose,
    Score,
)
from trimtab.engine.prompt_logprobs import PromptReading
from trimtab.engine.request import Opener, Opening, Request
from trimtab.engine.results import Candidate, Choice, Delta, EngineStats, Event, Progress, Result, Usage, add
from trimtab.engine.sequence import Sequence


class Mark(NamedTuple):
    """Where a sequence was when its step began."""

    tokens: int
    characters: int


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
    session: str = field(default_factory=lambda: token_hex(8))
    """names the request to servers that are asked for it, and to no one else"""
    reading: PromptReading | None = None
    """of the prompt's own log-probabilities"""
    arrived: float = field(default_factory=monotonic)
    run: Generator[Op, Any, Answer] | None = None
    """the running program; None until the prompt is stored"""
    op: Op | None = None
    targets: dict[Sequence, int] = field(default_factory=dict)
    """sequences that still need a forward for the current op; under Extend, the length at which each stops growing"""
    marks: dict[Sequence, Mark] = field(default_factory=dict)
    """where the sequences under an Extend with steps began"""
    rewards: list[float] = field(default_factory=list)
    """rewards of the current Score so far"""
    logprobs: list[list[float]] = field(default_factory=list)
    """answer to the current LogProbs"""
    preferences: dict[str, float] = field(default_factory=dict)
    """answer to the current Preferences"""
    outgoing: dict[int, Outgoing] = field(default_factory=dict)
    """per choice, what the program declared final"""
    interrupted: str | None = None
    """what ended the program before its time"""
    draws: dict[Sequence, Weighed] = field(default_factory=dict)
    """what the current Draw draws from"""
    phase_began: float = field(default_factory=monotonic)
    phases: Phases = field(init=False)
    """where its time went"""
    usage: Usage = field(default_factory=Usage)
    events: list[Event] = field(default_factory=list)
    """what the next delivery carries"""

    def __post_init__(self) -> None:
        self.phases = Phases(self.arrived)

    @classmethod
    def of(cls, request: Request, models: Mapping[str, Model]) -> "Job":
        opening = Opening(request.prompt, request.plan, request.text, len(request.prompt) + request.max_tokens)
        job = cls(request, _opened(opening, request, models))
        job.usage.prompt_tokens = len(request.prompt)
        if request.prompt_logprobs is not None:
            reference = request.plan.reference
            lane = job.prompt.lanes[0 if reference is None else 1 + reference]
            job.reading = PromptReading(lane, request.prompt_logprobs, len(request.prompt))
        return job

    def context(self, models: Mapping[str, Model]) -> Context:
        """What the program is given."""

        opener = self.request.opener

        def start(conversation: Conversation) -> Sequence:
            assert opener is not None, "the request was not made for searches over conversations"
            opening = opener(conversation)
            return _opened(opening, self.request, models, self.prompt, helper=conversation.helper)

        def reopen(other: Opener) -> Sequence:
            nonlocal opener
            opener = other
            prompt = start(Conversation(self.request.messages))
            prompt.streams, prompt.stream = count(self.request.random_stream), -1  # as if the request had begun with it
            self._restart(prompt)
            return prompt

        return Context(
            prompt=self.prompt,
            choices=self.request.choices,
            messages=self.request.messages,
            budget=self.request.budget,
            random=np.random.default_rng(self.request.plan.seed % 2**64),
            committing=self.commit,
            starting=start,
            restarting=self._restart,
            reopening=reopen,
            sent=self.outgoing,
        )

    def _restart(self, prompt: Sequence) -> None:
        self.prompt.free()
        self.prompt = prompt
        if prompt.trail is not None:
            prompt.trail = Trail(Lineage())  # what was written for the prompt is no part of the search
        self.usage.prompt_tokens = prompt.prompt_length

    @property
    def priority(self) -> int:
        return self.request.priority

    @property
    def active(self) -> list[Sequence]:
        """Sequences that need a forward: the prompt until it is stored, then those that the program extends."""
        return [self.prompt] if self.run is None else list(islice(self.targets, self.request.rows))

    @property
    def overspent(self) -> str | None:
        """The part of the budget that has run out."""
        budget = self.request.budget
        if budget.deadline_ms is not None and (monotonic() - self.arrived) * 1e3 >= budget.deadline_ms:
            return "deadline_ms"
        if budget.max_model_tokens is not None and sum(self.usage.model_tokens.values()) >= budget.max_model_tokens:
            return "max_model_tokens"
        return None

    @property
    def has_best(self) -> bool:
        """Whether a search has an answer or the worth of one; answers that are sent as they grow do not count."""
        others = (each for each in self.prompt.family if each.candidate and each.choice is None)
        return any(each.finish is not None or each.reward is not None or each.value is not None for each in others)

    @property
    def progress(self) -> Progress:
        """How far the program is, as its next op begins."""
        answers = [each for each in self.prompt.family if each.candidate and each is not self.prompt]
        finished = [each for each in answers if each.finish is not None]
        return Progress(
            phase=self.phase,
            candidates=len(answers),
            finished=len(finished),
            best_reward=None
            if self.request.discreet
            else max((r for each in finished if (r := each.reward) is not None and r == r), default=None),
            model_tokens=sum(self.usage.model_tokens.values()),
            milliseconds=(monotonic() - self.arrived) * 1e3,
        )

    @property
    def phase(self) -> Literal["queue", "prefill", "decode", "score"]:
        """What the time that passes now is charged to."""
        if self.run is None:
            return "prefill" if "queue" in self.usage.milliseconds else "queue"
        if isinstance(self.op, Prefill):
            return "prefill"
        return "score" if isinstance(self.op, Score | LogProbs | Preferences) else "decode"

    def reads(self, lane: Lane) -> bool:
        """Whether logits are still wanted at the prompt's tokens on this lane."""
        return self.reading is not None and self.reading.lane is lane and not self.reading.complete

    def skippable(self, lane: Lane) -> int:
        """Tokens from the lane's beginning whose forward tells nothing new, so that a cache may have them."""
        if self.reading is not None and self.reads(lane):
            return len(self.reading.found) - 1
        return len(lane.tokens) - 1

    def tell_prompt(self) -> None:
        """Send what is known of the prompt's tokens, once for each choice."""
        if self.reading is not None:
            told = self.reading.told
            self.events += [Delta(index, "", (), None, told) for index in range(self.request.choices)]

    def charge(self, lane: Lane, tokens: int, stats: EngineStats) -> None:
        """Note one forward over `tokens` of this request's tokens."""
        add(self.usage.forwards, lane.name, 1)
        add(self.usage.model_tokens, lane.name, tokens)
        add(stats.model_tokens, lane.model.name, tokens)

    def commit(self, choice: int, sequence: Sequence, tokens: int, *, last: bool = False) -> None:
        """Send what is final of a choice and was not sent before."""
        if choice not in self.outgoing:
            self.outgoing[choice] = Outgoing(choice, self.request.text.fork())
        delta = self.outgoing[choice].send(sequence, tokens, last=last)
        if delta is not None:
            self.events.append(delta)

    def own_pages(self, pool: PagePool) -> list[int]:
        """Pages of `pool` that no other request refers to."""
        lanes = (lane for sequence in self.prompt.family for lane in sequence.lanes)
        held = Counter(page for lane in lanes if lane.table.pool is pool for page in lane.table.pages)
        return [page for page, count in held.items() if pool.references[page] == count]

    def end_phase(self, name: Literal["queue", "prefill", "decode", "score"]) -> None:
        """Charge the time since the last phase ended to `name`."""
        self.phases.end("guide" if name == "score" else name)
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
            case LogProbs():
                return self.logprobs
            case Preferences():
                return self.preferences
            case Propose(sequences, _):
                return [{} if each.proposal is None else each.proposal[0] for each in sequences]
        return None

    def begin(self, op: Op) -> bool:
        """Start an op; whether it is already done."""
        self.op = op
        if self.prompt.trail is not None:
            self._record(op)
        match op:
            case Extend(sequences, max_tokens, until):
                self.marks.clear()
                for sequence in (each for each in sequences if each.finish is None):
                    if until is not None:
                        self.marks[sequence] = Mark(len(sequence.tokens), len(sequence.text.text))
                    target = sequence.limit if max_tokens is None else len(sequence.tokens) + max_tokens
                    self._aim(sequence, min(target, sequence.limit))
                return not self.targets
            case Score(sequences, _):
                self.rewards = []
                return not sequences
            case LogProbs(sequences, _):
                self.logprobs = []
                return not sequences
            case Preferences():
                return False
            case Prefill(sequences):
                self.targets |= {each: len(each.tokens) for each in sequences}
                return self.filled
            case Propose(sequences, _):
                for sequence in sequences:
                    sequence.proposal = None
                    if sequence.finish is None:
                        self._aim(sequence, sequence.limit)
                return not self.targets
            case Draw(sequences, scores, values):
                self.draws.clear()
                for index, sequence in enumerate(sequences):
                    if sequence.finish is None:
                        assert sequence.proposal is not None, "a Draw needs the answer to a Propose"
                        proposed, reference = sequence.proposal
                        if not scores[index].keys() <= proposed.keys():
                            raise ValueError("a Draw may hold only tokens that the last Propose gave")
                        known = {name: dict(each[index]) for name, each in values.items()}
                        self.draws[sequence] = Weighed(scores[index], reference, known)
                return not self.draws

    def _record(self, op: Op) -> None:
        """Let the tree have what is about to grow, and know what is scored."""
        sequences = op.sequences if isinstance(op, Extend | Draw | Score) else ()
        for sequence in sequences:
            if sequence.trail is not None and isinstance(op, Score):
                sequence.trail.scored = sequence.generated
            elif sequence.trail is not None:
                sequence.trail.note(sequence)

    @property
    def filled(self) -> bool:
        """Whether everything that a Prefill waits for is stored; forgets what is."""
        for sequence in [each for each in self.targets if each.stored]:
            del self.targets[sequence]
        return not self.targets

    def settle(self, sequence: Sequence) -> None:
        """Take the sequence out of the current Extend if it is finished or has grown enough."""
        if sequence.finish is None and len(sequence.tokens) >= sequence.limit:
            sequence.finish = "length"
        grown = len(sequence.tokens) >= self.targets.get(sequence, 0)
        if sequence.finish is not None or grown or self._step_ends(sequence):
            self.targets.pop(sequence, None)
        if sequence.finish is not None and isinstance(self.op, Extend) and self.op.first:
            self.targets.clear()

    def step_ends_before(self, sequence: Sequence, entropy: float) -> bool:
        """Whether the sequence's step ends before a token that was drawn at this entropy of the base, nats."""
        until = self.op.until if isinstance(self.op, Extend) else None
        if until is None or until.entropy is None or entropy < until.entropy:
            return False
        return len(sequence.tokens) - self.marks[sequence].tokens >= max(1, until.min_tokens)

    def _step_ends(self, sequence: Sequence) -> bool:
        until = self.op.until if isinstance(self.op, Extend) else None
        if until is None or not (until.strings or until.endings):
            return False
        mark = self.marks[sequence]
        if len(sequence.tokens) - mark.tokens < max(1, until.min_tokens):
            return False
        step = sequence.text.text[mark.characters :]
        return step.endswith(until.endings) or any(string in step for string in until.strings)

    def _aim(self, sequence: Sequence, length: int) -> None:
        """Let a sequence run until it has `length` tokens."""
        sequence.rewind()
        self.targets[sequence] = length
        self.settle(sequence)

    def free(self) -> None:
        """Close the program and give back every page."""
        if self.run is not None:
            self.run.close()
        self.targets.clear()
        for sequence in self.prompt.family:
            sequence.release()

    def result(self, answer: Answer) -> Result:
        """The program's answer as the caller gets it."""
        for sequence in (*answer.choices, *answer.candidates):
            if sequence.finish is None:
                sequence.text.flush()  # what may have become a stop string
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
                reward=sequence.reward,
                choice=place.get(sequence),
                rewards=sequence.rewards,
                terms=sequence.terms,
                value=sequence.value,
            )
            for sequence in answer.candidates
        )
        self.usage.completion_tokens = sum(len(choice.token_ids) for choice in choices)
        self.usage.milliseconds["total"] = (monotonic() - self.arrived) * 1e3
        stopped_by = "max_kl" if any(each.capped for each in answer.choices) else answer.stopped_by
        told = None if self.reading is None else self.reading.told
        trail, family = self.prompt.trail, self.prompt.family
        tree = None if trail is None else trail.lineage.tree(family, answer.choices, answer.candidates)
        return Result(choices, candidates, self.usage, self.request.plan.seed, stopped_by, answer.report, told, tree)


def _opened(
    opening: Opening,
    request: Request,
    models: Mapping[str, Model],
    relative: Sequence | None = None,
    *,
    helper: bool = False,
) -> Sequence:
    """An empty answer; `relative` is another sequence of the same request, a `helper` is a text for the program."""
    plan, alone = opening.plan, opening.lane
    if alone is None:
        own = LanePlan(BASE, BASE, opening.prompt, plan.variant)
        lanes = [
            Lane.of(each, models[each.model], request.translations.get(each.name), request.salt)
            for each in (own, *plan.lanes)
        ]
    else:
        lanes = [Lane.of(alone, models[alone.model], None, request.salt)]
    return Sequence(
        lanes=lanes,
        prompt_length=len(opening.prompt),
        limit=opening.limit,
        plan=plan,
        text=opening.text,
        streams=count(request.random_stream) if relative is None else relative.streams,
        stream=-1 if relative is None else next(relative.streams),
        duet=None if plan.gate is None else _duet(plan, lanes),
        grammar=None if helper or request.grammar is None else request.grammar(lanes[0].model.vocabulary, plan.ends),
        voice=None if alone is None else 0,
        candidate=not helper,
        trail=_trail(request, relative),
        family=[] if relative is None else relative.family,
    )


def _trail(request: Request, relative: Sequence | None) -> Trail | None:
    """Of an empty answer: at the root of the tree that its relatives are in."""
    if relative is None:
        return Trail(Lineage()) if request.tree and not request.discreet else None
    return None if relative.trail is None else Trail(relative.trail.lineage)


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
