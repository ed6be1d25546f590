"""Runs a search for a request: calibration before, and the best so far when the budget ends it early."""

from collections.abc import Callable, Collection, Generator, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace
from math import isnan
from typing import Any, NamedTuple

from trimtab.decoders.prompt.base import PromptPart
from trimtab.decoders.rewards import Expression
from trimtab.decoders.search.base import Scale, Search, SearchContext, entry, worth
from trimtab.decoders.select import Guarded, Rule, Watch
from trimtab.engine.program import Answer, Context, Extend, Op, Preferences, Prefill, Score
from trimtab.engine.request import Opener
from trimtab.engine.sequence import Sequence

LAST_BATCH = 32
"""answers that are still scored when the time is up"""


class Reopened(NamedTuple):
    """A request by the weights that a preference guide has told."""

    program: "SearchProgram"
    opener: Opener


@dataclass(frozen=True, slots=True)
class Weighing:
    """What is to be asked before a search whose request leaves its preference to the prompt."""

    guide: str
    compile: Callable[[Mapping[str, float]], Reopened]
    """the request by weights of rewards; raises InvalidRequest where a floor forbids them"""
    weighed: list["SearchProgram"] = field(default_factory=list)
    """the program by those weights, once they are known"""


@dataclass(frozen=True, slots=True)
class SearchProgram:
    """A search with the request's rule of selection, as the engine runs it."""

    search: Search
    select: Rule
    scale: Scale = field(default_factory=Scale)
    """of this request; filled as the search runs"""
    watch: Watch | None = None
    """what the operator demands of the end"""
    preparing: tuple[tuple[int, PromptPart], ...] = ()
    """the prompt parts that have texts written before, each with its number among the prompt parts"""
    laid: int = 0
    """the first prompt parts, which are the operator's: what they write is not told"""
    told: tuple[dict[str, Any], ...] = ()
    """what the prompt parts told at admission, one for each; those that prepare add to it"""
    weighing: Weighing | None = None
    """how this program becomes another one, which is the one to run"""
    preference: Mapping[str, float] | None = None
    """weights of attributes that a guide has told"""

    def rows(self, choices: int) -> int:
        """Sequences that decode at the same time at most, while preparing and calibrating too."""
        return max(self.search.rows(choices), self._samples, *(part.rows for _, part in self.preparing))

    def run(self, context: Context) -> Generator[Op, Any, Answer]:
        """The search, after what prompt parts have written, and the base's own answers where rewards need them."""
        if self.weighing is not None:
            return (yield from self._weighed(context, self.weighing))
        own = SearchContext.of(context, self.select, self.scale, self.watch)
        if self.preparing:
            yield from self._prepare(own)
        if self._samples:
            yield from self._calibrate(own)
        answer = yield from self.search.run(own)
        if self.select.may_refuse and self.search.most() is None:  # one answer for each choice: all of them must do
            assert self._final is not None  # admission
            yield from own.score(answer.choices, self._final)
            if not own.ranked(answer.choices, len(answer.choices)):
                answer = own.refuse(answer.candidates, answer.report)
        answer = yield from self._watched(own, answer)
        return self._reported(answer)

    def interrupted(self, context: Context, reason: str) -> Generator[Op, Any, Answer]:
        """The best finished answers so far, or else the best partial ones; what was streamed stands."""
        if self.weighing is not None and self.weighing.weighed:
            return (yield from self.weighing.weighed[0].interrupted(context, reason))
        own = SearchContext.of(context, self.select, self.scale, self.watch)
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
        if self.watch is not None:
            enough = not self.select.may_refuse or (over and bool(ranked))
            enough = enough and len(pool) >= self.watch.least * context.choices
            last = list(dict.fromkeys((*ranked, *alive)))[:LAST_BATCH] if enough else []
            return self._reported((yield from self._rescued(own, self.watch, last, reason)))
        if self.select.may_refuse and not (over and ranked):
            return self._reported(own.refuse(pool))
        choices: list[Sequence] = []
        for choice in range(context.choices):  # of searches that make one answer for each, the last is unfinished
            left = (each for each in (*ranked, *alive) if each not in choices)
            fitting = (each for each in left if context.fits(each, choice))
            choices.append(next(fitting, None) or context.retell(choice))
        return self._reported(Answer(choices, pool, stopped_by=reason))

    def _watched(self, own: SearchContext, answer: Answer) -> Generator[Op, Any, Answer]:
        """The answer as a floor lets it out: choices that pass every guard, and nothing of the others."""
        if self.watch is None:
            return answer
        if answer.stopped_by == "abstained":
            return _closed(answer, [])
        pool = self.scale.pool or list(answer.choices)
        judged = yield from own.judge(pool)
        failed = {
            each: guard for each, scores in zip(pool, judged, strict=True) if (guard := self.watch.failed(scores))
        }
        if not failed:
            return _closed(answer, answer.choices)
        chosen: list[Sequence | None]
        told: dict[str, Any] = {}
        if self.scale.pool:
            guarded, entries = Guarded(self.select, self.watch), [entry(each) for each in pool]
            chosen = [pool[index] for index in guarded.order(entries, judged, own.choices, own.random)]
            told = guarded.report(entries, judged)
        else:
            chosen = [None if each in failed else each for each in answer.choices]
        message = next((failed[each].refusal for each in answer.choices if each in failed), self.watch.refusal)
        report = {**answer.report, **told}
        return _closed(self._filled(own, replace(answer, report=report), chosen, message), pool, len(failed))

    def _rescued(
        self, own: SearchContext, watch: Watch, pool: Many[Sequence], reason: str
    ) -> Generator[Op, Any, Answer]:
        """What a search that was ended early may still return under a floor: the best that pass every guard."""
        judged = yield from own.judge(pool)
        verdicts = [watch.failed(scores) for scores in judged]
        passing = [each for each, guard in zip(pool, verdicts, strict=True) if guard is None]
        message = next((guard.refusal for guard in verdicts if guard is not None), watch.refusal)
        answer = self._filled(own, Answer([], [], stopped_by=reason), list(passing[: own.choices]), message)
        return _closed(answer, passing, len(pool) - len(passing))

    def _filled(self, own: SearchContext, answer: Answer, chosen: Many[Sequence | None], message: str) -> Answer:
        """The answer with these choices, and refusals in the places that are left."""
        places = [*chosen, *[None] * (own.choices - len(chosen))]
        choices = [own.say(message) if each is None else each for each in places]
        passed = any(each is not None for each in places)
        return replace(answer, choices=choices, stopped_by=answer.stopped_by if passed else "abstained")

    def _weighed(self, context: Context, weighing: Weighing) -> Generator[Op, Any, Answer]:
        """Ask the preference guide, and run the request by what it says."""
        program, opener = weighing.compile((yield Preferences(weighing.guide)))
        weighing.weighed.append(program)
        context.reopen(opener)
        if not program.preparing:
            yield Prefill([context.prompt])
        return (yield from program.run(context))

    def _prepare(self, context: SearchContext) -> Generator[Op, Any, None]:
        """Let the prompt parts make another conversation, and begin anew with it."""
        messages = context.messages
        for number, part in self.preparing:
            told = self.told[number]
            told["because"] = "interrupted"  # stands if the request is ended meanwhile
            messages, report = yield from part.prepare(context, messages)
            del told["because"]
            told.update(report if self.watch is None and number >= self.laid else _wordless(report, ()))
        context.restart(messages)
        yield Prefill([context.prompt])

    def _reported(self, answer: Answer) -> Answer:
        """The answer with what the prompt parts tell, and the weights that preference guides gave the rewards."""
        told: dict[str, Any] = {"prompt": list(self.told)} if self.told else {}
        if self.scale.preferences:
            told["weights"] = dict(self.scale.preferences)
        if self.preference is not None:
            told["preference"] = dict(self.preference)
        return replace(answer, report={**answer.report, **told}) if told else answer

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


def _closed(answer: Answer, known: Collection[Sequence], withheld: int = 0) -> Answer:
    """The answer without a word of what was not chosen: no other candidates, and no text in the report.

    `known` holds the choices that are answers and no refusals, and perhaps others.
    """
    choices = [each for each in answer.choices if each in known]
    texts = {each.text.text for each in choices}
    silent = withheld or answer.stopped_by == "abstained"  # numbers, too, would tell of what was kept back
    report = {} if silent else _wordless(answer.report, texts)
    report = {**report, "withheld": withheld}
    return replace(answer, candidates=choices, report=report)


def _wordless(told: Any, texts: Collection[str]) -> Any:
    """A report in which only these texts are left of all strings."""
    if isinstance(told, dict):
        return {key: _wordless(value, texts) for key, value in told.items()}
    if isinstance(told, list | tuple):
        return [_wordless(value, texts) for value in told]
    return None if isinstance(told, str) and told not in texts else told
