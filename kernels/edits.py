"""Sparse logit edits: repetition, presence and frequency penalties and biases, for all rows at once."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Edits:
    """What to change in each row of a logits tensor: z > 0 ? z / mul : z * mul, then + add."""

    ids: Tensor  # (B, E) int64, ascending and unique in a row, then padded with the vocabulary size
    mul: Tensor  # (B, E) float32, above 0
    add: Tensor  # (B, E) float32, -inf bans the token

    def of(self, rows: Tensor | slice) -> "Edits":
        """The edits of these rows."""
        return Edits(self.ids[rows], self.mul[rows], self.add[rows])

    def to(self, device: torch.device) -> "Edits":
        """The same on another device; a GPU copies from pinned memory, and nobody waits."""
        if device.type != "cuda":
            return self
        return Edits(*(each.pin_memory().to(device, non_blocking=True) for each in (self.ids, self.mul, self.add)))


def history_edits(
    tokens: Tensor,
    generated: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
    bias_ids: Tensor,
    bias: Tensor,
    vocab_size: int,
) -> Edits:
    """Turn the rows' histories, penalties and biases into edits.

    `tokens` (B, L) int64 is prompt and answer, padded with -1, and `generated` (B, L) bool marks the answer.
    `repetition`, `presence` and `frequency` (B,) are the penalties: the first counts every token of the
    history (CTRL, arXiv 1909.05858), the others the generated ones. `bias` (B, K) is added at `bias_ids`
    (B, K), padded with -1. Ids lie below `vocab_size`. A row without penalties may leave its tokens at -1.
    """
    rows = tokens.shape[0]
    ids = torch.cat((tokens, bias_ids), dim=1)  # (B, N)
    ids, order = torch.where(ids < 0, vocab_size, ids).sort(dim=1)
    starts = torch.zeros_like(ids)
    starts[:, 1:] = ids[:, 1:] != ids[:, :-1]
    segment = starts.cumsum(dim=1)  # (B, N), number of the unique id that each entry belongs to
    width = int(segment.max()) + 1 if ids.numel() else 0

    def per_id(values: Tensor) -> Tensor:
        return torch.zeros(rows, width, device=ids.device).scatter_add_(1, segment, values.gather(1, order))

    generated = generated.float()
    none_seen, no_bias = torch.zeros_like(bias, dtype=torch.float32), torch.zeros_like(generated)
    n_seen = per_id(torch.cat((torch.ones_like(generated), none_seen), dim=1))  # (B, E)
    n_generated = per_id(torch.cat((generated, none_seen), dim=1))
    biases = per_id(torch.cat((no_bias, bias.float()), dim=1))
    penalty = presence[:, None] * (n_generated > 0) + frequency[:, None] * n_generated
    return Edits(
        ids=torch.full((rows, width), vocab_size, device=ids.device).scatter_(1, segment, ids),
        mul=torch.where(n_seen > 0, repetition[:, None], 1.0).float(),
        add=(biases - penalty).float(),
    )


def apply_edits(logits: Tensor, edits: Edits) -> None:
    """Change `logits` (B, V), floating point, in place."""
    vocab_size = logits.shape[1]
    if edits.ids.shape[1] == 0:
        return
    # A pad repeats its row's first edit: writing the same value twice is harmless. In a row of pads alone the
    # last token is rewritten with what it holds.
    pad = edits.ids >= vocab_size
    ids = torch.where(pad, edits.ids[:, :1], edits.ids).clamp(max=vocab_size - 1)
    empty = pad[:, :1]
    mul = torch.where(pad, torch.where(empty, 1.0, edits.mul[:, :1]), edits.mul)
    add = torch.where(pad, torch.where(empty, 0.0, edits.add[:, :1]), edits.add)
    z = logits.gather(1, ids)  # (B, E)
    logits.scatter_(1, ids, (torch.where(z > 0, z / mul, z * mul) + add).to(logits.dtype))
