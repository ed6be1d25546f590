"""The token-level part of a request, compiled once at admission to plain numbers."""

from dataclasses import dataclass

from trimtab.engine.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class SteerPlan:
    """What the batched pass over the logits needs to know of one request, and when its sequences end."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition: float
    presence: float
    frequency: float
    bias: tuple[tuple[int, float], ...]
    seed: int
    min_tokens: int
    eos_ids: frozenset[int]
    """end the sequence; empty under ignore_eos"""
    stop_ids: frozenset[int]
    """end the sequence and are named as its stop_reason"""
    top_logprobs: int | None
    """alternatives to report per token; None: no log-probabilities at all"""

    @classmethod
    def compile(cls, sampling: SamplingParams, *, seed: int, eos_ids: frozenset[int]) -> "SteerPlan":
        return cls(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            repetition=sampling.repetition_penalty,
            presence=sampling.presence_penalty,
            frequency=sampling.frequency_penalty,
            bias=tuple(sampling.logit_bias.items()),
            seed=seed,
            min_tokens=sampling.min_tokens,
            eos_ids=frozenset() if sampling.ignore_eos else eos_ids,
            stop_ids=frozenset(sampling.stop_token_ids),
            top_logprobs=sampling.logprobs,
        )

    @property
    def edits_logits(self) -> bool:
        """Whether some logit changes before the draw (penalties, bias, or a ban on ending early)."""
        return bool(
            self.bias
            or self.repetition != 1.0
            or self.presence
            or self.frequency
            or (self.min_tokens and (self.eos_ids or self.stop_ids))
        )
