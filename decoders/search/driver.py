"""Runs a search for a request: calibration before, and the best so far when the budget ends it early."""

from collections.abc import Generator
from dataclasses import dataclass, field, replace
from math import isnan
from typing import Any

from trimtab.decoders.rewards import Expression
from trimtab.decoders.search.base import Scale, Search, SearchContext, worth
from trimtab.decoders.select import Rule
from trimtab.engine.program import Answer, Context, Extend, Op, Score
from trimtab.engine.sequence import Sequence

LAST_BATCH = 32
"""answers that are still scored when the time is up"""


@dataclass(frozen=True, slots=True)
class SearchProgram:
    """A search with the request's rule of selection, as the engine runs it."""

    search: Search
    select: Rule
    scale: Scale = field(default_factory=Scale)
    """of this request; filled as the search runs"""

    def rows(self, choices: int) -> int:
        """Sequences that decode at the same time at most, while calibrating too."""
        return max(self.search.rows(choices), self._samples)

    def run(self, context: Context) -> Generator[Op, Any, Answer]:
        """The search, after the base's own answers if a reward is measured against them."""
        own = SearchContext.of(context, self.select, self.scale)
        if self._samples:
            yield from self._calibrate(own)
        answer = yield from self.search.run(own)
        if self.select.may_refuse and self.search.most() is None:  # one answer for each choice: all of them must do
            assert self._final is not None  # admission
            yield from own.score(answer.choices, self._final)
            if not own.ranked(answer.choices, len(answer.choices)):
                answer = own.refuse(answer.candidates, answer.report)
        return self._reported(answer)

    def interrupted(self, context: Context, reason: str) -> Generator[Op, Any, Answer]:
        """The best finished answers so far, or else the best partial ones; what was streamed stands."""
        own = SearchContext.of(context, self.select, self.scale)
        alive = [each for each in context.prompt.family if each.candidate and each is not context.prompt]
        streamed = sorted((each for each in alive if each.choice is not None), key=lambda each: each.choice or 0)
        if streamed:
            return self._reported(Answer(streamed, streamed, stopped_by=reason))
        pool = [each for each in alive if each.finish is not None] or [each for each in alive if each.generated]
        reward = self._final
        if reward is not None and reason != "reward_at_least":
            unknown = [each for each in pool if each.reward is None and each.value is None]
            if unknown:
                yield from own.assess(sorted(unknown, key=lambda each: -each.generated)[:LAST_BATCH], reward)
        ranked = sorted(pool, key=worth, reverse=True)
        over = bool(pool) and pool[0].finish is not None
        if over and (not self.select.needs_reward or all(each.reward is not None for each in pool)):
            ranked = own.ranked(pool, len(pool))
        if self.select.may_refuse and not (over and ranked):
            return self._reported(own.refuse(pool))
        choices: list[Sequence] = []
        for choice in range(context.choices):  # of searches that make one answer for each, the last is unfinished
            left = (each for each in (*ranked, *alive) if each not in choices)
            fitting = (each for each in left if context.fits(each, choice))
            choices.append(next(fitting, None) or context.retell(choice))
        return self._reported(Answer(choices, pool, stopped_by=reason))

    def _reported(self, answer: Answer) -> Answer:
        """The answer with the weights that preference guides gave the rewards."""
        given = self.scale.preferences
        return replace(answer, report={**answer.report, "weights": dict(given)}) if given else answer

    @property
    def _final(self) -> Expression | None:
        """What whole answers are judged by."""
        known = self.search.expressions()
        return known.get("reward") or next(iter(known.values()), None)

    @property
    def _samples(self) -> int:
        return max((each.samples for each in self.search.expressions().values()), default=0)

    def _calibrate(self, context: SearchContext) -> Generator[Op, Any, None]:
        """Answers of the base as it is, for rewards that are measured against them."""
        answers = context.voiced(context.prompt, self._samples, "base")
        for answer in answers:
            answer.candidate = False
        yield Extend(answers)
        guides = (guide for each in self.search.expressions().values() if each.samples for guide in each.guides)
        for guide in dict.fromkeys(guides):
            scores = yield Score(answers, guide)
            self.scale.calibration[guide] = tuple(score for score in scores if not isnan(score))
        for answer in answers:
            answer.free()
