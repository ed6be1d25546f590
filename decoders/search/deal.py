"""DeAL: beam search whose heuristic looks ahead (Huang et al. 2024, arXiv 2402.06147).

Every beam h offers its k likeliest next tokens a, and the beams of the highest

    log P(h + a) + lam * heuristic(h + a + `lookahead` greedy tokens)

go on; answers that have ended compete. P is the base, as it is steered, restricted to the k tokens of each position:
their probabilities over the sum of the k. Nothing is drawn at random: the request's temperature changes nothing.
"""

from collections.abc import Generator, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from math import inf, nan
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from trimtab.decoders.constraints import Constraint
from trimtab.decoders.registry import strategy
from trimtab.decoders.rewards import Expression
from trimtab.decoders.search.base import Search, SearchContext
from trimtab.engine.budget import Interrupted
from trimtab.engine.program import Answer, Draw, Extend, Op, Propose
from trimtab.engine.sequence import Sequence

MAX_LOOKS = 256
"""looks ahead at the same time"""


@dataclass(frozen=True, eq=False, slots=True)
class Beam:
    """An answer of the frontier."""

    sequence: Sequence
    logprob: float
    """log P"""
    score: float


class Offer(NamedTuple):
    """What a beam may become: one token longer or, if it has ended, itself."""

    score: float
    logprob: float
    beam: Beam
    token: int | None = None
    rewards: Mapping[str, float] | None = None
    """by guide, of the look ahead"""


@strategy(
    "deal",
    paper="Huang et al. 2024, arXiv 2402.06147",
    cost="`beams` answers; `beams * k` looks ahead, scored, for each token",
)
class Deal(Search):
    """Beam search by log-probability plus a heuristic of a greedy look ahead: a reward, or a constraint on the text."""

    temperature: ClassVar[float | None] = 0.0
    one_voice: ClassVar[bool] = True
    distributions: ClassVar[bool] = True
    own_scores: ClassVar[bool] = True
    rows_field: ClassVar[str] = "beams"
    reward: Expression | None = Field(None, description="heuristic: what the text with its look ahead is worth")
    constraint: Constraint | None = Field(
        None, description="heuristic, in place of a reward: the share of these conditions that the text meets"
    )
    lam: float = Field(1.0, ge=0.0, le=1e4, allow_inf_nan=False, description="lambda, weight of the heuristic")
    beams: int = Field(5, ge=1, le=64, description="answers on the frontier")
    k: int = Field(10, ge=1, le=64, description="next tokens of a beam; no other can follow")
    lookahead: int = Field(10, ge=0, le=512, description="l, tokens to look ahead, greedily")

    @model_validator(mode="after")
    def _one_heuristic_within_bounds(self) -> Self:
        if (self.reward is None) == (self.constraint is None):
            raise ValueError("the heuristic is a reward or a constraint: give one of them")
        if self.beams * self.k > MAX_LOOKS:
            raise ValueError(f"beams * k is {self.beams * self.k} and may be {MAX_LOOKS}: lower one of them")
        return self

    def rows(self, choices: int) -> int:
        return self.beams * self.k if self.lookahead else self.beams

    def most(self) -> int:
        return min(self.beams, self.k)

    def run(self, context: SearchContext) -> Generator[Op, Any, Answer]:
        beams = [Beam(start, 0.0, 0.0) for start in context.prompt.fork(1)]
        looks = 0
        while live := [beam for beam in beams if beam.sequence.finish is None]:
            proposals = yield Propose([beam.sequence for beam in live], self.k)
            offers = [Offer(beam.score, beam.logprob, beam) for beam in beams if beam.sequence.finish is not None]
            offers += yield from self._look_ahead(context, live, proposals)
            looks += sum(map(len, proposals))
            best = sorted(offers, key=lambda offer: offer[:2], reverse=True)[: self.beams]
            beams = yield from self._go_on(beams, best)
            self._note(context, beams)
            if context.choices == 1:
                context.commit_shared([beam.sequence for beam in beams])
        pool = [beam.sequence for beam in beams]
        while len(pool) < context.choices:  # the limit is so short that there are not more answers
            pool += pool[0].fork(1)
            pool[-1].reward = pool[0].reward
        return context.choose(pool, looks=looks, logprobs=[beam.logprob for beam in beams])

    def _look_ahead(
        self, context: SearchContext, beams: Many[Beam], proposals: Many[Mapping[int, float]]
    ) -> Generator[Op, Any, list[Offer]]:
        """Every beam with each token of its proposal, and what may come of it."""
        pairs = list(zip(beams, proposals, strict=True))
        drafts = [draft for beam, proposal in pairs for draft in context.branch(beam.sequence, proposal)]
        yield Extend(drafts, max_tokens=self.lookahead)
        if self.reward is not None:
            values = yield from context.assess(drafts, self.reward)
        elif self.constraint is not None:
            values = [self.constraint.satisfied(draft.text.text) for draft in drafts]
        for draft in drafts:
            draft.free()
        found, offers = zip(drafts, values, strict=True), []
        for beam, proposal in pairs:
            total = float(np.logaddexp.reduce(list(proposal.values())))
            for token, logit in proposal.items():
                draft, value = next(found)
                logprob = beam.logprob + logit - total
                score = logprob + self.lam * value if self.lam else logprob  # a value may be -inf
                offers.append(Offer(score, logprob, beam, token, draft.rewards))
        return offers

    def _go_on(self, beams: Many[Beam], best: Many[Offer]) -> Generator[Op, Any, list[Beam]]:
        """The next frontier; what is not on it gives its pages back."""
        frontier = [offer.beam if offer.token is None else _fork(offer) for offer in best]
        tokens = {beam.sequence: offer.token for beam, offer in zip(frontier, best, strict=True)}
        longer = {sequence: token for sequence, token in tokens.items() if token is not None}
        yield Draw(list(longer), [{token: 0.0} for token in longer.values()])
        for beam in beams:
            if beam not in frontier:
                beam.sequence.free()
        return frontier

    def _note(self, context: SearchContext, beams: Many[Beam]) -> None:
        """Note the scores: an answer that has ended is chosen by its score, NaN where a guide failed."""
        for beam in beams:
            beam.sequence.value = beam.score
            if beam.sequence.finish is not None:
                beam.sequence.reward = nan if beam.score == -inf else beam.score
        enough = context.budget.reward_at_least
        ended = (beam.score for beam in beams if beam.sequence.finish is not None)
        if enough is not None and any(score >= enough for score in ended):
            raise Interrupted("reward_at_least")


def _fork(offer: Offer) -> Beam:
    """A fork of the beam whose token is yet to be drawn."""
    (child,) = offer.beam.sequence.fork(1)
    child.rewards = dict(offer.rewards or {})
    return Beam(child, offer.logprob, offer.score)
