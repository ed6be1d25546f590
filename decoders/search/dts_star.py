"""Diffusion Tree Search, for text: dts in search of the best answer (Jain et al. 2025, arXiv 2506.20701).

Where it goes on to a child, it takes the one of the highest soft value and upper confidence bound,

    beta * value(child) + c * sqrt(log N / N_child).
"""

from collections.abc import Generator
from collections.abc import Sequence as Many
from math import log, sqrt
from typing import Any

import numpy as np
from pydantic import Field

from trimtab.decoders.registry import strategy
from trimtab.decoders.search.base import SearchContext
from trimtab.decoders.search.segments import Node, TreeSearch
from trimtab.engine.program import Answer, Op


@strategy(
    "dts_star",
    paper="Jain et al. 2025, arXiv 2506.20701",
    cost="simulations answers at most, shared beginnings once, and as many scores",
    needs=("reward",),
)
class DTSStar(TreeSearch):
    """Search a tree of answers for the highest reward, going on where the soft value of what was found is highest."""

    c: float = Field(1.0, ge=0.0, le=1e4, description="exploration, in units of the reward; 0 is greedy")

    def run(self, context: SearchContext) -> Generator[Op, Any, Answer]:
        root, answers = yield from self.grow(context)
        return context.choose(answers, **self.told(root, answers))

    def follow(self, node: Node, children: Many[Node], random: np.random.Generator) -> Node:
        def bound(child: Node) -> tuple[float, float]:
            bonus = self.c * sqrt(log(node.visits) / child.visits)
            return self.beta * child.value + bonus, bonus  # where every value is -inf, the bonus decides

        return max(children, key=bound)
