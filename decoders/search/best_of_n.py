"""Best-of-N: draw N independent answers and return the one of the highest reward (Stiennon et al., 2009.01325).

With distinct rewards the answer y has probability F(y)^N - F(y-)^N, F the base distribution function of the reward.
"""

from collections.abc import Generator
from collections.abc import Sequence as Many
from dataclasses import replace
from math import exp, fsum, isfinite, isnan, log, nan
from typing import Any, ClassVar, Literal

from pydantic import Field

from trimtab.decoders.kl import best_of_n_bound, best_of_n_estimate, largest_n, win_rate_bound
from trimtab.decoders.registry import strategy
from trimtab.decoders.rewards import Expression
from trimtab.decoders.search.base import Search, SearchContext
from trimtab.decoders.select import Argmax
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.program import Answer, Op
from trimtab.engine.sequence import Sequence


@strategy("best_of_n", paper="Stiennon et al. 2020, arXiv 2009.01325", cost="n answers, n scores", needs=("reward",))
class BestOfN(Search):
    """Draw n answers, return the best by a reward."""

    measures: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    n: int = Field(8, ge=1, le=256, description="answers to draw; fewer where `budget.max_kl` asks for it")
    reward: Expression = Field(description="what scores the answers: a reward's name, or an expression over several")
    export: Literal["best_and_worst"] | None = Field(
        None, description="best_and_worst: report a preference pair, to train a policy on (BoNBoN, DPO)"
    )

    def rows(self, choices: int) -> int:
        return self.n

    def most(self) -> int:
        return self.n

    def run(self, context: SearchContext) -> Generator[Op, Any, Answer]:
        n = self._allowed(context)
        drafts = context.prompt.fork(n)
        yield from context.finish(drafts, self.reward)
        answer = context.choose(drafts)
        told = {"n": n, **self._distance(context, drafts, answer), **self._exported(drafts)}
        return replace(answer, report={**answer.report, **told})

    def _allowed(self, context: SearchContext) -> int:
        """n, or the largest number of draws whose KL bound the budget allows."""
        max_kl = context.budget.max_kl
        n = self.n if max_kl is None else min(self.n, largest_n(max_kl))
        if n < context.choices:
            raise InvalidRequest(
                f"max_kl={max_kl:g} allows the best of {n} and n asks for {context.choices} answers: "
                "raise max_kl or lower n",
                param="decoding.budget.max_kl",
            )
        return n

    def _distance(self, context: SearchContext, drafts: Many[Sequence], answer: Answer) -> dict[str, float]:
        """KL of the choice from what the drafts were drawn from; nothing where the answer is none of them.

        The estimate is for the best of the drafts alone, the bounds for whatever rule picks one of them.
        """
        if answer.choices[0] not in drafts:
            return {}
        told = {"kl_bound": best_of_n_bound(len(drafts)), "win_rate_bound": win_rate_bound(len(drafts))}
        logprob = _logprob_of_reward(answer.choices[0], drafts) if isinstance(context.select, Argmax) else nan
        if not isnan(logprob):
            told["kl_estimate"] = best_of_n_estimate(len(drafts), logprob)
        return told

    def _exported(self, drafts: Many[Sequence]) -> dict[str, Any]:
        """The best and the worst draft, if they differ in reward (BoNBoN: Gui et al. 2024, arXiv 2406.00832)."""
        if self.export is None:
            return {}
        scored = [(each.reward, each) for each in drafts if each.reward is not None and isfinite(each.reward)]
        if len({reward for reward, _ in scored}) < 2:
            return {}
        (best, chosen), (worst, rejected) = (f(scored, key=lambda pair: pair[0]) for f in (max, min))
        return {
            "pair": {
                "chosen": chosen.text.text,
                "rejected": rejected.text.text,
                "chosen_reward": best,
                "rejected_reward": worst,
            }
        }


def _logprob_of_reward(best: Sequence, drafts: Many[Sequence]) -> float:
    """Log of the probability to draw an answer of the best one's reward: of those among the drafts, which is too low.

    Answers of that reward that no draft met are missing, so that the estimate errs upwards, towards the bound. NaN
    where a remote base does not tell with which probability it drew them.
    """
    tied = {tuple(each.answer): each for each in drafts if each.reward == best.reward}
    logprobs = [fsum(token.logprob for token in each.measures) for each in tied.values()]
    if any(map(isnan, logprobs)):
        return nan
    top = max(logprobs)
    return min(0.0, top + log(fsum(exp(each - top) for each in logprobs)))
