"""A second model that reads along while `generate` runs the first one."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from baselines.models import left_padded


class Beside:
    """A decoder with keys and values of its own for every row of a batch; rows may be at different places.

    Each forward takes the next places of the cache in all rows; a mask tells which of them count in a row. Attention
    is over the whole text: models with sliding windows need a mask of their own.
    """

    def __init__(self, model: PreTrainedModel, rows: int) -> None:
        self._model = model.base_model
        self._cache = DynamicCache()
        self._counts = torch.zeros(rows, 0, dtype=torch.bool)
        """(B, S) places that a row attends to"""

    @torch.no_grad()
    def read(self, new: Sequence[Sequence[int]], candidates: Tensor | None = None) -> Tensor:
        """Read the new tokens of every row, of some none: the last hidden states (B, D).

        With `candidates` (B, k) those of each of them as the token after the new ones, (B, k, D), in the same forward;
        none of them is kept.
        """
        ids, real = left_padded(new)
        lengths = self._counts.sum(1, keepdim=True)  # (B, 1)
        counts = real.bool()
        positions = lengths + real.cumsum(1) - 1  # (B, T)
        width = ids.shape[1]
        sees = torch.ones(width, width, dtype=torch.bool).tril() & counts[:, None, :]  # (B, T, T)
        if candidates is not None:
            k = candidates.shape[1]
            ids = torch.cat([ids, candidates], 1)
            positions = torch.cat([positions, (lengths + real.sum(1, keepdim=True)).expand(-1, k)], 1)
            sees = torch.cat([sees, counts[:, None, :].expand(-1, k, -1)], 1)  # (B, T + k, T)
            sees = torch.cat([sees, torch.zeros(*sees.shape[:2], k, dtype=torch.bool)], 2)  # nor one another
        itself = torch.eye(ids.shape[1], dtype=torch.bool)  # also pads, since a row that attends to nothing gives NaN
        before = self._counts[:, None, :].expand(-1, ids.shape[1], -1)
        read = self._model(
            input_ids=ids,
            attention_mask=torch.cat([before, sees | itself], 2)[:, None],  # (B, 1, T, S + T)
            position_ids=positions.clamp_min(0),
            past_key_values=self._cache,
            use_cache=True,
        )
        self._counts = torch.cat([self._counts, counts], 1)
        hidden: Tensor = read.last_hidden_state
        if candidates is None:
            return hidden[:, -1]
        self._cache.crop(-candidates.shape[1])
        return hidden[:, width:]

    def rewind(self, row: int, length: int) -> None:
        """Let a row forget what it has read after its first `length` tokens."""
        self._counts[row, self._counts[row].nonzero()[length:, 0]] = False
        used = self._counts.any(0).nonzero()
        unused = self._counts.shape[1] - (int(used[-1]) + 1 if len(used) else 0)
        if unused:
            self._cache.crop(-unused)
            self._counts = self._counts[:, :-unused]
