"""Speculative rejection: best-of-N that gives up the worst drafts early (Sun et al. 2024, arXiv 2410.20290).

At each scheduled length the drafts are ranked by the reward of their text so far, and the share alpha at the bottom
is dropped; what is left is decoded to its end. In the paper a stage ends where memory does, here at a given length.
"""

from collections.abc import Generator
from collections.abc import Sequence as Many
from itertools import pairwise
from math import ceil, inf, isnan
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from trimtab.decoders.params import Count
from trimtab.decoders.registry import strategy
from trimtab.decoders.rewards import Expression
from trimtab.decoders.search.base import Search, SearchContext
from trimtab.engine.program import Answer, Extend, Op
from trimtab.engine.sequence import Sequence


@strategy(
    "speculative_rejection",
    paper="Sun et al. 2024, arXiv 2410.20290",
    cost="n answers at most, 1 / (1 - alpha) times fewer after each scheduled length; a score of each at each",
    needs=("reward",),
)
class SpeculativeRejection(Search):
    """Best of n drafts, of which those with the lowest reward so far are dropped early."""

    n: int = Field(16, ge=1, le=256, description="drafts to begin with")
    reward: Expression = Field(description="what scores the whole answers")
    value: Expression | None = Field(None, description="what ranks the drafts on their way; `reward` if not given")
    alpha: float = Field(0.5, ge=0.0, lt=1.0, description="share of the drafts that each stage drops; 0 drops none")
    schedule: Annotated[tuple[Count, ...], Field(strict=False, min_length=1, max_length=64)] = Field(
        (64, 128, 256), description="lengths of the answer, in tokens, at which drafts are dropped"
    )

    @model_validator(mode="after")
    def _lengths_rise(self) -> Self:
        if any(later <= earlier for earlier, later in pairwise(self.schedule)):
            raise ValueError(f"the lengths {list(self.schedule)} do not rise: order them, each once")
        return self

    def rows(self, choices: int) -> int:
        return self.n

    def most(self) -> int:
        return self.n

    def run(self, context: SearchContext) -> Generator[Op, Any, Answer]:
        drafts = context.prompt.fork(self.n)
        left, kept = drafts, [self.n]
        for start, end in pairwise((0, *self.schedule)):
            keep = max(self._survivors(len(left)), context.choices)
            if keep >= len(left):
                break
            growing = [draft for draft in left if draft.finish is None]
            yield Extend(growing, max_tokens=end - start)
            if all(draft.finish is not None for draft in left):
                break  # dropping one would save nothing
            yield from self._rank(context, growing)
            best = set(sorted(left, key=self._standing, reverse=True)[:keep])
            for draft in left:
                if draft not in best:
                    draft.free()
            left = [draft for draft in left if draft in best]
            kept.append(keep)
            if context.choices == 1:
                context.commit_shared(left)
        yield from context.finish([draft for draft in left if draft.reward is None], self.reward)
        return context.choose(left, drafts, kept=kept)

    def _survivors(self, count: int) -> int:
        """The top 1 - alpha, rounded up, after what the binary form of alpha adds."""
        return ceil(round(count * (1.0 - self.alpha), 9))

    def _rank(self, context: SearchContext, grown: Many[Sequence]) -> Generator[Op, Any, None]:
        """Give drafts that have grown their standing; of one that has ended the reward will do, if it is what ranks."""
        if self.value is not None:
            yield from context.assess(grown, self.value)
        else:
            yield from context.assess([draft for draft in grown if draft.finish is None], self.reward)
            yield from context.score([draft for draft in grown if draft.finish is not None], self.reward)

    def _standing(self, draft: Sequence) -> float:
        standing = draft.value if self.value is not None or draft.finish is None else draft.reward
        assert standing is not None
        return -inf if isnan(standing) else standing
