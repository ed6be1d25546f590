"""Rewards read off a transformers sequence-classification model."""

import inspect
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.engine.errors import GuideError
from trimtab.engine.guides.prompts import guide_transcript
from trimtab.engine.loading import LoadedModel
from trimtab.engine.rewards.base import Pair, batches
from trimtab.engine.vocabulary import Vocabulary


class ClassifierReward:
    """A classifier whose logit is the reward of an answer: an encoder, or a decoder that paging refuses.

    One label: its logit. Two labels: the log-odds of the second, or of `label`. More labels: the logit of `label`.
    Decoders are read at the last real token of a row, found by length: pad and EOS may be the same id.
    Raises GuideError for a label that is missing or does not exist.
    """

    def __init__(
        self, name: str, loaded: LoadedModel, *, label: str | None = None, max_batch_tokens: int = 16_384
    ) -> None:
        self.name = name
        self.tokens_read = 0
        self._model = loaded.model
        self._context_length = loaded.context_length
        self._vocabulary = Vocabulary(loaded.tokenizer, loaded.embedding_rows)
        self._max_batch_tokens = max_batch_tokens
        self._signs = label_signs(name, loaded.source, labels_of(loaded.model), label)
        self._pad_id = loaded.tokenizer.pad_token_id or 0  # masked, so that any id would do
        head = getattr(loaded.model, "score", None)  # what transformers calls the head of its decoders
        self._decoder_head = head if isinstance(head, torch.nn.Module) else None
        forward = inspect.signature(loaded.model.base_model.forward)
        self._takes_positions = "position_ids" in forward.parameters

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Return one score per pair; GuideError if a score is not finite."""
        rows = [self.encode(pair) for pair in pairs]
        scores = [0.0] * len(rows)
        for batch in batches([len(row) for row in rows], self._max_batch_tokens):
            logits = self._logits([rows[index] for index in batch])  # (B, labels)
            self.tokens_read += sum(len(rows[index]) for index in batch)
            for index, value in zip(batch, (logits @ self._signs).tolist(), strict=True):
                scores[index] = value
        if not all(map(math.isfinite, scores)):
            raise GuideError(self.name, "a score is not finite: load it with dtype float32 or bfloat16")
        return scores

    def encode(self, pair: Pair) -> list[int]:
        """Return the ids of what the model reads for `pair`, within its context; GuideError if its template refuses."""
        return guide_transcript(self.name, self._vocabulary, pair.messages, pair.answer, limit=self._context_length)

    @torch.inference_mode()
    def _logits(self, rows: Sequence[list[int]]) -> Tensor:
        longest = max(map(len, rows))
        device = self._model.device
        lengths = torch.tensor([len(row) for row in rows], device=device)  # (B,)
        ids = torch.tensor([row + [self._pad_id] * (longest - len(row)) for row in rows], device=device)  # (B, T)
        positions = torch.arange(longest, device=device).expand_as(ids)  # (B, T)
        mask = (positions < lengths[:, None]).long()  # (B, T)
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self._decoder_head is None:
            logits: Tensor = self._model(**inputs).logits  # (B, labels)
            return logits.float().cpu()
        if self._takes_positions:
            inputs["position_ids"] = positions
        hidden = self._model.base_model(**inputs, use_cache=False).last_hidden_state  # (B, T, D)
        last = hidden[torch.arange(len(rows), device=device), lengths - 1]  # (B, D)
        logits = self._decoder_head(last)
        return logits.float().cpu()


def labels_of(model: PreTrainedModel) -> list[str]:
    """Return the names of a classifier's labels, in the order of its logits."""
    return [label for _, label in sorted((model.config.id2label or {}).items())]


def label_signs(guide: str, source: str, labels: Sequence[str], label: str | None) -> Tensor:
    """Return the weights of the logits whose sum is the score, (labels,); see `ClassifierReward`."""
    listed = ", ".join(labels)
    if label is not None and label not in labels:
        raise GuideError(guide, f"{source} has no label {label!r}: use one of {listed}")
    if label is None and len(labels) > 2:
        raise GuideError(guide, f"{source} has {len(labels)} labels: set 'label' to one of {listed}")
    chosen = len(labels) - 1 if label is None else labels.index(label)
    signs = torch.full((len(labels),), -1.0 if len(labels) == 2 else 0.0)
    signs[chosen] = 1.0
    return signs
