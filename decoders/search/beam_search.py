"""Beam search over reasoning steps, scored by a process reward (Snell et al. 2024, arXiv 2408.03314).

n beams write a step each; the n / m of the highest score go on, m ways each.
"""

from collections.abc import Generator
from dataclasses import asdict
from math import inf
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from trimtab.decoders.params import Count
from trimtab.decoders.registry import strategy
from trimtab.decoders.rewards import Expression
from trimtab.decoders.search.base import Search, SearchContext
from trimtab.decoders.search.blocks import Rounds, alive, free_others, prune, settle, widen
from trimtab.engine.program import Answer, Extend, Op, Until
from trimtab.engine.sequence import Sequence


@strategy(
    "beam_search", paper="Snell et al. 2024, arXiv 2408.03314", cost="n answers, n scores a step", needs=("reward",)
)
class BeamSearch(Search):
    """Beam search over sampled steps: the best n / m of n beams go on, m ways each."""

    temperature: ClassVar[float | None] = 0.8
    n: int = Field(4, ge=1, le=256, description="beams")
    m: int = Field(4, ge=1, le=256, description="ways in which each beam that is kept goes on")
    value: Expression = Field(description="what scores the answer after each step")
    aggregate: Literal["last", "min", "mean", "product"] = Field(
        "last", description="of the step's scores, what ranks the beams; product is for scores that are probabilities"
    )
    reward: Expression | None = Field(None, description="picks among the final answers; what ranked them if not given")
    separator: str = Field("\n\n", min_length=1, max_length=64, description="text that ends a step")
    step_tokens: Count = Field(256, description="a step's greatest length")
    steps: int = Field(40, ge=1, le=1000, description="steps at most; the last one goes to the answer's end")

    @model_validator(mode="after")
    def _whole_beams(self) -> Self:
        if self.n % self.m:
            raise ValueError(f"n={self.n} beams cannot come from n / m kept ones: make n a multiple of m")
        return self

    def rows(self, choices: int) -> int:
        return self.n

    def most(self) -> int:
        """Beams that have ended do not go on: there may be as few answers as kept beams."""
        return self.n if self.steps == 1 else self.n // self.m

    @property
    def kept(self) -> int:
        """Beams of one tree that go on; there are n / (m * kept) trees."""
        return self.n // self.m

    def run(self, context: SearchContext) -> Generator[Op, Any, Answer]:
        rounds = Rounds()
        drafts = considered = context.prompt.fork(self.n)
        size = self.m * self.kept
        trees = [drafts[i : i + size] for i in range(0, self.n, size)]
        for step in range(1, self.steps + 1):
            grown = [each for tree in trees for each in alive(tree)]
            if not grown:
                break
            yield from self._step(context, grown, step)
            considered = [each for tree in trees for each in tree]
            trees = [prune(tree, self.kept) for tree in trees]
            beams = [each for tree in trees for each in tree]
            free_others(considered, beams)
            rounds.count(grown, beams)
            yield from settle(context, beams, self.reward)
            if context.choices == 1:
                context.commit_shared(beams)
            trees = [[each for beam in tree for each in widen(beam, self.m)] for tree in trees]
        return context.choose(beams, considered, **asdict(rounds))

    def _step(self, context: SearchContext, beams: list[Sequence], step: int) -> Generator[Op, Any, None]:
        """Write the next step of each beam and score it."""
        if step == self.steps:
            yield Extend(beams)
        else:
            yield Extend(beams, max_tokens=self.step_tokens, until=Until(strings=(self.separator,)))
        before = [each.value for each in beams]
        scores = yield from context.assess(beams, self.value)
        for each, so_far, score in zip(beams, before, scores, strict=True):
            each.value = score if so_far is None else self._aggregated(so_far, score, step)

    def _aggregated(self, so_far: float, score: float, step: int) -> float:
        """What ranks a beam after its step number `step`; a score that is missing (-inf) is never made up for."""
        if self.aggregate == "last":
            return score
        if -inf in (so_far, score):
            return -inf
        match self.aggregate:
            case "min":
                return min(so_far, score)
            case "mean":
                return (so_far * (step - 1) + score) / step
            case "product":
                return so_far * score
