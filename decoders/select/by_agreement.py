"""Rules that look at what the answers of a pool have in common."""

from collections.abc import Sequence
from math import exp, fsum, isnan
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from trimtab.decoders.select.rule import Entry, Rule, ranked, rewards_of, tilted
from trimtab.decoders.similarity import Similarity, similarities
from trimtab.decoders.votes import Extract, Group, extract_vote, tally, told


class MinimumBayesRisk(Rule):
    """The answer most like all others: the highest sum_j sim(y_i, y_j) (Kumar and Byrne 2004, N04-1022)."""

    needs_reward: ClassVar[bool] = False
    rule: Literal["mbr"] = "mbr"
    similarity: Similarity = Field("token_f1", description="of two answers: shared words, ROUGE-L, or the same text")

    def order(self, pool: Sequence[Entry], count: int, random: np.random.Generator) -> list[int]:
        # Sums are rounded once, so that answers with the same similarities tie; the reward, or the order, decides.
        gains = [fsum(row) for row in similarities([entry.text for entry in pool], self.similarity)]
        return sorted(ranked(rewards_of(pool)), key=lambda index: -gains[index])[:count]


class Vote(Rule):
    """What majority and weighted_vote share.

    The choices are the first answers of the groups, heaviest group first, then the others, then those without a vote.
    In a group, and between groups of equal weight, the highest reward comes first, else the earlier answer.
    """

    extract: Extract = Field("number", description="how the vote of an answer is read")

    def weights(self, rewards: Sequence[float]) -> list[float]:
        """What each vote weighs; rewards may be NaN."""
        raise NotImplementedError

    def groups(self, votes: Sequence[str | None], rewards: Sequence[float]) -> list[Group]:
        """The groups of answers with these votes and rewards, heaviest first."""
        return tally(votes, self.weights(rewards), ranked(rewards))

    def order(self, pool: Sequence[Entry], count: int, random: np.random.Generator) -> list[int]:
        groups = self._groups(pool)
        heads = [group.members[0] for group in groups]
        members = [index for group in groups for index in group.members[1:]]
        return list(dict.fromkeys([*heads, *members, *ranked(rewards_of(pool))]))[:count]

    def report(self, pool: Sequence[Entry]) -> dict[str, Any]:
        return {"votes": told(self._groups(pool))}

    def _groups(self, pool: Sequence[Entry]) -> list[Group]:
        return self.groups([extract_vote(entry.text, self.extract) for entry in pool], rewards_of(pool))


class Majority(Vote):
    """An answer of the largest group of answers that say the same (Wang et al. 2022, arXiv 2203.11171)."""

    needs_reward: ClassVar[bool] = False
    rule: Literal["majority"] = "majority"

    def weights(self, rewards: Sequence[float]) -> list[float]:
        return [1.0] * len(rewards)


class WeightedVote(Vote):
    """As majority, each vote weighing exp(r / temperature): positive whatever the sign of the rewards."""

    rule: Literal["weighted_vote"] = "weighted_vote"
    temperature: float = Field(1.0, gt=0.0, le=1e6, description="T; large is majority, small is argmax")

    def weights(self, rewards: Sequence[float]) -> list[float]:
        return [0.0 if isnan(logit) else exp(logit) for logit in tilted(rewards, self.temperature)]
