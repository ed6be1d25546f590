"""Blockwise Controlled Decoding: of K sampled blocks of M tokens keep the one of the highest value, and go on from it.

Mudgal et al. 2024, arXiv 2310.17022, blockwise: argmax over k of V(x, y, block_k), the blocks drawn from the base.
"""

from collections.abc import Generator
from dataclasses import asdict
from typing import Any, ClassVar

from pydantic import Field

from trimtab.decoders.kl import blockwise_bound
from trimtab.decoders.params import Count
from trimtab.decoders.registry import strategy
from trimtab.decoders.rewards import Expression
from trimtab.decoders.search.base import Search, SearchContext
from trimtab.decoders.search.blocks import Rounds, best, free_others, settle, widen
from trimtab.engine.program import Answer, Extend, Op
from trimtab.engine.sequence import Sequence


@strategy(
    "cd_blockwise", paper="Mudgal et al. 2024, arXiv 2310.17022", cost="k answers, k scores a block", needs=("reward",)
)
class BlockwiseCD(Search):
    """Best of k blocks, again and again: between plain sampling (k = 1) and best of k (one block for all)."""

    rows_field: ClassVar[str] = "k"
    k: int = Field(4, ge=1, le=64, description="blocks to draw at each place")
    block: Count = Field(32, description="tokens of a block")
    value: Expression = Field(description="what scores the answer at the end of each block")

    def rows(self, choices: int) -> int:
        return self.k

    def run(self, context: SearchContext) -> Generator[Op, Any, Answer]:
        answers: list[Sequence] = []
        considered: list[Sequence] = []
        rounds = Rounds()
        for choice in range(context.choices):
            (answer,) = context.prompt.fork(1)
            while answer.finish is None:
                drafts = widen(answer, self.k)
                yield Extend(drafts, max_tokens=self.block)
                yield from context.assess(drafts, self.value)
                yield from settle(context, drafts, None)
                (answer,) = best(drafts, 1)
                free_others(drafts, [answer])
                rounds.count(drafts, [answer])
                context.commit(answer, choice)
            answers.append(answer)
            considered += drafts
        bound = max(blockwise_bound(self.k, answer.generated, self.block) for answer in answers)
        return Answer(answers, considered, {"kl_bound": bound, "blocks": rounds.expanded, **asdict(rounds)})
