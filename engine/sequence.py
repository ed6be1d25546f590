"""The one object that travels through the engine."""

from array import array
from dataclasses import dataclass, field
from itertools import count
from typing import Self

from trimtab.engine.pages import PageTable
from trimtab.engine.plan import SteerPlan
from trimtab.engine.results import FinishReason, TokenLogprob
from trimtab.engine.vocabulary import TextStream


@dataclass(eq=False, slots=True)
class Sequence:
    """Token ids of one prompt and answer, their pages, and how the next token is drawn.

    The tokens whose keys and values are stored are `tokens[:table.length]`. A sequence can decode when all but its
    last token are stored; everything else, a preempted sequence too, is prefilled first.
    """

    tokens: "array[int]"
    prompt_length: int
    limit: int
    """tokens, prompt included, at which the answer ends with finish reason `length`"""
    table: PageTable
    plan: SteerPlan
    text: TextStream
    """the answer's text; filled by the engine as tokens are drawn"""
    streams: "count[int]"
    """numbers of the random streams of this request; shared by all its forks"""
    stream: int = 0
    """its own random stream; a fork gets the next unused one"""
    choice: int | None = None
    """the answer that this sequence is, while its text can be sent as it grows; filled by the program"""
    finish: FinishReason | None = None
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """per generated token, where the request asks for them; filled by the engine"""
    family: "list[Sequence]" = field(default_factory=list)
    """all sequences of the request that may hold pages, in the order of their making; shared by all of them"""

    def __post_init__(self) -> None:
        self.family.append(self)

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def answer(self) -> "array[int]":
        """Ids of the generated tokens."""
        return self.tokens[self.prompt_length :]

    @property
    def unstored(self) -> int:
        """Tokens before the last whose keys and values are still to be computed; 0: ready to decode."""
        return len(self.tokens) - 1 - self.table.length

    def fork(self, n: int) -> list[Self]:
        """`n` sequences that continue this one independently; pages are shared until written."""
        return [
            type(self)(
                tokens=self.tokens[:],
                prompt_length=self.prompt_length,
                limit=self.limit,
                table=self.table.fork(),
                plan=self.plan,
                text=self.text.fork(),
                streams=self.streams,
                stream=next(self.streams),
                finish=self.finish,
                stop_reason=self.stop_reason,
                logprobs=self.logprobs.copy(),
                family=self.family,
            )
            for _ in range(n)
        ]

    def trim(self, generated: int) -> None:
        """Roll back to the first `generated` tokens of the answer."""
        del self.tokens[self.prompt_length + generated :]
        del self.logprobs[generated:]
        self.table.trim(len(self.tokens) - 1)
        self.finish = self.stop_reason = None
        self.text = self.text.restart(self.answer)

    def free(self) -> None:
        """Give the pages back for good; the tokens and the text stay readable."""
        self.table.free()
        self.family.remove(self)
