"""How far an answer is from what the base model alone would have said."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, fsum, isnan, nan

from trimtab.engine.results import Steering


@dataclass(frozen=True, slots=True)
class Measure:
    """How one token of an answer stands to the base; nats."""

    logprob: float
    """under the distribution that it was drawn from; NaN: a remote base drew it and does not tell"""
    base_logprob: float
    kl: float
    """KL(steered || base) at its position; of a word that another model said, as of one that is certain

    NaN where the base has not read a token that another model drew.
    """
    changed: bool
    """another model wrote it or, without a gate, steering changed the most likely token"""
    base_entropy: float = nan
    """of the base's distribution at its position, or of the model's that speaks in its place; NaN: not computed"""
    entropy: float = nan
    """of the distribution that it was drawn from; NaN for a word that another model said"""


def summarise(measures: Sequence[Measure], *, against_base: bool) -> Steering:
    """Sum the tokens of one answer up; without `against_base` nothing is known of the base's own distribution."""
    count = len(measures)
    kl = fsum(each.kl for each in measures)
    against_base = against_base and not isnan(kl)
    known = against_base and count > 0
    drawn = fsum(each.logprob for each in measures)
    return Steering(
        tokens=count,
        kl=kl if against_base else None,
        kl_mean=kl / count if known else None,
        logprob_base=fsum(each.base_logprob for each in measures) if against_base else None,
        logprob_steered=None if isnan(drawn) else drawn,
        intervention_rate=sum(each.changed for each in measures) / count if known else None,
        branching_factor=_branching(each.entropy for each in measures),
        branching_factor_base=_branching(each.base_entropy for each in measures) if known else None,
    )


def _branching(entropies: Iterable[float]) -> float | None:
    """exp of the mean of the known entropies, nats; None if none is known."""
    known = [each for each in entropies if not isnan(each)]
    return exp(fsum(known) / len(known)) if known else None
