"""PPO-MCTS: tree search over tokens with the value model that PPO leaves behind (Liu et al. 2023, arXiv 2309.15028).

A simulation goes down by PUCT, adds one token, reads V there and the k likeliest next tokens, whose Q starts at V(s),
and carries V back. The backup is the paper's where no reference policy is at hand (its "approximate Q with V"): no KL
penalty on the edges and no discount, so that Q(s, a) is the mean of V over the nodes from a on. N(s) counts the visit
that made s. p(a|s) is the softmax over the k proposed tokens, as the base is steered, not over the whole vocabulary.
"""

from collections.abc import Generator
from math import inf
from typing import Any, ClassVar

from pydantic import Field

from trimtab.decoders.registry import strategy
from trimtab.decoders.rewards import Expression
from trimtab.decoders.search.base import Search, SearchContext
from trimtab.decoders.search.puct import Growth, Judge, Node
from trimtab.decoders.weights import softmax
from trimtab.engine.program import Answer, Draw, Op, Propose


@strategy(
    "ppo_mcts",
    paper="Liu et al. 2023, arXiv 2309.15028",
    cost="1 answer, up to `simulations` tokens and values for each of its tokens",
    needs=("value",),
)
class PpoMcts(Search):
    """Tree search over tokens by PUCT with a value model; the most visited token is next (temperature 0)."""

    temperature: ClassVar[float | None] = 0.0
    one_voice: ClassVar[bool] = True
    distributions: ClassVar[bool] = True
    rows_field: ClassVar[str] = "parallel"
    value: Expression = Field(description="V of an unfinished answer; a value head on the base is the cheapest")
    reward: Expression | None = Field(None, description="worth of a finished answer; V if not given")
    simulations: int = Field(
        10, ge=1, le=256, description="for each token, with those that the subtree kept from the last token has seen"
    )
    k: int = Field(10, ge=1, le=64, description="next tokens of a node; no other can follow")
    c: float = Field(8.0, ge=0.0, le=1e4, allow_inf_nan=False, description="c_puct, weight of the exploration bonus")
    prior_temperature: float = Field(
        1.0, gt=0.0, le=100.0, allow_inf_nan=False, description="tau_e: divides the scores that the priors come from"
    )
    parallel: int = Field(
        1, ge=1, le=16, description="simulations at once; those under way count as visits and leave the means alone"
    )

    def rows(self, choices: int) -> int:
        return self.parallel

    def run(self, context: SearchContext) -> Generator[Op, Any, Answer]:
        answers, growth = [], Growth()
        temperature = context.prompt.plan.sampling.temperature
        for choice in range(context.choices):
            (start,) = context.prompt.fork(1)
            root = Node(start)
            yield from self._expand(context, [root], growth)
            while root.sequence.finish is None:
                yield from self._simulate(context, root, growth)
                child = root.choose(temperature, context.random)
                if child.token is not None:  # every child that was tried lacks a value
                    yield from self._visit(context, [child], growth)
                growth.chose(root, child)
                root.move_to(child)
                root = child
                context.commit(root.sequence, choice)
            answers.append(root.sequence)
        return growth.answer(answers)

    def _simulate(self, context: SearchContext, root: Node, growth: Growth) -> Generator[Op, Any, None]:
        """Fill the root up to its share of simulations; its own value was the first visit."""
        left = self.simulations - max(root.visits - 1, 0)
        while left > 0:
            leaves: list[Node] = []
            while len(leaves) < min(self.parallel, left):
                leaf = root.leaf(lambda seen: self.c)
                if leaf in leaves:  # the tree has nowhere else to go until its value is known
                    break
                leaf.hold(1)
                leaves.append(leaf)
                growth.simulated(leaf)
            left -= len(leaves)
            yield from self._visit(context, leaves, growth)
            for leaf in leaves:
                leaf.hold(-1)

    def _visit(self, context: SearchContext, leaves: list[Node], growth: Growth) -> Generator[Op, Any, None]:
        """Let every leaf count once more: a new one for V there, one that has ended for its reward."""
        tokens = {leaf: leaf.token for leaf in leaves if leaf.token is not None}
        for leaf in leaves:
            if leaf not in tokens:
                leaf.back_up(leaf.q)
        for leaf in tokens:
            (leaf.sequence,) = leaf.sequence.fork(1)
        yield Draw([leaf.sequence for leaf in tokens], [{token: 0.0} for token in tokens.values()])
        for leaf in tokens:
            leaf.token = None
        yield from self._expand(context, list(tokens), growth)

    def _expand(self, context: SearchContext, nodes: list[Node], growth: Growth) -> Generator[Op, Any, None]:
        """Read V of new nodes and what could follow them."""
        sequences = [node.sequence for node in nodes]
        proposals: list[dict[int, float]] = yield Propose(sequences, self.k)
        values = yield from Judge.of(self.value, self.reward).worth(context, sequences)
        growth.nodes += len(nodes)
        for node, proposal, value in zip(nodes, proposals, values, strict=True):
            if proposal:
                growth.expanded += 1
                first = node.q if value == -inf else value
                priors = softmax([score / self.prior_temperature for score in proposal.values()])
                node.children = [
                    Node(node.sequence, node, float(prior), first, token)
                    for token, prior in zip(proposal, priors, strict=True)
                ]
            node.back_up(value)
