"""TreeBoN: best-of-N whose drafts grow in layers of segments, of which the less promising are replaced by branches.

Qiu et al. 2024, arXiv 2410.16033: drafts are weighed by sum_k w_k (log pi_dpo(y_k) - log pi_ref(y_k)), w_k = 1 / k,
the implicit reward of a model that was tuned by DPO, in which early tokens count the most.
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
from trimtab.engine.sequence import Sequence


@strategy(
    "treebon",
    paper="Qiu et al. 2024, arXiv 2410.16033",
    cost="n answers, read by two models or scored by layer, n scores",
    needs=("reward",),
)
class TreeBoN(Search):
    """Best of n over a tree: after each layer the best n / children drafts branch, the others are dropped."""

    measures: ClassVar[bool] = True  # what the base says of its own tokens
    n: int = Field(8, ge=1, le=256, description="N, drafts of a layer")
    layers: int = Field(5, ge=1, le=256, description="layers of the tree")
    children: int = Field(4, ge=1, le=256, description="branches of each draft that is kept")
    segment: Count | None = Field(
        None, description="tokens of a layer, the last of which goes to the end; max_tokens / layers if not given"
    )
    dpo: ReaderName | None = Field(None, description="language model that was tuned by DPO")
    ref: ReaderName = Field(BASE, description="the same model before, or `base`")
    value: Expression | None = Field(None, description="what scores the unfinished drafts, in place of dpo and ref")
    reward: Expression = Field(description="picks among the final answers")

    @model_validator(mode="after")
    def _scored_in_one_way(self) -> Self:
        if (self.dpo is None) == (self.value is None):
            raise ValueError("drafts are weighed by models or by a value: give one of dpo and value")
        if self.n % self.children:
            raise ValueError(f"n={self.n} drafts cannot be the children of n / children: make n a multiple of children")
        return self

    def rows(self, choices: int) -> int:
        return self.n

    def most(self) -> int:
        """Drafts that have ended do not branch: there may be as few answers as parents."""
        return self.n if self.layers == 1 else self.n // self.children

    def call(self, draft: Draft) -> None:
        if self.dpo is not None:
            draft.call(self.dpo, field="dpo")
            draft.call(self.ref, field="ref")

    def run(self, context: SearchContext) -> Generator[Op, Any, Answer]:
        rounds = Rounds()
        drafts = context.prompt.fork(self.n)
        segment = self.segment or max(1, (context.prompt.limit - context.prompt.prompt_length) // self.layers)
        for _ in range(self.layers - 1):
            if not (grown := alive(drafts)):
                break
            yield from self._grow(context, grown, segment)
            parents = prune(drafts, self.n // self.children)
            free_others(drafts, parents)
            rounds.count(grown, parents)
            yield from settle(context, parents, self.reward)
            if context.choices == 1:
                context.commit_shared(parents)
            drafts = [each for parent in parents for each in widen(parent, self.children)]
        if grown := alive(drafts):
            yield from context.finish(grown, self.reward)
            rounds.count(grown, drafts)
        return context.choose(drafts, **asdict(rounds))

    def _grow(self, context: SearchContext, drafts: list[Sequence], segment: int) -> Generator[Op, Any, None]:
        """Write the next segment of each draft and weigh it."""
        starts = [each.generated for each in drafts]
        yield Extend(drafts, max_tokens=segment)
        if self.value is not None:
            yield from context.assess(drafts, self.value)
        elif self.dpo is not None:
            yield from add_log_ratio(drafts, starts, (self.dpo, self.ref), lambda k: 1.0 / k)
