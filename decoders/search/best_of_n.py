"""Best-of-N: draw N independent answers and return the one of the highest reward (Stiennon et al., 2009.01325).

With distinct rewards the answer y has probability F(y)^N - F(y-)^N, F the base distribution function of the reward.
"""

from collections.abc import Collection, Generator
from typing import Any

from pydantic import Field

from trimtab.decoders.params import Params, require_reward
from trimtab.decoders.registry import strategy
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.program import Answer, Context, Extend, Op, Score


@strategy("best_of_n", paper="Stiennon et al. 2020, arXiv 2009.01325", cost="n answers, n scores", needs=("reward",))
class BestOfN(Params):
    """Draw n answers, return the best by a reward."""

    n: int = Field(8, ge=1, description="answers to draw")
    reward: str = Field(description="name of the guide that scores the answers")

    def rows(self, choices: int) -> int:
        return self.n

    def check(self, *, choices: int, rewards: Collection[str]) -> None:
        require_reward(self.reward, rewards)
        if choices > self.n:
            raise InvalidRequest(f"best_of_n returns the best of n={self.n} answers, not {choices}", param="n")

    def run(self, context: Context) -> Generator[Op, Any, Answer]:
        drafts = context.prompt.fork(self.n)
        yield Extend(drafts)
        rewards = yield Score(drafts, self.reward)
        return context.choose(drafts, rewards, self.reward)
