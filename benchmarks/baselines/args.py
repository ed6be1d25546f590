"""ARGS by hand: the reward of each of the k likeliest tokens is added to its logit (arXiv 2402.01694).

The published code writes every candidate out as a text and scores it whole. This reads the answer once: the reward
model keeps its keys and values, and the candidates of a step share one forward in which none sees another.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor

from baselines.beside import Beside
from baselines.generation import extend
from baselines.models import Conversation, Language, Reward


@dataclass(frozen=True)
class Args:
    """Greedy, as in the paper. The reward model has the base's tokens, and may have a chat template of its own."""

    base: Language
    reward: Reward
    w: float = 1.5
    k: int = 10

    def answer(
        self, conversations: Sequence[Conversation], tokens: int, *, ignore_eos: bool = False
    ) -> list[list[int]]:
        """Answers of at most `tokens`, as ids without EOS; all conversations in one batch."""
        prompts = [self.reward.prompt(conversation) for conversation in conversations]
        processor = _Rewarded(self.reward, prompts, self.w, self.k)
        return extend(self.base, conversations, tokens=tokens, sample=False, ignore_eos=ignore_eos, processor=processor)


class _Rewarded(LogitsProcessor):
    def __init__(self, reward: Reward, prompts: list[list[int]], w: float, k: int) -> None:
        self._reward = reward
        self._beside = Beside(reward.model, len(prompts))
        self._unread: list[list[int]] | None = prompts
        self._w = w
        self._k = k

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        top = scores.topk(self._k)
        new = self._unread or input_ids[:, -1:].tolist()
        self._unread = None
        rewards = self._reward.of(self._beside.read(new, top.indices))  # (B, k)
        return torch.full_like(scores, -torch.inf).scatter(1, top.indices, top.values + self._w * rewards)
