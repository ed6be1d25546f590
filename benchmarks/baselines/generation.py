"""What all of them share: `generate` over left-padded rows whose prompts are read once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList

from baselines.models import Conversation, Language, left_padded


@dataclass
class Rows:
    """Texts in the making: ids and mask (R, T), and the keys and values of all tokens but the last."""

    ids: Tensor
    mask: Tensor
    cache: DynamicCache


def prefilled(base: Language, conversations: Sequence[Conversation], copies: int) -> Rows:
    """Rows that begin with the prompts, `copies` for each in a row.

    `num_return_sequences` would read every prompt as many times.
    """
    ids, mask = left_padded([base.prompt(conversation) for conversation in conversations])
    cache = DynamicCache()
    with torch.no_grad():
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        base.model.base_model(
            input_ids=ids[:, :-1], attention_mask=mask[:, :-1], position_ids=positions[:, :-1], past_key_values=cache
        )
    cache.batch_repeat_interleave(copies)
    return Rows(ids.repeat_interleave(copies, 0), mask.repeat_interleave(copies, 0), cache)


def config(tokens: int, *, sample: bool, eos_ids: Sequence[int]) -> GenerationConfig:
    """Greedy, or drawn from the whole distribution at temperature 1; without EOS ids answers have full length."""
    drawn = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {}
    return GenerationConfig(
        max_new_tokens=tokens,
        do_sample=sample,
        eos_token_id=list(eos_ids) or None,
        pad_token_id=eos_ids[0] if eos_ids else 0,
        **drawn,
    )


def extend(
    base: Language,
    conversations: Sequence[Conversation],
    *,
    tokens: int,
    sample: bool,
    ignore_eos: bool,
    copies: int = 1,
    processor: LogitsProcessor | None = None,
) -> list[list[int]]:
    """Answers without their EOS, those to the first conversation first; `processor` changes the scores."""
    rows = prefilled(base, conversations, copies)
    eos_ids = () if ignore_eos else base.eos_ids
    out = base.model.generate(
        rows.ids,
        attention_mask=rows.mask,
        past_key_values=rows.cache,
        generation_config=config(tokens, sample=sample, eos_ids=eos_ids),
        logits_processor=LogitsProcessorList([] if processor is None else [processor]),
    )
    return [until(row, eos_ids) for row in out[:, rows.ids.shape[1] :].tolist()]


def until(tokens: Sequence[int], eos_ids: Sequence[int]) -> list[int]:
    """The tokens before the first that ends an answer."""
    end = next((place for place, token in enumerate(tokens) if token in eos_ids), len(tokens))
    return list(tokens[:end])
