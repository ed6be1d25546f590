"""One language model, or the decoder of a scorer, with its page pool: forwards over page tables."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from trimtab.engine.errors import ModelLoadError
from trimtab.engine.fused_attention import fuse_attention
from trimtab.engine.kv import ATTENTION, KVShape, KVStore, Step
from trimtab.engine.lm_head import Edit, tap_head
from trimtab.engine.packing import pack
from trimtab.engine.pages import PagePool, PageTable
from trimtab.engine.plan import PLAIN, Variant
from trimtab.engine.variants import RowTerms

logger = logging.getLogger(__name__)

PROBE_TOKENS = 21
PROBE_WINDOW = 8  # sliding windows are probed at this width: their own may be thousands of tokens
TOLERANCE = {
    torch.float32: 1e-3,
    torch.float64: 1e-3,
    torch.bfloat16: 0.2,
    torch.float16: 0.1,
}
"""Largest accepted error of the probe's output in its standard deviations, about five times the rounding seen."""


class Chunk(NamedTuple):
    """A page table, the new tokens that follow its stored ones, and the variant of the model that reads them.

    The table has room reserved for the tokens.
    """

    table: PageTable
    tokens: Sequence[int]
    variant: Variant = PLAIN


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a decode forward gave, one row per token of its chunks."""

    logits: Tensor  # (N, V) in the model's dtype
    hidden: Tensor  # (N, D) last hidden states before any edit
    unedited: Tensor  # (R, V) logits without the edits, for the rows that were edited, in the order of the edits


class ModelRunner:
    """Forwards of one decoder over a shared page pool.

    The caller reserves pages (`PageTable.reserve`) before a forward and records them (`PageTable.stored`) after it.
    """

    def __init__(self, model: PreTrainedModel, pool: PagePool, *, packed: bool = True) -> None:
        self.model = model
        self.pool = pool
        self.device = model.device
        self.dtype = model.dtype
        config = model.config.get_text_config()
        self.hidden_size: int = config.hidden_size
        self.layers: int = config.num_hidden_layers
        with torch.inference_mode(), _short_windows(model):
            prompt = torch.arange(PROBE_TOKENS, device=self.device)[None] % config.vocab_size
            expected, shape = self._reference(prompt)
            self.packing = pack(model) if packed else None
            model.set_attn_implementation(ATTENTION)
            self.store = KVStore(pool, shape, self.dtype, self.device)
            self._fused = fuse_attention(model) if packed else []
            self._head = tap_head(model)
            self.vocab_size: int = config.vocab_size if self._head is None else expected.numel()
            self.terms = RowTerms(model)
            error = self._error(prompt[0].tolist(), expected)
            if self._fused and not error < TOLERANCE[self.dtype]:
                logger.info("%s needs its own attention modules", self._name)
                self._unfuse()
                error = self._error(prompt[0].tolist(), expected)
        if not error < TOLERANCE[self.dtype]:
            raise ModelLoadError(
                f"{self._name} does not give the same output through paged attention (off by {error:.2g} standard "
                "deviations): its attention has a feature that trimtab does not support yet; choose another model"
            )

    @torch.inference_mode()
    def prefill(self, chunks: Sequence[Chunk]) -> Tensor:
        """Store keys and values of the chunks' tokens; the last hidden state of each, (N, D), chunk by chunk."""
        step = self.store.begin([chunk.table for chunk in chunks], [len(chunk.tokens) for chunk in chunks])
        tokens = [chunk.tokens for chunk in chunks]
        variants = [chunk.variant for chunk in chunks]
        hidden: Tensor = self._forward(self.model.base_model, step, tokens, variants).last_hidden_state  # (N, q, D)
        return hidden[torch.arange(len(chunks)), [len(each) - 1 for each in tokens]]

    @torch.inference_mode()
    def decode(self, chunks: Sequence[Chunk], edits: Sequence[Edit] = ()) -> Decoded:
        """Store the chunks' tokens and return what follows each of them, one row per token, chunk by chunk."""
        assert self._head is not None, "a model without an LM head gives no logits"
        self._head.edits = edits
        rows = [chunk for chunk in chunks for _ in chunk.tokens]
        again = [rows[row].variant for edit in edits for row in edit.rows.tolist()]  # rows that the head reads twice
        try:
            output = self._rows_forward(self.model, chunks, again)
        finally:
            self._head.edits = ()
        count = len(output.logits) - sum(len(edit.rows) for edit in edits)
        return Decoded(output.logits[:count, -1], self._head.hidden[:, -1], output.logits[count:, -1])

    @torch.inference_mode()
    def hidden(self, chunks: Sequence[Chunk]) -> Tensor:
        """Store the chunks' tokens and return the last hidden state of each, (N, D), chunk by chunk."""
        hidden: Tensor = self._rows_forward(self.model.base_model, chunks).last_hidden_state
        return hidden[:, -1]

    @torch.inference_mode()
    def score(self, chunks: Sequence[Chunk], candidates: Sequence[Sequence[int]]) -> Tensor:
        """Read the chunks' tokens and, after each chunk, every candidate as its next token.

        Returns their hidden states (B, k, D), padded to the longest list. Every table has room for its chunk and its
        candidates. Afterwards the candidates' keys and values lie behind those of the chunk; `keep` makes one of
        them the next token.
        """
        pending, counts = [len(chunk.tokens) for chunk in chunks], [len(ids) for ids in candidates]
        step = self.store.begin_candidates([chunk.table for chunk in chunks], pending, counts)
        tokens = [[*chunk.tokens, *ids] for chunk, ids in zip(chunks, candidates, strict=True)]
        variants = [chunk.variant for chunk in chunks]
        hidden: Tensor = self._forward(self.model.base_model, step, tokens, variants).last_hidden_state  # (B, q, D)
        first = torch.tensor(pending, device=self.device)[:, None]
        columns = (first + torch.arange(max(counts), device=self.device)).clamp_(max=hidden.shape[1] - 1)
        return hidden.gather(1, columns[:, :, None].expand(-1, -1, hidden.shape[2]))

    @torch.inference_mode()
    def keep(self, moves: Sequence[tuple[PageTable, int, int]]) -> None:
        """Move the keys and values of (table, from position, to position): of the candidates that were drawn."""
        self.store.keep(moves)

    @torch.inference_mode()
    def scrub(self, pages: Sequence[int]) -> None:
        """Clear pages of a row without finite logits, before they go to another."""
        self.store.scrub(pages)

    def restore(self) -> None:
        """Put the model's own modules and weights back, for methods that need gradients; adapters are lost."""
        self._unfuse()
        if self.packing is not None:
            self.packing.restore()
            self._head = tap_head(self.model)

    def _unfuse(self) -> None:
        while self._fused:
            self._fused.pop().restore()

    def _rows_forward(self, module: nn.Module, chunks: Sequence[Chunk], more: Sequence[Variant] = ()) -> Any:
        """A forward with one row per token; `more` are rows that only the LM head adds."""
        counts = [len(chunk.tokens) for chunk in chunks]
        step = self.store.begin_rows([chunk.table for chunk in chunks], counts)
        variants = [chunk.variant for chunk in chunks for _ in chunk.tokens]
        tokens = [[token] for chunk in chunks for token in chunk.tokens]
        return self._forward(module, step, tokens, [*variants, *more])

    def _forward(
        self, module: nn.Module, step: Step, tokens: Sequence[Sequence[int]], variants: Sequence[Variant]
    ) -> Any:
        self.terms.begin(variants)
        ids = torch.zeros(step.positions.shape, dtype=torch.long)
        for row, each in enumerate(tokens):
            ids[row, : len(each)] = torch.as_tensor(each)
        return module(
            input_ids=ids.to(self.device),
            position_ids=step.positions,
            past_key_values=self.store.cache,
            use_cache=True,
        )

    def _reference(self, prompt: Tensor) -> tuple[Tensor, KVShape]:
        """Last output of the unmodified model, and the shape of its attention layers."""
        cache = DynamicCache()
        if self.model.get_output_embeddings() is None:
            last = self.model.base_model(input_ids=prompt, past_key_values=cache, use_cache=True).last_hidden_state
        else:
            last = self.model(input_ids=prompt, past_key_values=cache, use_cache=True).logits
        shapes = set()
        for layer in cache.layers:
            keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
            shapes.add(keys.shape if keys is not None and values is not None and keys.shape == values.shape else None)
        found = shapes.pop()
        if found is None or shapes:
            raise ModelLoadError(
                f"{self._name} keeps a cache that trimtab cannot page (only attention with keys and values "
                "of one shape in every layer is supported): choose another model"
            )
        heads = self.model.config.get_text_config().num_attention_heads
        return last[0, -1].float(), KVShape(len(cache.layers), heads, kv_heads=found[1], head_dim=found[3])

    def _error(self, prompt: list[int], expected: Tensor) -> float:
        """Run the probe in two chunks and a decode step; its distance to `expected` in standard deviations."""
        table, half = PageTable(self.pool), len(prompt) // 2
        for tokens in (prompt[:half], prompt[half:-1]):
            table.reserve(table.length + len(tokens))
            self.prefill([Chunk(table, tokens)])
            table.length += len(tokens)
        table.reserve(len(prompt))
        last = [Chunk(table, prompt[-1:])]
        got = (self.hidden(last) if self._head is None else self.decode(last).logits)[0].float()
        table.free()
        error = ((got - expected).std() / expected.std().clamp_min(1e-6)).item()
        logger.debug("paged forward differs from the plain one by %.2g standard deviations", error)
        return error

    @property
    def _name(self) -> str:
        return type(self.model).__name__


@contextmanager
def _short_windows(model: PreTrainedModel) -> Iterator[None]:
    """Narrow the sliding windows of the model to what a short probe notices."""
    holders: list[Any] = [model.config.get_text_config(), *model.modules()]
    windows = [(holder, getattr(holder, "sliding_window", None)) for holder in holders]
    windows = [(holder, window) for holder, window in windows if isinstance(window, int) and window > PROBE_WINDOW]
    try:
        for holder, _ in windows:
            holder.sliding_window = PROBE_WINDOW
        yield
    finally:
        for holder, window in windows:
            holder.sliding_window = window
