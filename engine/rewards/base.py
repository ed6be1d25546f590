"""What a reward is: a named scorer of whole answers."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from trimtab.engine.vocabulary import Message


@dataclass(frozen=True, slots=True)
class Pair:
    """A conversation and one answer to it; the messages end with the turn that is answered."""

    messages: tuple[Message, ...]
    answer: str
    salt: bytes = b""
    """pairs share cached prefixes only with pairs of the same salt"""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a reward says of one answer, and what it read for it."""

    score: float
    logits: tuple[float, ...]
    """one per label of the reward"""
    tokens: int = 0
    """of the conversation, as far as its model's context holds it; 0 of a program"""
    cached: int = 0
    """of these, tokens whose keys and values were there already"""

    @property
    def probabilities(self) -> list[float]:
        """Of the labels: the softmax of their logits, or the sigmoid of a single one."""
        if len(self.logits) == 1:
            return [0.5 * (1.0 + math.tanh(0.5 * self.logits[0]))]
        top = max(self.logits)
        masses = [math.exp(logit - top) for logit in self.logits]
        return [mass / math.fsum(masses) for mass in masses]


class Reward(Protocol):
    """A scorer of whole answers; higher is better, and a score does not depend on the rest of the batch."""

    @property
    def name(self) -> str: ...

    @property
    def labels(self) -> tuple[str, ...]:
        """What its logits are of."""
        ...

    def judge(self, pairs: Sequence[Pair]) -> list[Judgement]:
        """Return one judgement per pair; GuideError if a score or a logit is not finite."""
        ...

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Return the scores of `judge`."""
        ...


FORWARD = 128
"""tokens whose computation takes as long as what a forward costs beside its tokens"""


def batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Yield indices in batches of rising length, each within `max_tokens` once padded, or of one row.

    Of all ways to cut the sorted rows, the one with the least to compute: padded tokens, and `FORWARD` per batch.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    costs, begins = [0], [0]  # of the first rows: what they cost at least, and where their last batch begins then
    for end, longest in enumerate((lengths[index] for index in order), start=1):
        first = max(0, end - max(1, max_tokens // max(1, longest)))
        cost, begin = min((costs[begin] + (end - begin) * longest, begin) for begin in range(first, end))
        costs.append(cost + FORWARD)
        begins.append(begin)
    cuts, end = [], len(order)
    while end:
        cuts.append(slice(begins[end], end))
        end = begins[end]
    yield from (order[cut] for cut in reversed(cuts))
