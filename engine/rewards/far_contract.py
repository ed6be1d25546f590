"""What can be examined of a reward that another server judges: the numbers that it tells, not how it reads."""

import logging
from typing import Final

from trimtab.engine.errors import TrimtabError
from trimtab.engine.rewards.contract import COARSE, CONSTANT, PAIRS, Contract, Finding
from trimtab.engine.rewards.far import FarReward

log = logging.getLogger(__name__)

TOLERANCE: Final = 0.05
"""Largest difference between two scores of one answer, as a part of the largest score and at least of 1.

What is in order in bfloat16: the dtype there is not known here.
"""


def examine_far(reward: FarReward) -> Contract:
    """Have seven short answers judged alone and among others; failures are logged, none is raised."""
    findings = [Finding("route", True, f"it answers by {reward.route.told}")]
    try:
        findings += _scores(reward)
    except TrimtabError as error:
        findings.append(Finding("scores", False, str(error), "see whether its server is well, and load it again"))
    for each in findings:
        if not each.ok:
            log.warning("guide %r: %s: %s -> %s", reward.name, each.name, each.finding, each.fix)
    return Contract(tuple(findings))


def _scores(reward: FarReward) -> list[Finding]:
    together = reward.score(PAIRS)
    span, unit = max(together) - min(together), max(1.0, *map(abs, together))
    if span <= CONSTANT * unit:
        told = f"seven different answers all score {together[0]:.3g}"
        return [Finding("scores", False, told, "name the guide that judges answers, or train its head")]
    found = [Finding("scores", True, f"from {min(together):.3g} to {max(together):.3g} over seven answers")]
    alone = [reward.score([pair])[0] for pair in PAIRS]
    paired = [score for first in range(0, len(PAIRS), 2) for score in reward.score(PAIRS[first : first + 2])]
    off = max(abs(one - other) for each in (alone, paired) for one, other in zip(together, each, strict=True))
    told = f"the same scores at batch 1, 2 and 7 (within {off:.1g}"
    if off > TOLERANCE * unit:
        fix = "serve it in float32, or one answer at a time"
        found.append(Finding("batches", False, f"scores differ by {off:.2g} between batch 1, 2 and 7", fix))
    elif off > COARSE * span:
        fix = "serve it in float32"
        found.append(Finding("batches", True, f"{told}, which is much: the seven span {span:.1g})", fix))
    else:
        found.append(Finding("batches", True, f"{told})"))
    return found
