"""DARWIN: answers to variants of the instruction evolve together (Hung et al. 2024, arXiv 2406.15193).

Exploration: every place of the population answers the instruction in other words. Exploitation: every m tokens each
unfinished text outside the best few gives way to one of these, and its place goes on with that under its own words.
All rewards are for the instruction as it was asked.
"""

from collections.abc import Collection, Generator
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, ClassVar, Self

from pydantic import Field

from trimtab.decoders.params import LanguageName
from trimtab.decoders.registry import strategy
from trimtab.decoders.rewards import Expression
from trimtab.decoders.search.base import Search, SearchContext
from trimtab.decoders.steer.draft import Draft
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.plan import BASE
from trimtab.engine.program import Answer, Extend, Op
from trimtab.engine.sequence import Sequence
from trimtab.engine.vocabulary import Message

TEMPLATE = (
    "Here is a message that somebody wrote to an assistant:\n\n{instruction}\n\n"
    "Write this message again so that it is clearer and asks for the same: {way}. Do not answer it. "
    "Reply with the new message alone."
)
WAYS = (
    "say it in other words",
    "add details that a good answer needs",
    "leave out what a good answer does not need",
)


@dataclass(eq=False, slots=True)
class _Place:
    """One member of the population."""

    instruction: Sequence
    """an empty answer to the instruction in its own words"""
    answer: Sequence
    """its `value` is that of an answer to the instruction that was asked"""

    @classmethod
    def of(cls, instruction: Sequence) -> Self:
        return cls(instruction, _continued(instruction))

    @property
    def value(self) -> float:
        assert self.answer.value is not None, "every answer is assessed in the first round"
        return self.answer.value

    def take_over(self, other: "_Place") -> None:
        """Go on with the text of another place, under its words too if one's own leave no room."""
        source = other.answer
        self.answer.free()
        room = self.instruction.limit - len(self.instruction.tokens)
        if self.instruction is other.instruction or room <= source.generated:
            (self.answer,) = source.fork(1)
            return
        self.answer = _continued(self.instruction)
        for token in source.answer:
            self.answer.push(token)
        self.answer.logprobs, self.answer.measures = source.logprobs.copy(), source.measures.copy()
        self.answer.trace, self.answer.value = source.trace.copy(), source.value


@strategy(
    "darwin",
    paper="Hung et al. 2024, arXiv 2406.15193",
    cost="mutations + 1 answers, a score of each every m tokens",
    needs=("reward",),
)
class Darwin(Search):
    """Answer the instruction and variants of it; every m tokens the worse texts give way to the best."""

    rows_field: ClassVar[str] = "mutations"
    one_voice: ClassVar[bool] = True
    reward: Expression = Field(description="reward of whole answers, for the final choice")
    value: Expression | None = Field(None, description="reward of unfinished answers; none: the same as `reward`")
    mutations: int = Field(5, ge=0, le=63, description="variants of the instruction beside itself")
    mutator: LanguageName = Field(BASE, description="name of the language model that writes them")
    mutation_tokens: int = Field(96, ge=1, le=1024, description="tokens of a variant at most; a longer one is dropped")
    m: int = Field(40, ge=1, le=4096, description="tokens between replacements")
    elite: int = Field(3, ge=1, le=64, description="best texts, which the others give way to")

    def rows(self, choices: int) -> int:
        return self.mutations + 1

    def most(self) -> int:
        return min(self.elite, self.mutations + 1)  # the others may give way to answers that have ended

    def check(self, *, choices: int, rewards: Collection[str]) -> None:
        if choices > self.most():
            raise InvalidRequest(
                f"the population may end as {self.most()} answers (elite={self.elite}, mutations={self.mutations}) and "
                f"n asks for {choices}: raise elite and mutations, or lower n",
                param="n",
            )
        super().check(choices=choices, rewards=rewards)

    def call(self, draft: Draft) -> None:
        draft.writer(self.mutator, field="mutator")

    def run(self, context: SearchContext) -> Generator[Op, Any, Answer]:
        instructions = yield from self._mutated(context)
        places = [_Place.of(each) for each in (context.prompt, *(sequence for _, sequence in instructions))]
        rounds = replacements = 0
        while live := [place.answer for place in places if place.answer.finish is None]:
            yield Extend(live, self.m)
            yield from context.assess(live, self.value or self.reward)
            yield from context.score([answer for answer in live if answer.finish is not None], self.reward)
            rounds += 1
            replacements += self._replace(context, places)
            if context.choices == 1:
                context.commit_shared([place.answer for place in places])
        texts = [text for text, _ in instructions]
        pool = [place.answer for place in places]
        return context.choose(pool, instructions=texts, rounds=rounds, replacements=replacements)

    def _replace(self, context: SearchContext, places: list[_Place]) -> int:
        """Let the unfinished texts outside the best give way to one of these; returns how many did.

        One that would become the copy of a finished answer is dropped.
        """
        ranked = sorted(places, key=lambda place: place.value, reverse=True)
        best, others = ranked[: self.elite], ranked[self.elite :]
        yielding = [place for place in others if place.answer.finish is None]
        for place in yielding:
            other = best[int(context.random.integers(len(best)))]
            if other.answer.finish is None:
                place.take_over(other)
            else:
                place.answer.free()
                places.remove(place)
        return len(yielding)

    def _mutated(self, context: SearchContext) -> Generator[Op, Any, list[tuple[str, Sequence]]]:
        """Variants of the instruction: the words of each, and an empty answer to it.

        The instruction stands for a variant that came out empty, was cut off or does not fit.
        """
        messages = list(context.messages)
        index = max((i for i, each in enumerate(messages) if each["role"] == "user"), default=None)
        if index is None or messages[-1]["role"] == "assistant":  # no instruction, or one with the answer's beginning
            return [("", context.prompt)] * self.mutations
        instruction = messages[index]["content"]
        texts = yield from self._rewritten(context, instruction)
        variants = []
        for text in texts:
            variant, start = instruction, context.prompt
            if text not in ("", instruction):
                messages[index] = Message(role="user", content=text)
                with suppress(InvalidRequest):
                    variant, start = text, context.start(messages)
                    start.candidate = False
            variants.append((variant, start))
        return variants

    def _rewritten(self, context: SearchContext, instruction: str) -> Generator[Op, Any, list[str]]:
        """What the mutator makes of the instruction; empty where it did not come to an end."""
        asked = [TEMPLATE.format(instruction=instruction, way=way) for way in islice(cycle(WAYS), self.mutations)]
        helpers = [context.start([Message(role="user", content=each)], self.mutator, helper=True) for each in asked]
        yield Extend(helpers, self.mutation_tokens)
        for helper in helpers:
            helper.free()
        return [helper.text.text.strip() if helper.finish == "stop" else "" for helper in helpers]


def _continued(start: Sequence) -> Sequence:
    """A fork that may become the answer."""
    (fork,) = start.fork(1)
    fork.candidate = True
    return fork
