"""Particle filtering: sequential Monte Carlo over the steps of an answer (Puri et al. 2025, arXiv 2502.01618).

The potentials telescope, as in twisted SMC (Zhao et al. 2024, arXiv 2404.17546): the first step weighs a particle by
exp(beta V_1), each later one by exp(beta (V_t - V_{t-1})), and the last value of an answer is its reward. So whatever
`value` says, the weighted particles converge to pi(y) exp(beta r(y)) / Z as n grows, and the mean weights multiply to
an unbiased estimate of Z. The paper resamples at every step (`ess` 1).
"""

from collections import Counter
from collections.abc import Generator
from collections.abc import Sequence as Many
from math import inf, isfinite, isnan
from typing import Any

from pydantic import Field

from trimtab.decoders.params import Share
from trimtab.decoders.registry import strategy
from trimtab.decoders.rewards import Expression
from trimtab.decoders.search.base import Search, SearchContext
from trimtab.decoders.search.sampled import Sampled
from trimtab.decoders.select import Rule
from trimtab.decoders.weights import draw, effective_sample_size, log_mean_exp, systematic
from trimtab.engine.program import Answer, Extend, Op, Until
from trimtab.engine.sequence import Sequence


@strategy(
    "particle_filter",
    paper="Puri et al. 2025, arXiv 2502.01618",
    cost="n answers, n scores a step",
    needs=("reward",),
)
class ParticleFilter(Search):
    """Grow n weighted answers step by step and replace light ones by copies of heavy ones."""

    n: int = Field(8, ge=1, le=256, description="particles: answers that grow side by side")
    reward: Expression = Field(description="what scores whole answers: a reward's name, or an expression over several")
    value: Expression | None = Field(None, description="what scores unfinished answers; `reward` if it is not given")
    beta: float = Field(1.0, gt=0.0, le=1e4, description="weight of the reward: the target is base * exp(beta * r)")
    block: int = Field(16, ge=1, le=4096, description="tokens of a step")
    separator: str | None = Field(
        None, min_length=1, max_length=64, description="text that ends a step, in place of `block`"
    )
    ess: Share = Field(
        0.5, description="resample when the effective particles are fewer than this share of n; 0 never, 1 always"
    )

    def rule(self) -> Rule:
        return Sampled()

    def rows(self, choices: int) -> int:
        return self.n

    def most(self) -> int:
        return self.n

    def run(self, context: SearchContext) -> Generator[Op, Any, Answer]:
        until = None if self.separator is None else Until(strings=(self.separator,))
        particles = context.prompt.fork(self.n)
        counted = [0.0] * self.n  # the potential that a particle's last resampling has rewarded already
        weights = [0.0] * self.n  # log
        log_normaliser, resamplings, ess = 0.0, 0, []
        while live := [each for each in particles if each.finish is None]:
            yield Extend(live, max_tokens=self.block if until is None else None, until=until)
            yield from context.score([each for each in live if each.finish is not None], self.reward)
            yield from context.assess([each for each in live if each.finish is None], self.value or self.reward)
            weights = [self._potential(each) - known for each, known in zip(particles, counted, strict=True)]
            ess.append(effective_sample_size(weights))
            unfinished = any(each.finish is None for each in particles)
            if unfinished and ess[-1] < self.ess * self.n and max(weights) > -inf:
                log_normaliser += log_mean_exp(weights)
                particles = _resampled(particles, systematic(weights, context.random))
                counted = [self._potential(each) for each in particles]
                weights = [0.0] * self.n
                resamplings += 1
            if context.choices == 1:
                context.commit_shared(particles)
        log_normaliser += log_mean_exp(weights)
        pool = particles
        if isinstance(context.select, Sampled):
            pool = [particles[index] for index in draw(weights, context.random, context.choices)]
        elif not context.select.needs_reward:
            pool = particles = _resampled(particles, systematic(weights, context.random))
        return context.choose(
            pool,
            particles,
            log_normaliser=log_normaliser if isfinite(log_normaliser) else None,
            ess=ess,
            resamplings=resamplings,
        )

    def _potential(self, particle: Sequence) -> float:
        """beta times the reward, or the value of what is not finished; -inf where a guide failed."""
        worth = particle.value if particle.finish is None else particle.reward
        assert worth is not None, "weighed before it is scored"
        return -inf if isnan(worth) else self.beta * worth


def _resampled(particles: Many[Sequence], ancestors: Many[int]) -> list[Sequence]:
    """The particles' descendants; the first of an ancestor is the ancestor itself, and who has none is freed."""
    descendants = []
    copies = Counter(ancestors)
    for index, particle in enumerate(particles):
        if not copies[index]:
            particle.free()
            continue
        forks = particle.fork(copies[index] - 1)
        for fork in forks:
            fork.reward, fork.rewards = particle.reward, particle.rewards
        descendants += [particle, *forks]
    return descendants
