"""CARDS: cascade reward sampling, one answer by rejection of segments (Li et al. 2024, arXiv 2406.16306).

A segment ends where the base is unsure what comes next (entropy), for a reward of the text so far means most there.
A segment that brings the answer to length t is accepted with probability min(1, exp((r - tau_t) / beta)), where
tau_t = r_0 + t / T * (r* - r_0), never above r*, and r_0 = (1 - alpha) * r(empty answer) + alpha * r*. As in the
published code, t counts the segment itself; T, there the longest answer, is `length` here.
"""

from collections import Counter
from collections.abc import Generator
from collections.abc import Sequence as Many
from math import exp, isfinite
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from trimtab.decoders.params import Count, Share
from trimtab.decoders.registry import strategy
from trimtab.decoders.rewards import Expression
from trimtab.decoders.search.base import Search, SearchContext
from trimtab.engine.program import Answer, Extend, Op, Until
from trimtab.engine.sequence import Sequence


@strategy(
    "cards",
    paper="Li et al. 2024, arXiv 2406.16306",
    cost="1 answer and the rejected segments, at most `attempts` for one; a score of each segment",
    needs=("reward",),
)
class Cards(Search):
    """Write segment by segment; keep a segment if the reward so far is above a rising threshold."""

    rows_field: ClassVar[str] = "parallel"
    measures: ClassVar[bool] = True  # the entropy that ends a segment is one of them
    distributions: ClassVar[bool] = True
    reward: Expression = Field(description="what scores the answer")
    value: Expression | None = Field(None, description="what scores the answer so far; `reward` if not given")
    target: float = Field(allow_inf_nan=False, description="r*: the value that the end of an answer should reach")
    alpha: Share = Field(0.5, description="where the threshold begins: 0 at the value of the empty answer, 1 at target")
    beta: float = Field(0.7, gt=0.0, allow_inf_nan=False, description="how soft the threshold is, in units of value")
    hard: bool = Field(False, description="accept what reaches the threshold, and nothing else")
    entropy: float = Field(3.0, ge=0.0, allow_inf_nan=False, description="nats: of the base, where a segment ends")
    min_segment: Count = Field(4, description="tokens of a segment at least")
    max_segment: Count = Field(64, description="tokens of a segment at most")
    length: Count = Field(128, description="T: tokens at which the threshold reaches the target; max_tokens if lower")
    attempts: int = Field(20, ge=1, le=256, description="rejections after which the best of them is accepted")
    parallel: int = Field(4, ge=1, le=64, description="segments drawn at once; the first that is accepted counts")

    @model_validator(mode="after")
    def _segments_have_a_length(self) -> Self:
        if self.min_segment > self.max_segment:
            raise ValueError(f"min_segment={self.min_segment} is above max_segment={self.max_segment}: lower it")
        return self

    def rows(self, choices: int) -> int:
        return self.parallel

    def run(self, context: SearchContext) -> Generator[Op, Any, Answer]:
        answers = context.prompt.fork(context.choices)
        (empty,) = yield from context.assess(answers[:1], self.value or self.reward)
        first = self.target - (1.0 - self.alpha) * (self.target - empty) if isfinite(empty) else self.target
        tally: Counter[str] = Counter()
        for choice, answer in enumerate(answers):
            while answer.finish is None:
                answer = yield from self._segment(context, answer, first, tally)
                context.commit(answer, choice)
            answers[choice] = answer
            yield from context.score([answer], self.reward)
        judged = tally["rejected"] + tally["accepted"]
        report = {
            "acceptance_rate": tally["accepted"] / judged,
            "segments": tally["accepted"] + tally["forced"],
            "forced": tally["forced"],
            "proposals": tally["proposals"],
        }
        return Answer(answers, answers, report)

    def _segment(
        self, context: SearchContext, answer: Sequence, first: float, tally: Counter[str]
    ) -> Generator[Op, Any, Sequence]:
        """The answer with one more segment.

        The answer itself is the first proposal, beside forks, so that it keeps its stream of random numbers for as
        long as it is accepted. The proposals are judged in order, which gives the same law as one at a time.
        """
        until = Until(entropy=self.entropy, min_tokens=self.min_segment)
        rejected: list[Sequence] = []  # the best one so far
        for tried in range(0, self.attempts, self.parallel):
            start, *others = answer.fork(min(self.parallel, self.attempts - tried))
            proposals = [answer, *others]
            yield Extend(proposals, max_tokens=self.max_segment, until=until)
            values = yield from context.assess(proposals, self.value or self.reward)
            tally["proposals"] += len(proposals)
            for proposal, value in zip(proposals, values, strict=True):
                if self._accepts(context, value, self._threshold(context, first, proposal.generated)):
                    tally["accepted"] += 1
                    _keep(proposal, [*rejected, *proposals, start])
                    return proposal
                tally["rejected"] += 1
            best = max([*rejected, *proposals], key=_value)
            _keep(best, [*rejected, *proposals])
            rejected, answer = [best], start
        tally["forced"] += 1
        start.free()
        return best

    def _threshold(self, context: SearchContext, first: float, tokens: int) -> float:
        """tau_t: what an answer of so many tokens should be worth."""
        longest = max(1, context.prompt.limit - context.prompt.prompt_length)
        return min(self.target, first + tokens / min(self.length, longest) * (self.target - first))

    def _accepts(self, context: SearchContext, value: float, threshold: float) -> bool:
        if value >= threshold or self.hard:
            return value >= threshold
        return context.random.random() < exp((value - threshold) / self.beta)


def _value(sequence: Sequence) -> float:
    assert sequence.value is not None
    return sequence.value


def _keep(kept: Sequence, sequences: Many[Sequence]) -> None:
    for sequence in sequences:
        if sequence is not kept:
            sequence.free()
