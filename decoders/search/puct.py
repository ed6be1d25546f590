"""The tree of ppo_mcts and ts_llm: PUCT on the way down, means on the way up, choices by visits.

PUCT (Rosin 2011; Silver et al. 2017, arXiv 1712.01815) follows from state s the action a of the highest

    Q(s, a) + c(N(s)) * p(a|s) * sqrt(N(s)) / (1 + N(s, a))
"""

from collections.abc import Callable, Generator, Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from math import inf, isfinite, log, sqrt
from typing import Any, Self

import numpy as np

from trimtab.decoders.rewards import Expression
from trimtab.decoders.search.base import SearchContext
from trimtab.decoders.weights import draw
from trimtab.engine.program import Answer, Op
from trimtab.engine.sequence import Sequence


@dataclass(eq=False, slots=True)
class Node:
    """One answer so far, with what the simulations through it have found."""

    sequence: Sequence
    parent: "Node | None" = None
    prior: float = 1.0
    """p of the step that leads here, among its siblings"""
    q: float = 0.0
    """mean of the values that came back through it; what it is taken to be worth before the first one"""
    token: int | None = None
    """what is still to be added to `sequence`, which is the parent's as long as this is not None"""
    visits: int = 0
    pending: int = 0
    """simulations that are under way through it: they count as visits and leave the mean alone (WU-UCT, 1810.11755)"""
    children: list["Node"] = field(default_factory=list)

    @property
    def path(self) -> Iterator["Node"]:
        """From here up to the root."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent

    def leaf(self, c: Callable[[int], float]) -> "Node":
        """The node without children that PUCT leads to; of equal children the first."""
        node = self
        while node.children:
            seen = node.visits + node.pending
            node = max(node.children, key=_Puct(c(seen) * sqrt(seen)))
        return node

    def hold(self, count: int) -> None:
        """Add to the simulations under way through this node and those above it."""
        for node in self.path:
            node.pending += count

    def back_up(self, value: float) -> None:
        """Let a value count here and above; -inf, where a guide failed, rates this node last and no other."""
        if value == -inf:
            self.q = value
            return
        for node in self.path:
            node.visits += 1
            node.q = value if node.visits == 1 else node.q + (value - node.q) / node.visits

    def choose(self, temperature: float, random: np.random.Generator) -> "Node":
        """The child of most visits, of equal ones the better; or one with P ~ visits ** (1 / temperature)."""
        if temperature == 0.0 or not any(child.visits for child in self.children):
            return max(self.children, key=lambda child: (child.visits, child.q))
        logs = [log(child.visits) / temperature if child.visits else -inf for child in self.children]
        return self.children[draw(logs, random)[0]]

    def move_to(self, child: "Node") -> None:
        """Make `child` the root and give back all that does not follow from it."""
        left = [self]
        while left:
            node = left.pop()
            if node.token is None:
                node.sequence.free()
            left += [each for each in node.children if each is not child]
        child.parent = None


@dataclass(frozen=True, slots=True)
class _Puct:
    """The score of a child under a parent whose bonus is c * sqrt(N)."""

    bonus: float

    def __call__(self, child: Node) -> float:
        return child.q + self.bonus * child.prior / (1 + child.visits + child.pending)


@dataclass(slots=True)
class Growth:
    """What a tree search reports."""

    simulations: int = 0
    nodes: int = 0
    """answers, finished or not, that were given a value"""
    expanded: int = 0
    max_depth: int = 0
    """steps that a simulation looked beyond the answer"""
    chosen_visits: int = 0
    all_visits: int = 0

    def simulated(self, leaf: Node) -> None:
        self.simulations += 1
        self.max_depth = max(self.max_depth, sum(1 for _ in leaf.path) - 1)

    def chose(self, root: Node, child: Node) -> None:
        self.chosen_visits += child.visits
        self.all_visits += sum(each.visits for each in root.children)

    def answer(self, choices: Many[Sequence]) -> Answer:
        """`visit_share` is how much of the visits the chosen steps had."""
        report = {
            "simulations": self.simulations,
            "nodes": self.nodes,
            "expanded": self.expanded,
            "max_depth": self.max_depth,
            "visit_share": self.chosen_visits / self.all_visits if self.all_visits else 0.0,
        }
        return Answer(choices, choices, report)


@dataclass(frozen=True, slots=True)
class Judge:
    """What tells the worth of an answer: `reward` of a finished one, `value` of the others."""

    value: Expression
    reward: Expression

    @classmethod
    def of(cls, value: Expression, reward: Expression | None) -> Self:
        return cls(value, reward or value)

    def worth(self, context: SearchContext, sequences: Many[Sequence]) -> Generator[Op, Any, list[float]]:
        """One number for each answer, in their order; -inf where a guide failed."""
        ended = [each for each in sequences if each.finish is not None]
        going = [each for each in sequences if each.finish is None]
        found: dict[Sequence, float] = {}
        if ended:
            found |= zip(ended, (yield from context.score(ended, self.reward)), strict=True)
        if going:
            found |= zip(going, (yield from context.assess(going, self.value)), strict=True)
        return [found[each] if isfinite(found[each]) else -inf for each in sequences]
