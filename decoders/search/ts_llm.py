"""TS-LLM: AlphaZero's tree search with sentences for moves (Feng et al. 2023, arXiv 2309.17179).

A node is expanded the second time that a simulation ends there: `width` sentences are drawn, and the different ones
become its children, with their values. PUCT has c(N) = log((N + 19652 + 1) / 19652) + 1.25. The prior of a sentence is
its probability per token, exp(mean log-probability), over the sum of its siblings'.
"""

from collections.abc import Generator
from math import exp, fsum, log
from typing import Annotated, Any, ClassVar

from pydantic import Field

from trimtab.decoders.registry import strategy
from trimtab.decoders.rewards import Expression
from trimtab.decoders.search.base import Search, SearchContext
from trimtab.decoders.search.puct import Growth, Judge, Node
from trimtab.engine.program import Answer, Extend, Op, Until
from trimtab.engine.sequence import Sequence

PB_C_BASE, PB_C_INIT = 19652, 1.25
"""AlphaZero's"""


@strategy(
    "ts_llm",
    paper="Feng et al. 2023, arXiv 2309.17179",
    cost="1 answer, up to `simulations * width` steps and values for each of its steps",
    needs=("value",),
)
class TsLlm(Search):
    """Tree search over sampled sentences by PUCT with a value of unfinished answers; the most visited step is next."""

    rows_field: ClassVar[str] = "width"
    measures: ClassVar[bool] = True
    weighs_draws: ClassVar[bool] = True
    value: Expression = Field(description="worth of an unfinished answer")
    reward: Expression | None = Field(None, description="worth of a finished answer; `value` if not given")
    simulations: int = Field(20, ge=1, le=256, description="for each step")
    width: int = Field(6, ge=1, le=64, description="sentences drawn where a node is expanded")
    step_tokens: int = Field(64, ge=1, le=4096, description="a step is no longer than this")
    endings: tuple[Annotated[str, Field(min_length=1, max_length=16)], ...] = Field(
        (".", "!", "?", "\n"), strict=False, max_length=16, description="a step ends with a token that ends in one"
    )
    min_step_tokens: int = Field(1, ge=1, le=4096, description="no ending counts before")

    def rows(self, choices: int) -> int:
        return self.width

    def run(self, context: SearchContext) -> Generator[Op, Any, Answer]:
        answers, growth = [], Growth()
        for choice in range(context.choices):
            (start,) = context.prompt.fork(1)
            root = Node(start)
            while root.sequence.finish is None:
                if not root.children:
                    yield from self._expand(context, root, growth)
                for _ in range(self.simulations):
                    yield from self._simulate(context, root, growth)
                child = root.choose(0.0, context.random)
                growth.chose(root, child)
                root.move_to(child)
                root = child
                context.commit(root.sequence, choice)
            answers.append(root.sequence)
        return growth.answer(answers)

    def _simulate(self, context: SearchContext, root: Node, growth: Growth) -> Generator[Op, Any, None]:
        """Count one more node in, and expand it first if it has counted before and the answer goes on."""
        leaf = root.leaf(exploration)
        if leaf.visits and leaf.sequence.finish is None:
            yield from self._expand(context, leaf, growth)
            leaf = leaf.leaf(exploration)
        growth.simulated(leaf)
        leaf.back_up(leaf.q)

    def _expand(self, context: SearchContext, node: Node, growth: Growth) -> Generator[Op, Any, None]:
        """Draw sentences that go on from a node; equal ones are one child."""
        drafts = node.sequence.fork(self.width)
        yield Extend(drafts, self.step_tokens, Until(endings=self.endings, min_tokens=self.min_step_tokens))
        steps: dict[tuple[int, ...], Sequence] = {}
        for draft in drafts:
            if steps.setdefault(tuple(draft.answer), draft) is not draft:
                draft.free()
        different = list(steps.values())
        values = yield from Judge.of(self.value, self.reward).worth(context, different)
        growth.expanded += 1
        growth.nodes += len(different)
        priors = [_probability_per_token(draft, node.sequence.generated) for draft in different]
        total = fsum(priors)
        node.children = [
            Node(draft, node, prior / total, value)
            for draft, prior, value in zip(different, priors, values, strict=True)
        ]


def exploration(visits: int) -> float:
    """AlphaZero's pb_c before the visits' square root: the weight of the priors, which grows with the visits."""
    return log((visits + PB_C_BASE + 1) / PB_C_BASE) + PB_C_INIT


def _probability_per_token(draft: Sequence, start: int) -> float:
    """exp of the mean log-probability of the tokens from number `start` on, as they were drawn."""
    logprobs = [each.logprob for each in draft.measures[start:]]
    return exp(fsum(logprobs) / max(len(logprobs), 1))
