"""Chunk-level beam search, also weak-to-strong search (Zhou et al. 2024, arXiv 2405.19262, algorithm 1).

W beams, K continuations of L tokens each; the W of the highest log pi_tuned(y) - log pi_untuned(y) go on: what tuning
taught a small model is the reward of a large one. Or a value guide scores the beams.
"""

from collections.abc import Generator
from dataclasses import asdict
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from trimtab.decoders.params import Count, ReaderName
from trimtab.decoders.registry import strategy
from trimtab.decoders.rewards import Expression
from trimtab.decoders.search.base import Search, SearchContext
from trimtab.decoders.search.blocks import Rounds, add_log_ratio, alive, free_others, prune, settle, widen
from trimtab.decoders.steer.draft import Draft
from trimtab.engine.plan import BASE
from trimtab.engine.program import Answer, Extend, Op


@strategy(
    "cbs", paper="Zhou et al. 2024, arXiv 2405.19262", cost="w * k answers, read by two models or scored by chunk"
)
class ChunkBeamSearch(Search):
    """Beam search over sampled chunks, by two small models' log-probability ratio or by a value."""

    rows_field: ClassVar[str] = "w"
    measures: ClassVar[bool] = True  # what the base says of its own tokens
    w: int = Field(4, ge=1, le=16, description="W, beams")
    k: int = Field(4, ge=1, le=16, description="K, continuations of each beam")
    chunk: Count = Field(10, description="L, tokens of a continuation")
    tuned: ReaderName | None = Field(None, description="language model that was tuned to what is wanted")
    untuned: ReaderName = Field(BASE, description="the same model before, or `base`")
    value: Expression | None = Field(None, description="what scores the beams, in place of tuned and untuned")
    reward: Expression | None = Field(
        None, description="picks among the final beams; what scored the beams if not given"
    )

    @model_validator(mode="after")
    def _scored_in_one_way(self) -> Self:
        if (self.tuned is None) == (self.value is None):
            raise ValueError("beams are scored by models or by a value: give one of tuned and value")
        return self

    def rows(self, choices: int) -> int:
        return self.w * self.k

    def most(self) -> int:
        return self.w

    def call(self, draft: Draft) -> None:
        if self.tuned is not None:
            draft.call(self.tuned, field="tuned")
            draft.call(self.untuned, field="untuned")

    def run(self, context: SearchContext) -> Generator[Op, Any, Answer]:
        rounds = Rounds()
        candidates = considered = context.prompt.fork(self.w * self.k)
        while grown := alive(candidates):
            starts = [each.generated for each in grown]
            yield Extend(grown, max_tokens=self.chunk)
            if self.value is not None:
                yield from context.assess(grown, self.value)
            elif self.tuned is not None:
                yield from add_log_ratio(grown, starts, (self.tuned, self.untuned))
            beams, considered = prune(candidates, self.w), candidates
            free_others(candidates, beams)
            rounds.count(grown, beams)
            yield from settle(context, beams, self.reward)
            if context.choices == 1:
                context.commit_shared(beams)
            candidates = [each for beam in beams for each in widen(beam, self.k)]
        return context.choose(candidates, considered, **asdict(rounds))
