"""Reward-guided speculative decoding: a small model drafts each step, and the base writes it again where the reward
says no (Liao et al. 2025, arXiv 2501.19324).

A step s has the law w(s) P_draft(s) + (1 - E_draft[w]) P_base(s), w the probability that a draft is kept: 1 from
reward delta on (the paper's optimal weight under a budget of base calls), or the reward itself, clipped to [0, 1].
"""

from collections.abc import Generator
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from trimtab.decoders.params import ReaderName
from trimtab.decoders.registry import strategy
from trimtab.decoders.rewards import Expression
from trimtab.decoders.search.base import Search, SearchContext
from trimtab.decoders.steer.draft import Draft
from trimtab.engine.program import Answer, Extend, Op, Until
from trimtab.engine.sequence import Sequence


@strategy(
    "rsd",
    paper="Liao et al. 2025, arXiv 2501.19324",
    cost="1 answer of the draft model, the rejected steps of the base, a score a step",
    needs=("lm", "reward"),
)
class RewardGuidedSpeculation(Search):
    """A draft model writes step after step; the base writes those again whose reward is below `delta`."""

    one_voice: ClassVar[bool] = True
    draft: ReaderName = Field(description="name of the small language model; it has the base's vocabulary")
    value: Expression = Field(description="reward of the answer up to the end of a step")
    delta: float = Field(0.7, allow_inf_nan=False, description="reward from which a drafted step is kept")
    accept: Literal["threshold", "clip"] = Field(
        "threshold", description="keep a step from `delta` on, or with its reward, clipped to [0, 1], as probability"
    )
    separator: str = Field("\n\n", min_length=1, max_length=64, description="text with which a step ends")
    step_tokens: int = Field(512, ge=1, le=4096, description="tokens of a step at most")

    @model_validator(mode="after")
    def _delta_is_a_threshold(self) -> Self:
        if self.accept == "clip" and "delta" in self.model_fields_set:
            raise ValueError("clip keeps a step with its reward as probability: leave delta out")
        return self

    def rows(self, choices: int) -> int:
        return 1

    @property
    def others_write(self) -> bool:
        return True

    def call(self, draft: Draft) -> None:
        draft.call(self.draft, field="draft")

    def run(self, context: SearchContext) -> Generator[Op, Any, Answer]:
        report = dict.fromkeys(("drafted", "accepted", "draft_tokens", "discarded_tokens", "base_tokens"), 0)
        answers = []
        for choice in range(context.choices):
            answers.append((yield from self._answer(context, choice, report)))
        rate = report["accepted"] / report["drafted"] if report["drafted"] else None
        return Answer(answers, answers, {**report, "acceptance_rate": rate})

    def _answer(self, context: SearchContext, choice: int, report: dict[str, int]) -> Generator[Op, Any, Sequence]:
        (state,) = context.steered(context.prompt, 1)
        until = Until(strings=(self.separator,))
        while state.finish is None:
            (step,) = context.voiced(state, 1, self.draft)
            yield Extend([step], self.step_tokens, until)
            (value,) = yield from context.assess([step], self.value)
            report["drafted"] += 1
            if self._keeps(value, context):
                report["accepted"] += 1
                report["draft_tokens"] += step.generated - state.generated
            else:
                report["discarded_tokens"] += step.generated - state.generated
                step.trim(state.generated)  # not `state`: what the draft model has read stays stored
                (again,) = context.steered(step, 1)
                step.free()
                step = again
                yield Extend([step], self.step_tokens, until)
                report["base_tokens"] += step.generated - state.generated
            state.free()
            state = step
            context.commit(state, choice)
        return state

    def _keeps(self, value: float, context: SearchContext) -> bool:
        if self.accept == "threshold":
            return value >= self.delta
        return bool(context.random.random() < value)  # as if it were clipped
