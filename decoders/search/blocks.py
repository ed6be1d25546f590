"""What searches that grow answers block by block share: widening, keeping, rewards at the end, and the report."""

from collections.abc import Callable, Generator
from collections.abc import Sequence as Many
from dataclasses import dataclass
from math import inf, isnan, nan
from typing import Any

from trimtab.decoders.rewards import Expression
from trimtab.decoders.search.base import SearchContext
from trimtab.engine.budget import Interrupted
from trimtab.engine.plan import BASE
from trimtab.engine.program import LogProbs, Op
from trimtab.engine.sequence import Sequence


@dataclass(slots=True)
class Rounds:
    """What a search by blocks reports."""

    rounds: int = 0
    expanded: int = 0
    """blocks decoded"""
    kept: int = 0
    """candidates that a round kept, over all rounds"""
    finished_early: int = 0
    """answers that ended while the search went on"""

    def count(self, grown: Many[Sequence], kept: Many[Sequence]) -> None:
        """Note a round that has extended `grown` and goes on with `kept`."""
        self.rounds += 1
        self.expanded += len(grown)
        self.kept += len(kept)
        if alive(kept):
            self.finished_early += len(grown) - len(alive(grown))


def alive(sequences: Many[Sequence]) -> list[Sequence]:
    """Those that can go on."""
    return [each for each in sequences if each.finish is None]


def widen(beam: Sequence, n: int) -> list[Sequence]:
    """What a beam goes on as: itself, on its own random stream, and `n - 1` forks; one that has ended stays alone.

    With n = 1 nothing tells the search from plain sampling.
    """
    return [beam] if beam.finish is not None else [beam, *beam.fork(n - 1)]


def best(candidates: Many[Sequence], n: int) -> list[Sequence]:
    """The `n` of the highest value, best first; of equal ones the first."""
    return sorted(candidates, key=lambda each: -inf if each.value is None else each.value, reverse=True)[:n]


def prune(candidates: Many[Sequence], n: int) -> list[Sequence]:
    """The best `n`, which go on; if all of them have ended the search is over, and all answers that ended stand."""
    beams = best(candidates, n)
    return beams if alive(beams) else [each for each in candidates if each.finish is not None]


def free_others(candidates: Many[Sequence], kept: Many[Sequence]) -> None:
    """Give the pages of all candidates back but those of `kept`."""
    for each in candidates:
        if each not in kept:
            each.free()


def settle(context: SearchContext, beams: Many[Sequence], reward: Expression | None) -> Generator[Op, Any, None]:
    """Rewards of the beams that have ended and have none yet: of `reward`, else the values that they were kept by.

    The budget may end the search here. A value that a guide failed to give is a NaN reward.
    """
    ended = [each for each in beams if each.finish is not None and each.reward is None]
    if reward is not None:
        yield from context.score(ended, reward)
        return
    for each in ended:
        each.reward = nan if any(isnan(raw) for raw in each.rewards.values()) else each.value
    enough = context.budget.reward_at_least
    if enough is not None and any(each.reward is not None and each.reward >= enough for each in ended):
        raise Interrupted("reward_at_least")


def add_log_ratio(
    sequences: Many[Sequence],
    starts: Many[int],
    models: tuple[str, str],
    weight: Callable[[int], float] = lambda k: 1.0,
) -> Generator[Op, Any, None]:
    """Add to each value the sum over new tokens k of weight(k) * (lp of the first model - lp of the second).

    `starts` are the answers' lengths before they grew, so that each token is read once; k counts the answer's tokens
    from 1. What is impossible under both models (-inf - -inf) counts as -inf. The search has to declare `measures`.
    """
    above = yield from _logprobs(sequences, starts, models[0])
    below = yield from _logprobs(sequences, starts, models[1])
    for sequence, start, ups, downs in zip(sequences, starts, above, below, strict=True):
        ratios = [weight(k) * (up - down) for k, (up, down) in enumerate(zip(ups, downs, strict=True), start + 1)]
        total = (sequence.value or 0.0) + sum(ratios)
        sequence.value = -inf if isnan(total) else total


def _logprobs(
    sequences: Many[Sequence], starts: Many[int], model: str
) -> Generator[Op, list[list[float]], list[list[float]]]:
    """Of the tokens from `starts` on; the base's own were measured when they were drawn."""
    if model != BASE:
        return (yield LogProbs(sequences, model, starts))
    pairs = zip(sequences, starts, strict=True)
    return [[token.base_logprob for token in sequence.measures[start:]] for sequence, start in pairs]
