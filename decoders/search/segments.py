"""A tree over the segments of sampled answers, and how it grows (Diffusion Tree Sampling, arXiv 2506.20701).

The paper's tree is over noise levels of an image; here a node is what answers begin with, `block` tokens a level.
A simulation walks down from the root. Where a node has few continuations for its visits (progressive widening, at most
width * N^alpha) the model writes one to its end, and all of it is added to the tree; else the walk goes on to a child.
The reward moves up by the soft Bellman equation, as logarithms with lambda = 1 / beta:

    value(node) = log sum_c (drawn_c / drawn) exp(value(c)),    value(whole answer) = r / beta.

Text is discrete: segments that the model draws again are one child with a count, where the paper has one child a draw.
"""

from collections.abc import Generator
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from math import ceil, inf, isfinite, isnan
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from trimtab.decoders.rewards import Expression
from trimtab.decoders.search.base import Search, SearchContext
from trimtab.decoders.weights import log_mean_exp
from trimtab.engine.program import Extend, Op
from trimtab.engine.sequence import Sequence


@dataclass(eq=False, slots=True)
class Node:
    """The first `length` tokens of `answer`, from which others can be forked."""

    answer: Sequence
    length: int
    parent: "Node | None" = None
    drawn: int = 0
    """times that the model went on from the parent to here"""
    draws: int = 0
    """times that it was to go on from here, those under way included"""
    visits: int = 0
    """simulations that came here, and were not at their end"""
    value: float = -inf
    """log mean exp(r / beta) below"""
    children: dict[tuple[int, ...], "Node"] = field(default_factory=dict)
    """by segment"""

    @property
    def final(self) -> bool:
        """Whether it is a whole answer."""
        return self.answer.finish is not None and self.length == self.answer.generated

    def add(self, answer: Sequence, block: int, value: float) -> bool:
        """Add an answer that goes on from here, and its value all the way up; whether it is a new one."""
        ids, node, new = tuple(answer.answer), self, False
        while node.length < len(ids):
            end = min(node.length + block, len(ids))
            segment = ids[node.length : end]
            new = segment not in node.children
            if new:
                node.children[segment] = Node(answer, end, node)
            node = node.children[segment]
            node.drawn += 1
            if end < len(ids):
                node.visits += 1
                node.draws += 1
        node.value = value
        above = node.parent
        while above is not None:
            children = above.children.values()
            above.value = log_mean_exp([each.value for each in children], [each.drawn for each in children])
            above = above.parent
        return new


class TreeSearch(Search):
    """What dts and dts_star share."""

    one_voice: ClassVar[bool] = True
    rows_field: ClassVar[str] = "parallel"
    most_field: ClassVar[str | None] = "simulations"
    reward: Expression = Field(description="what scores the answers: a reward's name, or an expression over several")
    beta: float = Field(1.0, gt=0.0, le=1e6, description="temperature of the reward, 1 / lambda of the paper")
    block: int = Field(16, ge=1, le=4096, description="tokens of a segment")
    simulations: int = Field(32, ge=1, le=1024, description="answers written on the way, most of them in part")
    parallel: int = Field(8, ge=1, le=256, description="simulations side by side, which do not know of each other")
    width: float = Field(1.0, gt=0.0, le=1e3, description="C: a node of N visits gets C * N^alpha continuations")
    alpha: float = Field(0.5, gt=0.0, le=1.0, description="see `width`; 1 with width 1 draws whole answers alone")

    def rows(self, choices: int) -> int:
        return min(self.parallel, self.simulations)

    def most(self) -> int:
        return self.simulations

    def follow(self, node: Node, children: Many[Node], random: np.random.Generator) -> Node:
        """The child that a simulation goes on to, of those that are no whole answers."""
        raise NotImplementedError

    def grow(self, context: SearchContext) -> Generator[Op, Any, tuple[Node, list[Sequence]]]:
        """The tree after all simulations, and their answers in the order of writing; those met before are freed."""
        root = Node(context.prompt, 0)
        answers: list[Sequence] = []
        while len(answers) < self.simulations:
            count = min(self.parallel, self.simulations - len(answers))
            nodes = [self._reached(root, context.random) for _ in range(count)]
            rollouts = [node.answer.fork(1)[0] for node in nodes]
            for node, rollout in zip(nodes, rollouts, strict=True):
                rollout.trim(node.length)
            yield Extend(rollouts)
            rewards = yield from context.score(rollouts, self.reward)
            for node, rollout, reward in zip(nodes, rollouts, rewards, strict=True):
                if not node.add(rollout, self.block, -inf if isnan(reward) else reward / self.beta):
                    rollout.free()
            answers += rollouts
        return root, answers

    def told(self, root: Node, answers: Many[Sequence]) -> dict[str, Any]:
        """What the response says of the tree."""
        nodes = [root]
        for node in nodes:
            nodes += node.children.values()
        rewards = [each.reward for each in answers if each.reward is not None and isfinite(each.reward)]
        return {
            "simulations": len(answers),
            "nodes": len(nodes),
            "depth": max(ceil(each.generated / self.block) for each in answers),
            "best_reward": max(rewards, default=None),
        }

    def _reached(self, node: Node, random: np.random.Generator) -> Node:
        """The node at which one more simulation is to leave the tree; whole answers have nothing to leave for."""
        while True:
            node.visits += 1
            unfinished = [each for each in node.children.values() if not each.final]
            if not unfinished or node.draws < self.width * node.visits**self.alpha:
                node.draws += 1
                return node
            node = self.follow(node, unfinished, random)
