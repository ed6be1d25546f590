"""How far an answer is from what the base model alone would have said."""

from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True, slots=True)
class Measure:
    """How one token of an answer stands to the base; nats."""

    logprob: float
    """under the distribution that it was drawn from"""
    base_logprob: float
    kl: float
    """KL(steered || base) at its position; of a token that another model wrote, as of one that is certain"""
    changed: bool
    """another model wrote it or, without a gate, steering changed the most likely token"""


@dataclass(slots=True)
class Tally:
    """Sums over the tokens of one sequence; filled by the engine."""

    tokens: int = 0
    kl: float = 0.0
    logprob_base: float = 0.0
    logprob_steered: float = 0.0
    interventions: int = 0

    def add(self, measure: Measure) -> None:
        """Count one more token."""
        self.tokens += 1
        self.kl += measure.kl
        self.logprob_base += measure.base_logprob
        self.logprob_steered += measure.logprob
        self.interventions += measure.changed

    def copy(self) -> Self:
        return replace(self)
