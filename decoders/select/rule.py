"""What a selection rule is, and the orders that several of them share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from trimtab.decoders.weights import draw


@dataclass(frozen=True, slots=True)
class Entry:
    """One answer of the pool, as a rule sees it."""

    text: str
    tokens: tuple[int, ...]
    reward: float | None
    """None: not scored; NaN: a guide failed on it"""
    rewards: Mapping[str, float]
    """raw, by guide"""
    logprob: float
    """of the whole answer under the base, nats"""


class Rule(BaseModel):
    """Which answers of a pool are the choices. Answers without a reward, or with NaN, lose against all others."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    needs_reward: ClassVar[bool] = True
    """it reads `Entry.reward` and is of no use without"""
    may_refuse: ClassVar[bool] = False
    """it may select nothing"""

    @property
    def needs_logprob(self) -> bool:
        """Whether it reads `Entry.logprob`."""
        return False

    @property
    def refusal(self) -> str:
        """What the choices say if it selects nothing."""
        return ""

    def order(self, pool: Sequence[Entry], count: int, random: np.random.Generator) -> list[int]:
        """Indices of `count` entries, fewer if the pool is smaller, best first; an empty list refuses to answer."""
        raise NotImplementedError

    def report(self, pool: Sequence[Entry]) -> dict[str, Any]:
        """What the response tells of the last `order` of this pool."""
        return {}


def rewards_of(pool: Sequence[Entry]) -> list[float]:
    """The rewards; NaN for an entry that has none."""
    return [float("nan") if entry.reward is None else entry.reward for entry in pool]


def ranked(scores: Sequence[float]) -> list[int]:
    """Indices by score, highest first; equal ones in their order, NaN last."""
    return sorted(range(len(scores)), key=lambda i: (True, 0.0) if isnan(scores[i]) else (False, -scores[i]))


def drawn(log_weights: Sequence[float], scores: Sequence[float], count: int, random: np.random.Generator) -> list[int]:
    """`count` indices, drawn by weight without replacement; those of weight 0 (-inf, NaN) follow by score."""
    support = [index for index, weight in enumerate(log_weights) if weight > -inf]
    first = [support[k] for k in draw([log_weights[index] for index in support], random, count)]
    return (first + [index for index in ranked(scores) if index not in first])[:count]


def tilted(scores: Sequence[float], temperature: float) -> list[float]:
    """(score - the highest) / temperature, at most 0: what an exponential takes without overflow. NaN stays NaN."""
    top = max((score for score in scores if not isnan(score)), default=0.0)
    return [0.0 if score == top else (score - top) / temperature for score in scores]
