"""The one object that travels through the engine."""

from array import array
from dataclasses import dataclass, field
from itertools import count
from typing import Self

from torch import Tensor

from trimtab.engine.duet import Duet
from trimtab.engine.grammar import GrammarState
from trimtab.engine.lane import Lane
from trimtab.engine.lineage import Trail
from trimtab.engine.measure import Measure, summarise
from trimtab.engine.pages import PageTable
from trimtab.engine.plan import BASE, PLAIN, SteerPlan
from trimtab.engine.results import FinishReason, Steering, TokenLogprob, TokenTrace
from trimtab.engine.vocabulary import TextStream


@dataclass(eq=False, slots=True)
class Sequence:
    """One prompt and answer: what every model that reads it holds, and how the next token is drawn.

    A lane can go on when all but its last token are stored; everything else, a preempted one too, is prefilled first.
    """

    lanes: list[Lane]
    """the base's reading first, then those of the plan's lanes"""
    prompt_length: int
    limit: int
    """tokens, prompt included, at which the answer ends with finish reason `length`"""
    plan: SteerPlan
    text: TextStream
    """the answer's text; filled by the engine as tokens are drawn"""
    streams: "count[int]"
    """numbers of the random streams of this request; shared by all its forks"""
    stream: int = 0
    """its own random stream; a fork gets the next unused one"""
    duet: Duet | None = None
    """which of two models speaks, where the plan has a gate"""
    grammar: GrammarState | None = None
    """how far the answer has come in the grammar that it must satisfy, if there is one"""
    voice: int | None = None
    """the number of the lane that writes alone, the others silent; filled by the program. None: as the plan steers"""
    candidate: bool = True
    """it may become an answer; the program says so of look-aheads and helper texts that may not"""
    reward: float | None = None
    """of the answer as it stands; filled when the program scores it"""
    rewards: dict[str, float] = field(default_factory=dict)
    """the same by guide, as the guides gave them"""
    terms: dict[str, float] = field(default_factory=dict)
    """the same after the transforms of the reward expression, before its weights"""
    value: float | None = None
    """what the program thinks of it while it is not finished; filled by the program"""
    proposal: tuple[dict[int, float], Tensor] | None = None
    """answer to the last Propose, with the base's logits (V,); filled by the engine, gone with the next token"""
    weighed: bool = False
    """the program has drawn tokens of it by scores of its own"""
    capped: bool = False
    """the budget's KL has ended it"""
    choice: int | None = None
    """the answer that this sequence is, while its text can be sent as it grows; filled by the program"""
    finish: FinishReason | None = None
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """per generated token, where the request asks for them; filled by the engine"""
    measures: list[Measure] = field(default_factory=list)
    """per generated token, where the request steers; filled by the engine"""
    trace: list[TokenTrace] = field(default_factory=list)
    """per generated token, where the request asks for it; filled by the engine"""
    trail: Trail | None = None
    """where the tree of the request's search has it; None: no tree is asked for"""
    family: "list[Sequence]" = field(default_factory=list, repr=False)
    """all sequences of the request that may hold pages, in the order of their making; shared by all of them"""

    def __post_init__(self) -> None:
        self.family.append(self)

    @property
    def base(self) -> Lane:
        return self.lanes[0]

    @property
    def tokens(self) -> "array[int]":
        """Ids of the base model, prompt and answer."""
        return self.lanes[0].tokens

    @property
    def table(self) -> PageTable:
        """The base model's pages."""
        return self.lanes[0].table

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def answer(self) -> "array[int]":
        """Ids of the generated tokens."""
        return self.tokens[self.prompt_length :]

    @property
    def silent_end(self) -> bool:
        """Whether the last token ended the answer and is no text."""
        return self.generated > 0 and self.finish == "stop" and self._ends(self.tokens[-1])

    @property
    def due(self) -> list[Lane]:
        """The lanes that run next: those that keep step with the base, or the one that speaks."""
        if self.voice is not None:
            return [self.lanes[self.voice]]
        if self.duet is None:
            return [lane for lane in self.lanes if not lane.called]
        return [self.lanes[0] if self.duet.speaker == "base" else self.guide]

    @property
    def speaker(self) -> Lane:
        """The lane whose logits the next token begins with."""
        return self.lanes[self.voice or 0]

    def lane(self, name: str) -> Lane:
        """The base's reading, or that of a model that the program may call by name."""
        if name == BASE:
            return self.base
        return next(lane for lane in self.lanes if lane.called and lane.name == name)

    @property
    def guide(self) -> Lane:
        """The other voice of a duet."""
        assert self.plan.gate is not None
        return self.lanes[1 + self.plan.gate.lane]

    @property
    def steering(self) -> Steering | None:
        """How far the answer is from the base's; None where nothing steers."""
        if not (self.plan.steered or self.plan.trace or self.weighed):
            return None
        return summarise(self.measures, against_base=self.plan.variant == PLAIN or self.plan.reference is not None)

    @property
    def shaped(self) -> bool:
        """Whether more than the base's logits and the answer's edits shape the scores, or what is measured of them."""
        told = self.plan.measured or self.plan.gate is not None
        return self.plan.shaped or (self.grammar is not None and told)

    @property
    def stored(self) -> bool:
        """Whether every lane can go on."""
        return all(lane.unstored <= 0 for lane in self.lanes)

    def append(self, token: int) -> None:
        """Add a token to every reading that keeps step with the base."""
        for lane in self.lanes if self.duet is None else self.lanes[:1]:
            lane.append(token)

    def push(self, token: int) -> str:
        """Add a token of the answer, see whether the answer ends with it, and return the text that is certain now."""
        self.append(token)
        self.reward = self.proposal = None
        text = ""
        if self._ends(token):
            self.finish = "stop"
            self.stop_reason = token if token in self.plan.sampling.stop_token_ids else None
        else:
            text = self.text.push(token)
            if self.grammar is not None:
                self.grammar.take(token)
            if self.text.stopped is not None:
                self.finish, self.stop_reason = "stop", self.text.stop_reason
            elif self.grammar is not None and self.grammar.complete:
                self.finish = "stop"
            elif len(self.tokens) >= self.limit:
                self.finish = "length"
        return text if self.finish is None else text + self.text.flush()

    def rewind(self) -> None:
        """Let the lanes that run next read their last token again where it is stored already, for what follows it."""
        for lane in self.due if self.duet is None else ():
            if not lane.scores:
                lane.table.trim(len(lane.tokens) - 1)

    def fork(self, n: int, plan: SteerPlan | None = None) -> list[Self]:
        """`n` sequences that continue this one independently; pages are shared until written.

        Another `plan` may sample differently; its lanes are those of this one's.
        """
        return [
            type(self)(
                lanes=[lane.fork() for lane in self.lanes],
                prompt_length=self.prompt_length,
                limit=self.limit,
                plan=plan or self.plan,
                text=self.text.fork(),
                streams=self.streams,
                stream=next(self.streams),
                duet=None if self.duet is None else self.duet.fork(),
                grammar=None if self.grammar is None else self.grammar.fork(),
                voice=self.voice,
                candidate=self.candidate,
                value=self.value,
                proposal=self.proposal,
                weighed=self.weighed,
                capped=self.capped,
                finish=self.finish,
                stop_reason=self.stop_reason,
                logprobs=self.logprobs.copy(),
                measures=self.measures.copy(),
                trace=self.trace.copy(),
                trail=None if self.trail is None else self.trail.fork(),
                family=self.family,
            )
            for _ in range(n)
        ]

    def trim(self, generated: int) -> None:
        """Roll back to the first `generated` tokens of the answer."""
        assert self.duet is None, "an answer of two voices cannot be rolled back"
        if self.trail is not None:
            self.trail.cut(self, generated)
        count = self.generated - generated
        for lane in self.lanes:
            lane.trim(count)
        del self.logprobs[generated:]
        del self.measures[generated:]
        del self.trace[generated:]
        self.finish = self.stop_reason = self.reward = self.value = self.proposal = None
        self.capped = False
        self.text = self.text.restart(self.answer)
        if self.grammar is not None:
            self.grammar.trim(generated)

    def free(self) -> None:
        """Give the pages back for good; the tokens and the text stay readable."""
        if self.trail is not None:
            self.trail.end(self)
        self.release()
        self.proposal = None
        self.family.remove(self)

    def _ends(self, token: int) -> bool:
        """Whether the token ends the answer and is no text."""
        return token in self.plan.eos_ids or token in self.plan.sampling.stop_token_ids

    def release(self) -> None:
        """Give the pages back; they are computed again if the sequence goes on."""
        for lane in self.lanes:
            lane.table.free()
