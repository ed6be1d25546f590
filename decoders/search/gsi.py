"""Guided speculative inference: soft best-of-n of the base over steps that a small model drafts (Geuter et al. 2025,
arXiv 2506.04118).

One of n drafted steps s is drawn by softmax(beta * r~), r~ = r + (log P_base(s) - log P_draft(s)) / beta: as n grows,
steps follow P_base(s) exp(beta * r) / Z, whoever drafts. If its r~ is below the threshold (the paper's u), the base
drafts n steps itself and one is drawn by softmax(beta * r).

The log-probabilities are those of the models as they are, and drafts are drawn as the request samples. So the law is
exact at temperature 1 without filters; elsewhere the ratio corrects for the other model alone, as in the paper's
experiments. With `draft` = base there is nothing to correct, and the base drafts as the request steers it.
"""

from collections.abc import Generator
from math import fsum
from typing import Any, ClassVar

from pydantic import Field

from trimtab.decoders.params import ReaderName
from trimtab.decoders.registry import strategy
from trimtab.decoders.rewards import Expression
from trimtab.decoders.search.base import Search, SearchContext
from trimtab.decoders.steer.draft import Draft
from trimtab.decoders.weights import draw, effective_sample_size
from trimtab.engine.plan import BASE
from trimtab.engine.program import Answer, Extend, LogProbs, Op, Until
from trimtab.engine.sequence import Sequence


@strategy(
    "gsi",
    paper="Geuter et al. 2025, arXiv 2506.04118",
    cost="n answers of the draft model read by the base, n steps of the base for a rejected one, n scores a step",
    needs=("reward",),
)
class GuidedSpeculation(Search):
    """Draw each step from n drafts of a small model, by `beta * reward + log P_base - log P_draft`."""

    one_voice: ClassVar[bool] = True
    measures: ClassVar[bool] = True
    draft: ReaderName = Field(description="name of the small language model, of the base's vocabulary; or `base`")
    value: Expression = Field(description="reward of the answer up to the end of a step")
    n: int = Field(16, ge=1, le=256, description="drafts of each step")
    beta: float = Field(20.0, gt=0.0, le=1e6, allow_inf_nan=False, description="nats that a reward of 1 is worth")
    threshold: float | None = Field(
        None,
        allow_inf_nan=False,
        description="tilted reward r~ that a drafted step needs; 0.5 in the paper, for rewards in [0, 1]; none: any",
    )
    separator: str = Field("\n\n", min_length=1, max_length=64, description="text with which a step ends")
    step_tokens: int = Field(512, ge=1, le=4096, description="tokens of a step at most")

    def rows(self, choices: int) -> int:
        return self.n

    @property
    def others_write(self) -> bool:
        return self.draft != BASE

    def call(self, draft: Draft) -> None:
        draft.call(self.draft, field="draft")

    def run(self, context: SearchContext) -> Generator[Op, Any, Answer]:
        counts = dict.fromkeys(("drafted", "accepted", "draft_tokens", "discarded_tokens", "base_tokens"), 0)
        sizes: list[float] = []
        answers = []
        for choice in range(context.choices):
            answers.append((yield from self._answer(context, choice, counts, sizes)))
        report = {
            **counts,
            "acceptance_rate": counts["accepted"] / counts["drafted"] if counts["drafted"] else None,
            "ess": fsum(sizes) / len(sizes) if sizes else None,
        }
        return Answer(answers, answers, report)

    def _answer(
        self, context: SearchContext, choice: int, counts: dict[str, int], sizes: list[float]
    ) -> Generator[Op, Any, Sequence]:
        (state,) = context.steered(context.prompt, 1)
        while state.finish is None:
            step, tilted, ess = yield from self._draw(context, self._drafts(context, state), state.generated)
            sizes.append(ess)
            counts["drafted"] += 1
            written = step.generated - state.generated
            if self.threshold is None or tilted >= self.beta * self.threshold:
                counts["accepted"] += 1
                counts["draft_tokens"] += written
            else:
                counts["discarded_tokens"] += written
                step.trim(state.generated)  # not `state`: what the draft model has read stays stored
                again = context.steered(step, self.n)
                step.free()
                step, _, _ = yield from self._draw(context, again)
                counts["base_tokens"] += step.generated - state.generated
                if step.finish is None and self.draft != BASE:
                    yield LogProbs([step], self.draft, state.generated)  # read here, or else by each of n drafts
            state.free()
            state = step
            context.commit(state, choice)
        return state

    def _drafts(self, context: SearchContext, state: Sequence) -> list[Sequence]:
        if self.draft == BASE:
            return context.steered(state, self.n)
        return context.voiced(state, self.n, self.draft)

    def _draw(
        self, context: SearchContext, steps: list[Sequence], start: int | None = None
    ) -> Generator[Op, Any, tuple[Sequence, float, float]]:
        """Write `steps` and draw one by beta * r~; returns it with that and with the effective sample size.

        `start` is the number of a drafted step's first token; the base's own steps need no correction.
        """
        yield Extend(steps, self.step_tokens, Until(strings=(self.separator,)))
        rewards = yield from context.assess(steps, self.value)
        tilted = [self.beta * reward for reward in rewards]
        if start is not None and self.draft != BASE:
            base = yield LogProbs(steps, BASE, start)
            for index, (step, logprobs) in enumerate(zip(steps, base, strict=True)):
                tilted[index] += fsum(logprobs) - fsum(each.base_logprob for each in step.measures[start:])
        (chosen,) = draw(tilted, context.random)
        for index, step in enumerate(steps):
            if index != chosen:
                step.free()
        return steps[chosen], tilted[chosen], effective_sample_size(tilted)
