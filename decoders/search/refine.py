"""Refine: a second model rewrites the finished answer (Aligner: Ji et al. 2024, arXiv 2402.02416; DiffPO: Chen et al.
2025, arXiv 2503.04240).

The rewriter reads the conversation, the answer and an instruction to improve it. With a reward, each round rewrites the
best so far, and the best of the original and all rewrites is returned; without one, the last rewrite is.
"""

from collections.abc import Generator
from collections.abc import Sequence as Many
from math import isnan
from typing import Any, Self

from pydantic import Field, model_validator

from trimtab.decoders.params import LanguageName
from trimtab.decoders.registry import strategy
from trimtab.decoders.rewards import Expression
from trimtab.decoders.search.base import Search, SearchContext, worth
from trimtab.decoders.steer.draft import Draft
from trimtab.engine.plan import BASE
from trimtab.engine.program import Answer, Extend, Op
from trimtab.engine.sequence import Sequence
from trimtab.engine.vocabulary import Message

INSTRUCTION = (
    "Rewrite your last answer. Correct what is wrong, add what is missing and leave out what could do harm, so that it "
    "becomes more helpful, more honest and harmless; keep what is good already. Reply with the improved answer alone."
)


@strategy("refine", paper="Ji et al. 2024, arXiv 2402.02416", cost="1 answer, then n rewrites and n scores a round")
class Refine(Search):
    """Let a second model, or the base itself, rewrite the finished answer."""

    guide: LanguageName = Field(
        BASE, description="the model that rewrites: `base`, steered, or a language-model guide's name"
    )
    rounds: int = Field(1, ge=1, le=8, description="how often the answer is rewritten")
    n: int = Field(1, ge=1, le=32, description="rewrites a round; with more than one, a reward chooses")
    reward: Expression | None = Field(
        None, description="what scores the original and its rewrites; without it, the last rewrite is returned"
    )
    instruction: str = Field(
        INSTRUCTION, min_length=1, max_length=2000, description="what the rewriter is asked, after the answer"
    )

    @model_validator(mode="after")
    def _several_need_a_reward(self) -> Self:
        if self.n > 1 and self.reward is None:
            raise ValueError(f"only a reward can choose among n={self.n} rewrites: name a reward or leave n out")
        return self

    def rows(self, choices: int) -> int:
        return choices if self.reward is None else self.n

    def most(self) -> int | None:
        return None if self.reward is None else 1 + self.rounds * self.n

    @property
    def others_write(self) -> bool:
        return self.guide != BASE

    def call(self, draft: Draft) -> None:
        draft.writer(self.guide, field="guide")

    def run(self, context: SearchContext) -> Generator[Op, Any, Answer]:
        answers = context.prompt.fork(context.choices if self.reward is None else 1)
        yield from self._complete(context, answers)
        considered, best = [*answers], []
        for _ in range(self.rounds):
            rewrites = yield from self._rewritten(context, answers)
            considered += rewrites
            if self.reward is None:
                for answer in answers:
                    answer.free()
                answers = rewrites
            else:
                answers = [max(considered, key=worth)]
                best.append(answers[0].reward)
        if self.reward is None:
            return Answer(answers, considered, {"rounds": self.rounds})
        told = [None if reward is None or isnan(reward) else reward for reward in (considered[0].reward, *best)]
        return context.choose(considered, rounds=self.rounds, best_by_round=told)

    def _rewritten(self, context: SearchContext, answers: Many[Sequence]) -> Generator[Op, Any, list[Sequence]]:
        """`n` finished rewrites of each answer, scored if there is a reward."""
        rewrites: list[Sequence] = []
        for answer in answers:
            first = context.start(self._conversation(context, answer), self.guide)
            rewrites += [first, *first.fork(self.n - 1)]
        if self.guide != BASE:
            rewrites = yield from _dictated(context, rewrites)
        yield from self._complete(context, rewrites)
        return rewrites

    def _complete(self, context: SearchContext, answers: Many[Sequence]) -> Generator[Op, Any, None]:
        if self.reward is None:
            yield Extend(answers)
        else:
            yield from context.finish(answers, self.reward)

    def _conversation(self, context: SearchContext, answer: Sequence) -> tuple[Message, ...]:
        return (
            *context.messages,
            Message(role="assistant", content=answer.text.text),
            Message(role="user", content=self.instruction),
        )


def _dictated(context: SearchContext, drafts: Many[Sequence]) -> Generator[Op, Any, list[Sequence]]:
    """What another model writes, as answers in the base's tokens."""
    for draft in drafts:
        draft.candidate = False
    yield Extend(drafts)
    answers = []
    for draft in drafts:
        answer = context.say(draft.text.text)
        if draft.finish == "length":
            answer.finish = "length"
        draft.free()
        answers.append(answer)
    return answers
