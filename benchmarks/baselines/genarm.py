"""GenARM by hand: an autoregressive reward model's logits are added to the base's (arXiv 2410.08193)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import LogitsProcessor

from baselines.beside import Beside
from baselines.generation import extend
from baselines.models import Conversation, Language


@dataclass(frozen=True)
class GenArm:
    """`lp_base + alpha * lp_arm`, drawn at temperature 1 or greedy. The arm has the base's tokens."""

    base: Language
    arm: Language
    alpha: float = 1.0
    sample: bool = True

    def answer(
        self, conversations: Sequence[Conversation], tokens: int, *, ignore_eos: bool = False
    ) -> list[list[int]]:
        """Answers of at most `tokens`, as ids without EOS; all conversations in one batch."""
        processor = _Mixed(self.arm, [self.arm.prompt(conversation) for conversation in conversations], self.alpha)
        return extend(
            self.base, conversations, tokens=tokens, sample=self.sample, ignore_eos=ignore_eos, processor=processor
        )


class _Mixed(LogitsProcessor):
    """One forward of the arm a step, for all rows; logits do, since a constant in a row changes no draw."""

    def __init__(self, arm: Language, prompts: list[list[int]], alpha: float) -> None:
        self._arm = arm
        self._beside = Beside(arm.model, len(prompts))
        self._unread: list[list[int]] | None = prompts
        self._alpha = alpha

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        new = self._unread or input_ids[:, -1:].tolist()
        self._unread = None
        logits: Tensor = self._arm.model.lm_head(self._beside.read(new))  # (B, V)
        return scores + self._alpha * logits.float()
