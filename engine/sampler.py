"""From the sequences of a decode step to one batched draw: marshals rows into tensors, then calls the kernels."""

from array import array
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trimtab.engine.results import TokenLogprob
from trimtab.engine.sequence import Sequence
from trimtab.kernels.edits import Edits, history_edits
from trimtab.kernels.philox import uniforms
from trimtab.kernels.steer_sample import RowParams, steer_sample, top_logprobs


@dataclass(frozen=True, slots=True)
class Draw:
    """One drawn token of one row; `id` is -1 where no token had a probability. `logprob` only if asked for."""

    id: int
    logprob: TokenLogprob | None


class Sampler:
    """Draws one token per row. What depends only on who is in the batch is kept until the batch changes."""

    def __init__(self) -> None:
        self._batch: _Batch | None = None

    def draw(self, rows: list[Sequence], logits: Tensor) -> list[Draw]:
        """Draw from `logits` (B, V), whose rows belong to `rows`."""
        batch = self._batch
        if batch is None or batch.rows != rows:
            batch = self._batch = _Batch(rows, logits.device)
        noise = torch.from_numpy(uniforms(batch.seeds, batch.streams, np.array([len(row.tokens) for row in rows])))
        out = steer_sample(
            logits,
            batch.params,
            noise.to(logits.device),
            edits=batch.edits(logits.shape[1]),
            logprobs=bool(batch.reporting),
        )
        ids = out.token.tolist()
        reports: dict[int, TokenLogprob] = {}
        if batch.reporting:
            assert out.base_logprob is not None
            values, best = top_logprobs(logits[batch.reporting], batch.top)
            for row, logprob, top, top_ids in zip(
                batch.reporting,
                out.base_logprob[batch.reporting].tolist(),
                values.tolist(),
                best.tolist(),
                strict=True,
            ):
                wanted = rows[row].plan.sampling.logprobs
                reports[row] = TokenLogprob(ids[row], logprob, tuple(zip(top_ids[:wanted], top[:wanted], strict=True)))
        return [Draw(token, reports.get(row)) for row, token in enumerate(ids)]


class _Batch:
    """The constant part of a decode batch."""

    def __init__(self, rows: list[Sequence], device: torch.device) -> None:
        plans = [row.plan for row in rows]
        wanted = [plan.sampling for plan in plans]
        self.rows = rows.copy()
        self.seeds = np.array([plan.seed for plan in plans], dtype=np.int64)
        self.streams = np.array([row.stream for row in rows], dtype=np.int64)
        self.params = RowParams(
            temperature=torch.tensor([sampling.temperature for sampling in wanted], device=device),
            top_k=torch.tensor([sampling.top_k for sampling in wanted], device=device),
            top_p=torch.tensor([sampling.top_p for sampling in wanted], device=device),
            min_p=torch.tensor([sampling.min_p for sampling in wanted], device=device),
        )
        self.reporting = [i for i, sampling in enumerate(wanted) if sampling.logprobs is not None]
        self.top = max((wanted[i].logprobs or 0 for i in self.reporting), default=0)
        self._editing = any(plan.edits_logits for plan in plans)
        if self._editing:
            self._device = device
            self._repetition, self._presence, self._frequency = (
                torch.tensor([getattr(sampling, name) for sampling in wanted], dtype=torch.float32, device=device)
                for name in ("repetition_penalty", "presence_penalty", "frequency_penalty")
            )
            biases = [
                [*plan.sampling.logit_bias.items(), *((token, -np.inf) for token in plan.banned_early)]
                for plan in plans
            ]
            width = max(map(len, biases))
            self._bias_ids = torch.full((len(rows), width), -1)
            self._bias = torch.zeros(len(rows), width)
            for i, entries in enumerate(biases):
                for j, (token, bias) in enumerate(entries):
                    self._bias_ids[i, j], self._bias[i, j] = token, bias
            self._ban = torch.isinf(self._bias)
            self._min_tokens = torch.tensor([sampling.min_tokens for sampling in wanted])

    def edits(self, vocab_size: int) -> Edits | None:
        """Edits of this step: penalties over each row's tokens so far, biases, and bans on an early end."""
        if not self._editing:
            return None
        histories = [row.tokens if row.plan.edits_logits else _NOTHING for row in self.rows]
        tokens = np.full((len(self.rows), max(map(len, histories))), -1)
        for i, history in enumerate(histories):
            tokens[i, : len(history)] = history
        prompts = torch.tensor([row.prompt_length for row in self.rows])
        generated = torch.arange(tokens.shape[1]) >= prompts[:, None]  # (B, L)
        over = torch.tensor([row.generated for row in self.rows]) >= self._min_tokens
        bias_ids = self._bias_ids.masked_fill(self._ban & over[:, None], -1)
        device = self._device
        return history_edits(
            torch.from_numpy(tokens).to(device),
            generated.to(device),
            self._repetition,
            self._presence,
            self._frequency,
            bias_ids.to(device),
            self._bias.to(device),
            vocab_size,
        )


_NOTHING: "array[int]" = array("q")
