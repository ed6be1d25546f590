"""Rewards read off a transformers sequence-classification model."""

import inspect
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from trimtab.engine.errors import GuideError, InvalidRequest
from trimtab.engine.loading import LoadedModel
from trimtab.engine.rewards.base import Pair
from trimtab.engine.vocabulary import Message, Vocabulary


class ClassifierReward:
    """A classifier whose logit is the reward of an answer.

    One label: its logit. Two labels: the log-odds of the second, or of `label`. More labels: the logit of
    `label`. The text is the conversation under the model's own chat template or, without one, the contents
    of all messages and the answer, joined by newlines. Input beyond the model's context loses its beginning
    (after a leading BOS or CLS token), so that the answer is kept.
    Decoders are read at the last real token of a row, found by length: pad and EOS may be the same id.
    Raises GuideError for a label that is missing or does not exist.
    """

    def __init__(
        self, name: str, loaded: LoadedModel, *, label: str | None = None, max_batch_tokens: int = 16_384
    ) -> None:
        self.name = name
        self._model = loaded.model
        self._context_length = loaded.context_length
        self._vocabulary = Vocabulary(loaded.tokenizer, loaded.embedding_rows)
        self._max_batch_tokens = max_batch_tokens
        self._signs = _signs(name, loaded, label)
        self._pad_id = loaded.tokenizer.pad_token_id or 0  # masked, so that any id would do
        head = getattr(loaded.model, "score", None)  # what transformers calls the head of its decoders
        self._decoder_head = head if isinstance(head, torch.nn.Module) else None
        forward = inspect.signature(loaded.model.base_model.forward)
        self._takes_positions = "position_ids" in forward.parameters

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Return one score per pair; GuideError if a score is not finite."""
        rows = [self.encode(pair) for pair in pairs]
        scores = [0.0] * len(rows)
        for batch in _batches([len(row) for row in rows], self._max_batch_tokens):
            logits = self._logits([rows[index] for index in batch])  # (B, labels)
            for index, value in zip(batch, (logits @ self._signs).tolist(), strict=True):
                scores[index] = value
        if not all(map(math.isfinite, scores)):
            raise GuideError(self.name, "a score is not finite: load it with dtype float32 or bfloat16")
        return scores

    def encode(self, pair: Pair) -> list[int]:
        """Return the ids of what the model reads for `pair`, within its context; GuideError if its template refuses."""
        messages = [*pair.messages, Message(role="assistant", content=pair.answer)]
        try:
            if self._vocabulary.tokenizer.chat_template:
                ids = self._vocabulary.chat(messages, add_generation_prompt=False)
            else:
                text = "\n".join(message["content"] for message in messages)
                ids = self._vocabulary.encode(text, add_special_tokens=True)
        except InvalidRequest as error:  # its template may refuse what the base model's takes
            raise GuideError(self.name, str(error)) from error
        over = len(ids) - self._context_length
        if over > 0:
            tokenizer = self._vocabulary.tokenizer
            kept = 1 if ids[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id) else 0
            ids = ids[:kept] + ids[kept + over :]
        return ids or [self._pad_id]  # an empty text still has a score

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


def _signs(name: str, loaded: LoadedModel, label: str | None) -> Tensor:
    """Return the weights of the logits whose sum is the score, (labels,)."""
    labels = [label_name for _, label_name in sorted((loaded.model.config.id2label or {}).items())]
    listed = ", ".join(labels)
    if label is not None and label not in labels:
        raise GuideError(name, f"{loaded.source} has no label {label!r}: use one of {listed}")
    if label is None and len(labels) > 2:
        raise GuideError(name, f"{loaded.source} has {len(labels)} labels: set 'label' to one of {listed}")
    chosen = len(labels) - 1 if label is None else labels.index(label)
    signs = torch.full((len(labels),), -1.0 if len(labels) == 2 else 0.0)
    signs[chosen] = 1.0
    return signs


def _batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Yield indices in batches of similar length, each within `max_tokens` once padded, or of one row."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > max_tokens:  # the new row is the longest
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
