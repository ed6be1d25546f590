"""What the rows of a batch may not draw: penalties, biases and bans as edits of logits, grammars as masks."""

from array import array
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trimtab.engine.errors import InvalidRequest
from trimtab.engine.grammar import token_masks
from trimtab.engine.sequence import Sequence
from trimtab.engine.staging import place
from trimtab.kernels.edits import Edits, apply_edits, history_edits
from trimtab.kernels.steer_sample import unpacked_mask

_NOTHING: "array[int]" = array("q")


class StepLimits(NamedTuple):
    """The limits of one step."""

    edits: Edits | None
    bitmask: Tensor | None  # (B, ceil(V / 32)) int32, lowest bit first
    failed: dict[int, InvalidRequest]
    """rows whose grammar cannot be followed any further"""

    def of(self, rows: Tensor | slice) -> "StepLimits":
        """The limits of these rows."""
        edits = None if self.edits is None else self.edits.of(rows)
        return StepLimits(edits, None if self.bitmask is None else self.bitmask[rows], {})

    def apply(self, z: Tensor) -> None:
        """Change `z` (B, V), floating point, in place."""
        if self.edits is not None:
            apply_edits(z, self.edits)
        if self.bitmask is not None:
            z.masked_fill_(~unpacked_mask(self.bitmask, z.shape[1]), -torch.inf)


class Limits:
    """The constant part: which rows have limits, and of which kind.

    A grammar comes before `min_tokens`: what bars its rows from ending early is part of their mask, not of the edits.
    """

    def __init__(self, rows: list[Sequence], device: torch.device) -> None:
        self._rows = rows
        self._device = device
        plans = [row.plan for row in rows]
        wanted = [plan.sampling for plan in plans]
        self._written = [i for i, row in enumerate(rows) if row.grammar is not None]
        self._editing = any(plan.edits_logits for plan in plans)
        if self._editing:
            self._repetition, self._presence, self._frequency = (
                torch.tensor([getattr(sampling, name) for sampling in wanted], dtype=torch.float32)
                for name in ("repetition_penalty", "presence_penalty", "frequency_penalty")
            )
            bans = [row.plan.banned_early if row.grammar is None else () for row in rows]
            biases = [
                [*sampling.logit_bias.items(), *((token, -np.inf) for token in banned)]
                for sampling, banned in zip(wanted, bans, strict=True)
            ]
            width = max(map(len, biases))
            self._bias_ids = torch.full((len(rows), width), -1)
            self._bias = torch.zeros(len(rows), width)
            for i, entries in enumerate(biases):
                for j, (token, bias) in enumerate(entries):
                    self._bias_ids[i, j], self._bias[i, j] = token, bias
            self._ban = torch.isinf(self._bias)
            self._min_tokens = torch.tensor([sampling.min_tokens for sampling in wanted])

    def step(self, vocab_size: int) -> StepLimits:
        """The limits of the next token of each row."""
        return StepLimits(self._edits(vocab_size), *self._masks(vocab_size))

    def _masks(self, vocab_size: int) -> tuple[Tensor | None, dict[int, InvalidRequest]]:
        if not self._written:
            return None, {}
        entries = []
        for i in self._written:
            row = self._rows[i]
            assert row.grammar is not None
            entries.append((i, row.grammar, row.generated < row.plan.sampling.min_tokens))
        masks, failed = token_masks(entries, len(self._rows), vocab_size)
        return place([masks], self._device)[0], failed

    def _edits(self, vocab_size: int) -> Edits | None:
        """Penalties over each row's tokens so far, biases, and bans on an early end."""
        if not self._editing:
            return None
        histories = [row.tokens if row.plan.edits_logits else _NOTHING for row in self._rows]
        tokens = np.full((len(self._rows), max(map(len, histories))), -1)
        for i, history in enumerate(histories):
            tokens[i, : len(history)] = history
        prompts = torch.tensor([row.prompt_length for row in self._rows])
        generated = torch.arange(tokens.shape[1]) >= prompts[:, None]  # (B, L)
        over = torch.tensor([row.generated for row in self._rows]) >= self._min_tokens
        edits = history_edits(
            torch.from_numpy(tokens),
            generated,
            self._repetition,
            self._presence,
            self._frequency,
            self._bias_ids.masked_fill(self._ban & over[:, None], -1),
            self._bias,
            vocab_size,
        )
        return edits.to(self._device)
