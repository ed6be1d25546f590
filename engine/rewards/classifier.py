"""Rewards read off a transformers sequence-classification model."""

import inspect
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.engine.errors import GuideError
from trimtab.engine.guides.prompts import guide_transcript
from trimtab.engine.loading import LoadedModel
from trimtab.engine.rewards.base import Judgement, Pair, batches
from trimtab.engine.vocabulary import Vocabulary

Side = Literal["left", "right"]


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
        self.labels = tuple(labels_of(loaded.model))
        self.vocabulary = Vocabulary(loaded.tokenizer, loaded.embedding_rows)
        self.context_length = loaded.context_length
        self.dtype = loaded.dtype
        self._model = loaded.model
        self._max_batch_tokens = max_batch_tokens
        self._signs = label_signs(name, loaded.source, self.labels, label)
        self._pad_id = loaded.tokenizer.pad_token_id or 0  # masked, so that any id would do
        head = getattr(loaded.model, "score", None)  # what transformers calls the head of its decoders
        self._decoder_head = head if isinstance(head, torch.nn.Module) else None
        forward = inspect.signature(loaded.model.base_model.forward)
        self._takes_positions = "position_ids" in forward.parameters

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Return the scores of `judge`."""
        return [judgement.score for judgement in self.judge(pairs)]

    def judge(self, pairs: Sequence[Pair]) -> list[Judgement]:
        """Return one judgement per pair; GuideError if a score or a logit is not finite."""
        rows = [self.encode(pair) for pair in pairs]
        judged: dict[int, Judgement] = {}
        for batch in batches([len(row) for row in rows], self._max_batch_tokens):
            logits = self._logits([rows[index] for index in batch])  # (B, labels)
            if not logits.isfinite().all():
                raise GuideError(self.name, "a score is not finite: load it with dtype float32 or bfloat16")
            scores = (logits @ self._signs).tolist()
            for index, score, each in zip(batch, scores, logits.tolist(), strict=True):
                judged[index] = Judgement(score, tuple(each), len(rows[index]))
        return [judged[index] for index in range(len(rows))]

    def encode(self, pair: Pair) -> list[int]:
        """Return the ids of what the model reads for `pair`, within its context; GuideError if its template refuses."""
        return guide_transcript(self.name, self.vocabulary, pair.messages, pair.answer, limit=self.context_length)

    @property
    def pads_left(self) -> bool:
        """Whether rows can be padded left; encoders are read at their first token, where the pads would be."""
        return self._decoder_head is not None

    def padded(self, pairs: Sequence[Pair], side: Side) -> list[float]:
        """Return one score per pair of a single forward, padded on `side`, finite or not; `judge` pads right."""
        scores: list[float] = (self._logits([self.encode(pair) for pair in pairs], side) @ self._signs).tolist()
        return scores

    @torch.inference_mode()
    def _logits(self, rows: Sequence[list[int]], side: Side = "right") -> Tensor:
        longest = max(map(len, rows))
        device = self._model.device
        pads = [[self._pad_id] * (longest - len(row)) for row in rows]
        filled = [pad + row if side == "left" else row + pad for row, pad in zip(rows, pads, strict=True)]
        ids = torch.tensor(filled, device=device)  # (B, T)
        lengths = torch.tensor([len(row) for row in rows], device=device)  # (B,)
        begins = (longest - lengths) * (side == "left")  # (B,)
        positions = torch.arange(longest, device=device) - begins[:, None]  # (B, T)
        mask = ((positions >= 0) & (positions < lengths[:, None])).long()  # (B, T)
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self._decoder_head is None:
            logits: Tensor = self._model(**inputs).logits  # (B, labels)
            return logits.float().cpu()
        if self._takes_positions:
            inputs["position_ids"] = positions.clamp_min(0)
        hidden = self._model.base_model(**inputs, use_cache=False).last_hidden_state  # (B, T, D)
        last = hidden[torch.arange(len(rows), device=device), begins + lengths - 1]  # (B, D)
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
