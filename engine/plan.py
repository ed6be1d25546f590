"""The token-level part of a request, fixed at admission."""

from dataclasses import dataclass

from trimtab.engine.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class SteerPlan:
    """What the batched pass over the logits needs to know of one request, and which tokens end its sequences."""

    sampling: SamplingParams
    seed: int
    eos_ids: frozenset[int]
    """end the sequence; empty under ignore_eos"""

    @classmethod
    def compile(cls, sampling: SamplingParams, *, seed: int, eos_ids: frozenset[int]) -> "SteerPlan":
        return cls(sampling, seed, frozenset() if sampling.ignore_eos else eos_ids)

    @property
    def banned_early(self) -> list[int]:
        """Tokens that may not be drawn while the answer is shorter than `min_tokens`."""
        return sorted({*self.eos_ids, *self.sampling.stop_token_ids}) if self.sampling.min_tokens else []

    @property
    def edits_logits(self) -> bool:
        """Whether some logit changes before the draw (penalties, bias, or a ban on ending early)."""
        sampling = self.sampling
        penalties = sampling.repetition_penalty != 1.0 or sampling.presence_penalty or sampling.frequency_penalty
        return bool(penalties or sampling.logit_bias or self.banned_early)
