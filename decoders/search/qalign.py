"""QAlign: Metropolis-Hastings over whole answers (Faria and Smith 2025, arXiv 2504.03790).

The proposal is Quest's (Faria et al. 2024, arXiv 2406.00049): keep the first i tokens, i uniform on 0..|y|-1, and let
the model write the rest anew. The probabilities of the two endings cancel against the model's own, which leaves

    accept y' with probability min(1, exp((r(y') - r(y)) / beta) * |y| / |y'|),

so a chain converges to pi(y) exp(r(y) / beta) / Z, where pi is plain sampling under the request's own limits.
"""

from collections.abc import Generator
from math import exp, inf, log
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from trimtab.decoders.registry import strategy
from trimtab.decoders.rewards import Expression
from trimtab.decoders.search.base import Search, SearchContext, worth
from trimtab.decoders.search.sampled import Sampled
from trimtab.decoders.select import Rule
from trimtab.engine.program import Answer, Extend, Op
from trimtab.engine.sequence import Sequence


@strategy(
    "qalign",
    paper="Faria and Smith 2025, arXiv 2504.03790",
    cost="1 answer, and half an answer and a score a step; times chains",
    needs=("reward",),
)
class QAlign(Search):
    """Write the end of an answer anew, again and again, and keep each version with a chance that the reward sets."""

    one_voice: ClassVar[bool] = True
    rows_field: ClassVar[str] = "chains"
    reward: Expression = Field(description="what scores the answers: a reward's name, or an expression over several")
    beta: float = Field(
        1.0, gt=0.0, le=1e6, description="temperature of the reward: the target is base * exp(r / beta)"
    )
    steps: int = Field(32, ge=0, le=2048, description="proposals of each chain; 0 is plain sampling")
    chains: int = Field(1, ge=1, le=16, description="chains side by side, each of which ends with one answer")
    burn_in: int = Field(
        0, ge=0, le=2048, description="states at the start of each chain that a `select` rule does not see"
    )

    @model_validator(mode="after")
    def _some_states_are_left(self) -> Self:
        if self.burn_in > self.steps:
            raise ValueError(f"burn_in={self.burn_in} leaves no state of {self.steps} steps: lower it or raise steps")
        return self

    def rows(self, choices: int) -> int:
        return self.chains

    def most(self) -> int:
        return self.chains

    def rule(self) -> Rule:
        return Sampled()

    def run(self, context: SearchContext) -> Generator[Op, Any, Answer]:
        states = context.prompt.fork(self.chains)
        yield Extend(states)
        yield from context.score(states, self.reward)
        history = [states]  # (steps + 1, chains)
        tried = list(states)
        held = list(states)  # those that have pages
        best = max(states, key=worth)
        cuts: list[int] = []
        accepted = 0
        for _ in range(self.steps):
            proposals = [state.fork(1)[0] for state in states]
            for proposal in proposals:
                cuts.append(int(context.random.integers(proposal.generated)))
                proposal.trim(cuts[-1])
            yield Extend(proposals)
            yield from context.score(proposals, self.reward)
            pairs = list(zip(states, proposals, strict=True))
            moves = [context.random.random() < self._acceptance(*pair) for pair in pairs]
            states = [pair[move] for pair, move in zip(pairs, moves, strict=True)]
            accepted += sum(moves)
            history.append(states)
            tried += proposals
            best = max((best, *proposals), key=worth)
            held += proposals
            for each in held:
                if each is not best and each not in states:
                    each.free()
            held = [each for each in held if each is best or each in states]
        chains = list(zip(*history, strict=True))
        visited = [state for chain in chains for state in chain[self.burn_in :]]
        if isinstance(context.select, Sampled):
            pool = sorted(states, key=_failed)[: context.choices]
        else:
            pool = list(dict.fromkeys(visited)) if context.select.needs_reward else visited
        return context.choose(
            pool,
            tried,
            steps=self.steps,
            acceptance_rate=accepted / max(1, len(cuts)),
            mean_cut=sum(cuts) / max(1, len(cuts)),
            rewards=[[None if _failed(state) else state.reward for state in chain] for chain in chains],
        )

    def _acceptance(self, state: Sequence, proposal: Sequence) -> float:
        """Probability to move on; 0 if a guide failed on the proposal, 1 if it failed on the state alone."""
        if worth(proposal) == -inf:
            return 0.0
        gain = (worth(proposal) - worth(state)) / self.beta
        return exp(min(0.0, gain + log(state.generated / proposal.generated)))


def _failed(state: Sequence) -> bool:
    return worth(state) == -inf
