"""How far an answer is from what the base model alone would have said."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum, isnan

from trimtab.engine.results import Steering


@dataclass(frozen=True, slots=True)
class Measure:
    """How one token of an answer stands to the base; nats."""

    logprob: float
    """under the distribution that it was drawn from"""
    base_logprob: float
    kl: float
    """KL(steered || base) at its position; of a word that another model said, as of one that is certain

    NaN where the base has not read a token that another model drew.
    """
    changed: bool
    """another model wrote it or, without a gate, steering changed the most likely token"""
    base_entropy: float = 0.0
    """of the base's distribution at its position; 0 where the base was not asked"""


def summarise(measures: Sequence[Measure], *, against_base: bool) -> Steering:
    """Sum the tokens of one answer up; without `against_base` nothing is known of the base's own distribution."""
    count = len(measures)
    kl = fsum(each.kl for each in measures)
    against_base = against_base and not isnan(kl)
    known = against_base and count > 0
    return Steering(
        tokens=count,
        kl=kl if against_base else None,
        kl_mean=kl / count if known else None,
        logprob_base=fsum(each.base_logprob for each in measures) if against_base else None,
        logprob_steered=fsum(each.logprob for each in measures),
        intervention_rate=sum(each.changed for each in measures) / count if known else None,
    )
