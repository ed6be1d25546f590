"""Transfer Q*: weigh the next token by where it leads (Chakraborty et al. 2024, arXiv 2405.20495).

The value of a token is the reward of what a baseline model would go on to say after it: by default the base itself,
and with parts in `steer` the steered model, which then also gives z_base.
"""

from collections.abc import Collection, Generator, Mapping
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from trimtab.decoders.params import JudgeName, Weight, require_reward
from trimtab.decoders.registry import strategy
from trimtab.decoders.search.base import Search, SearchContext
from trimtab.engine.program import Answer, Draw, Extend, Op, Propose, Score


@strategy(
    "tqstar",
    paper="Chakraborty et al. 2024, arXiv 2405.20495",
    cost="1 answer, k rollouts and k scores a token",
    needs=("reward",),
)
class TransferQStar(Search):
    """`z_base + w * r(greedy rollout from h, v)` on the k likeliest tokens; greedy in the paper (temperature 0)."""

    temperature: ClassVar[float | None] = 0.0
    rows_field: ClassVar[str] = "k"
    one_voice: ClassVar[bool] = True
    distributions: ClassVar[bool] = True
    reward: JudgeName = Field(description="name of the guide that scores the text with its rollout")
    w: Weight = Field(1.0, description="weight of the reward")
    k: int = Field(10, ge=1, le=64, description="candidates; no other token can be drawn")
    rollout: int = Field(20, ge=0, le=512, description="tokens to look ahead, greedily; 0 scores the candidate alone")
    baseline_reward: JudgeName | None = Field(
        None, description="reward that the rolling model is aligned to: then (reward - baseline_reward) / beta counts"
    )
    beta: float | None = Field(
        None, gt=0.0, allow_inf_nan=False, description="strength of the baseline's alignment; 1 if not given"
    )

    @model_validator(mode="after")
    def _beta_scales_a_difference(self) -> Self:
        if self.beta is not None and self.baseline_reward is None:
            raise ValueError("beta scales reward - baseline_reward: name a baseline_reward or leave beta out")
        return self

    def rows(self, choices: int) -> int:
        return choices * self.k if self.rollout else choices

    def check(self, *, choices: int, rewards: Collection[str]) -> None:
        require_reward(self.reward, rewards, path="decoding.reward")
        if self.baseline_reward is not None:
            require_reward(self.baseline_reward, rewards, path="decoding.baseline_reward")

    def run(self, context: SearchContext) -> Generator[Op, Any, Answer]:
        answers = context.prompt.fork(context.choices)
        context.stream(answers)
        while live := [answer for answer in answers if answer.finish is None]:
            proposals = yield Propose(live, self.k)
            pairs = zip(live, proposals, strict=True)
            drafts = [draft for answer, proposal in pairs for draft in context.branch(answer, proposal)]
            yield Extend(drafts, max_tokens=self.rollout)
            values: dict[str, list[dict[int, float]]] = {}
            for name in filter(None, (self.reward, self.baseline_reward)):
                found = iter((yield Score(drafts, name)))
                values[name] = [{token: next(found) for token in proposal} for proposal in proposals]
            for draft in drafts:
                draft.free()
            gains = self._gains(values)
            scores = [
                {token: z + self.w * gain[token] for token, z in proposal.items()}
                for proposal, gain in zip(proposals, gains, strict=True)
            ]
            yield Draw(live, scores, values)
        return Answer(answers, answers)

    def _gains(self, values: Mapping[str, list[dict[int, float]]]) -> list[dict[int, float]]:
        """What counts for each token: its reward or, with a baseline aligned to another one, what it lacks of it."""
        rewards = values[self.reward]
        if self.baseline_reward is None:
            return rewards
        pairs = zip(rewards, values[self.baseline_reward], strict=True)
        return [{token: (r - known[token]) / (self.beta or 1.0) for token, r in mine.items()} for mine, known in pairs]
