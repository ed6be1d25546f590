"""Models as transformers alone runs them, and greedy decoding by hand: what steered answers are compared with."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from toy import byte_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)


class Plain:
    """A folder as transformers alone runs it: every step reads the whole text again."""

    def __init__(self, folder: Path) -> None:
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)

    def logits(self, ids: Sequence[int]) -> Tensor:
        """What follows `ids`, (V,) float64."""
        return self.model(input_ids=torch.tensor([list(ids)])).logits[0, -1].double()

    def logprobs(self, ids: Sequence[int]) -> Tensor:
        return self.logits(ids).log_softmax(dim=0)


class PlainScorer:
    """A causal classifier as transformers alone runs it, read at the last token."""

    def __init__(self, folder: Path) -> None:
        loaded = AutoModelForSequenceClassification.from_pretrained(folder)
        self.model: PreTrainedModel = loaded.eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def prompt(self, text: str) -> list[int]:
        """An open conversation of one user message under the classifier's own template."""
        messages = [{"role": "user", "content": text}]
        rendered = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer.encode(rendered, add_special_tokens=False))

    def score(self, ids: Sequence[int]) -> float:
        return float(self._logits(ids)[0])

    def log_odds(self, ids: Sequence[int]) -> float:
        """Of the second of two labels."""
        first, second = self._logits(ids).tolist()
        return float(second - first)

    def _logits(self, ids: Sequence[int]) -> Tensor:
        hidden = self.model.base_model(input_ids=torch.tensor([list(ids)])).last_hidden_state[0, -1]
        logits: Tensor = self.model.score(hidden)
        return logits


def greedy(
    scores: Callable[[list[int]], Tensor], prompt: Sequence[int], count: int, eos: int | None = 256
) -> list[int]:
    """The answer that takes the best score at every step; `scores` sees the prompt and the answer so far."""
    answer: list[int] = []
    while len(answer) < count and (not answer or answer[-1] != eos):
        answer.append(int(scores([*prompt, *answer]).argmax()))
    return answer


def base_prompt(text: str) -> list[int]:
    """What the base reads of one user message."""
    return list(byte_tokenizer().encode(f"<user>{text}\n<assistant>"))
