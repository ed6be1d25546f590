"""Diffusion Tree Sampling, for text: a tree of answers from which the target is sampled (Jain et al. 2025, 2506.20701).

Where it goes on to a child, it draws one with P(c) ~ drawn_c exp(value(c)). So every unfinished child is visited
without end, every node's continuations grow with its visits, and from the leaves up: drawn_c / drawn tends to the
model's pi(c), value(node) to log E[exp(r / beta)], and a walk down the tree by the same P to pi(y) exp(r(y) / beta) / Z
(for finite rewards and a finite number of answers). With width = alpha = 1 it never leaves the root's level: that is
importance sampling, best_of_n with the soft rule.
"""

from collections.abc import Generator
from collections.abc import Sequence as Many
from math import isfinite, log
from typing import Any

import numpy as np

from trimtab.decoders.registry import strategy
from trimtab.decoders.search.base import SearchContext
from trimtab.decoders.search.sampled import Sampled
from trimtab.decoders.search.segments import Node, TreeSearch
from trimtab.decoders.select import Rule
from trimtab.decoders.weights import draw
from trimtab.engine.program import Answer, Op
from trimtab.engine.sequence import Sequence


@strategy(
    "dts",
    paper="Jain et al. 2025, arXiv 2506.20701",
    cost="simulations answers at most, shared beginnings once, and as many scores",
    needs=("reward",),
)
class DTS(TreeSearch):
    """Sample answers in proportion to exp(reward / beta) from a tree that remembers what every rollout was worth."""

    def rule(self) -> Rule:
        return Sampled()

    def run(self, context: SearchContext) -> Generator[Op, Any, Answer]:
        root, answers = yield from self.grow(context)
        pool: Many[Sequence] = answers
        if isinstance(context.select, Sampled):
            pool = [self._drawn(root, context.random) for _ in range(context.choices)]
        elif not context.select.needs_reward:
            pool = [self._drawn(root, context.random) for _ in answers]
        return context.choose(
            pool,
            answers,
            **self.told(root, answers),
            log_normaliser=root.value if isfinite(root.value) else None,
        )

    def follow(self, node: Node, children: Many[Node], random: np.random.Generator) -> Node:
        (index,) = draw([log(child.drawn) + child.value for child in children], random)
        return children[index]

    def _drawn(self, node: Node, random: np.random.Generator) -> Sequence:
        while not node.final:
            node = self.follow(node, list(node.children.values()), random)
        return node.answer
