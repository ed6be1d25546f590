"""Models as a script loads them: adapters are merged into the weights, so that they cost nothing when they run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

Conversation = Sequence[Mapping[str, str]]
"""messages with `role` and `content`, the last of them the one to answer"""


@dataclass(frozen=True)
class Language:
    """A causal language model with its tokenizer, and the tokens that end its answers."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype, adapter: Path | None = None) -> "Language":
        """The model of a folder, with a PEFT adapter in its weights.

        Its own generation settings are set aside: where a caller gives none, `generate` would take them, EOS too.
        """
        model = _merged(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), dtype, adapter)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        known = model.generation_config.eos_token_id
        listed = {*(known if isinstance(known, list) else [known]), tokenizer.eos_token_id}
        model.generation_config = GenerationConfig()
        return cls(model, tokenizer, tuple(sorted(listed - {None})))

    def prompt(self, conversation: Conversation) -> list[int]:
        """The ids of a conversation, up to where the answer begins."""
        return _ids(self.tokenizer, conversation, answered=False)

    def text(self, tokens: Sequence[int]) -> str:
        """What a reader sees of an answer."""
        text = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def spell(self, text: str) -> list[int]:
        """The ids of a piece of an answer."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))


@dataclass(frozen=True)
class Reward:
    """A decoder with a score of one label, which it reads at the last token."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype, adapter: Path | None = None) -> "Reward":
        """The classifier of a folder; or the base of a folder with a PEFT adapter, its head, and its chat template."""
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, num_labels=1)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        template = adapter and adapter / "chat_template.jinja"
        if template and template.is_file():
            tokenizer.chat_template = template.read_text()
        return cls(_merged(model, dtype, adapter), tokenizer)

    def prompt(self, conversation: Conversation) -> list[int]:
        """The ids of a conversation, up to where the answer begins."""
        return _ids(self.tokenizer, conversation, answered=False)

    def of(self, hidden: Tensor) -> Tensor:
        """Scores (...) of last hidden states (..., D)."""
        return self.model.score(hidden)[..., 0].float()

    @torch.no_grad()
    def score(self, conversations: Sequence[Conversation], answers: Sequence[str]) -> Tensor:
        """Scores (N,) of whole answers, in one forward.

        The end of a row is found by the mask: the pad token may be the EOS that the template writes last.
        """
        rows = [
            _ids(self.tokenizer, [*conversation, {"role": "assistant", "content": answer}], answered=True)
            for conversation, answer in zip(conversations, answers, strict=True)
        ]
        ids, mask = left_padded(rows)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        read = self.model.base_model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
        return self.of(read.last_hidden_state[:, -1])


def left_padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, T) of rows that end together; the pads are any token, since nothing reads them."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def _merged(model: PreTrainedModel, dtype: torch.dtype, adapter: Path | None) -> PreTrainedModel:
    """The model to decode with; an adapter is added in float32, where nothing of it is rounded away."""
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model.to(dtype).eval().requires_grad_(False)


def _ids(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, *, answered: bool) -> list[int]:
    text = tokenizer.apply_chat_template(list(conversation), tokenize=False, add_generation_prompt=not answered)
    return list(tokenizer.encode(text, add_special_tokens=False))
