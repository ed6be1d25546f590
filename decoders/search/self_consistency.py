"""Self-consistency: draw n answers and return the one that most agree on (Wang et al. 2022, arXiv 2203.11171).

It stops early as Adaptive-Consistency does (Aggarwal et al. 2023, arXiv 2305.11860), over answers that decode side by
side: the first to vote are the shortest ones, where the paper's are the first drawn.
"""

from collections.abc import Generator, Mapping
from collections.abc import Sequence as Many
from math import fsum, nan
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from trimtab.decoders.params import Share
from trimtab.decoders.registry import strategy
from trimtab.decoders.rewards import Expression
from trimtab.decoders.search.base import Search, SearchContext
from trimtab.decoders.select.by_agreement import Majority, WeightedVote
from trimtab.decoders.votes import Extract, Group, extract_vote, lead_probability, told
from trimtab.engine.program import Answer, Extend, Op
from trimtab.engine.sequence import Sequence


@strategy(
    "self_consistency",
    paper="Wang et al. 2022, arXiv 2203.11171; Aggarwal et al. 2023, arXiv 2305.11860",
    cost="n answers at most; with a reward, a score for each",
)
class SelfConsistency(Search):
    """Draw n answers, return one of those that agree; stop as soon as the vote is clear."""

    temperature: ClassVar[float | None] = 0.7
    whole: ClassVar[bool] = True
    n: int = Field(8, ge=1, le=256, description="answers to draw at most")
    extract: Extract = Field("number", description="how the vote of an answer is read")
    reward: Expression | None = Field(None, description="then each vote weighs exp(reward / temperature)")
    vote_temperature: float | None = Field(
        None, gt=0.0, le=1e6, description="with a reward: large is majority, small is argmax; 1 if not given"
    )
    least: int = Field(3, ge=1, le=256, description="votes before the search may stop; n draws all of them")
    share: Share = Field(0.75, description="of the votes, or of their weight: enough for one answer to stop")
    confidence: Share = Field(
        0.95, description="that the first answer is likelier than the second: enough to stop, where no reward weighs"
    )

    @model_validator(mode="after")
    def _rewards_weigh(self) -> Self:
        if self.vote_temperature is not None and self.reward is None:
            raise ValueError("vote_temperature weighs votes by rewards: name a reward or leave it out")
        return self

    def rule(self) -> Majority | WeightedVote:
        if self.reward is None:
            return Majority(extract=self.extract)
        return WeightedVote(extract=self.extract, temperature=self.vote_temperature or 1.0)

    def rows(self, choices: int) -> int:
        return self.n

    def most(self) -> int:
        return self.n

    def run(self, context: SearchContext) -> Generator[Op, Any, Answer]:
        drafts = context.prompt.fork(self.n)
        votes: dict[Sequence, str | None] = {}
        live, pool, groups, over = drafts, list[Sequence](), list[Group](), False
        while live and not over:
            yield Extend(live, first=True)
            ended = [each for each in live if each.finish is not None]
            if self.reward is not None:
                yield from context.score(ended, self.reward)
            votes |= {each: extract_vote(each.text.text, self.extract) for each in ended}
            live = [each for each in live if each.finish is None]
            pool = [each for each in drafts if each in votes]
            groups = self._groups(pool, votes)
            # Another rule in `select` may look for anything; and more choices than have ended cannot be made.
            over = context.select == self.rule() and len(pool) >= context.choices and self._decided(groups, len(live))
        return context.choose(pool, **self._report(groups, len(pool), early=bool(live)))

    def _groups(self, pool: Many[Sequence], votes: Mapping[Sequence, str | None]) -> list[Group]:
        rewards = [nan if each.reward is None else each.reward for each in pool]
        return self.rule().groups([votes[each] for each in pool], rewards)

    def _decided(self, groups: Many[Group], missing: int) -> bool:
        """Whether the vote is clear, or `missing` more votes could not turn it."""
        first, second = _counts(groups)
        if self.reward is None and first > second + missing:
            return True
        if sum(len(group.members) for group in groups) < self.least:
            return False
        if _share(groups) >= self.share:
            return True
        return self.reward is None and lead_probability(first, second) >= self.confidence

    def _report(self, groups: Many[Group], drawn: int, *, early: bool) -> dict[str, Any]:
        report = {"votes": told(groups), "share": _share(groups), "drawn": drawn, "early": early}
        if self.reward is None:
            report["posterior"] = lead_probability(*_counts(groups))
        return report


def _counts(groups: Many[Group]) -> tuple[int, int]:
    """Votes for the first and the second group."""
    first, second, *_ = [*(len(group.members) for group in groups), 0, 0]
    return first, second


def _share(groups: Many[Group]) -> float:
    """What the first group has of all votes, by weight."""
    return groups[0].weight / fsum(group.weight for group in groups) if groups and groups[0].weight else 0.0
