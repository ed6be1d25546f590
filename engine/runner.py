"""One language model with its page pool: prefill and decode over page tables."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from trimtab.engine.errors import ModelLoadError
from trimtab.engine.fused_attention import fuse_attention
from trimtab.engine.kv import ATTENTION, KVShape, KVStore
from trimtab.engine.packing import pack
from trimtab.engine.pages import PagePool, PageTable

logger = logging.getLogger(__name__)

Chunk = tuple[PageTable, Sequence[int]]
"""A page table and the new tokens that follow its stored ones; the table has room reserved for them."""

PROBE_TOKENS = 21
TOLERANCE = {
    torch.float32: 1e-3,
    torch.float64: 1e-3,
    torch.bfloat16: 0.2,
    torch.float16: 0.1,
}
"""Largest accepted error of the probe's logits in their standard deviations, about five times the rounding seen."""


class ModelRunner:
    """Forwards of one causal language model over a shared page pool.

    The caller reserves pages (`PageTable.reserve`) before a forward and records them (`PageTable.stored`) after it.
    """

    def __init__(self, model: PreTrainedModel, pool: PagePool, *, packed: bool = True) -> None:
        self.model = model
        self.pool = pool
        self.device = model.device
        self.dtype = model.dtype
        with torch.inference_mode():
            prompt = torch.arange(PROBE_TOKENS, device=self.device)[None] % model.config.get_text_config().vocab_size
            expected, shape = self._reference(prompt)
            self.vocab_size = expected.numel()
            self.packing = pack(model) if packed else None
            model.set_attn_implementation(ATTENTION)
            self.store = KVStore(pool, shape, self.dtype, self.device)
            self._fused = fuse_attention(model) if packed else []
            error = self._error(prompt[0].tolist(), expected)
            if self._fused and not error < TOLERANCE[self.dtype]:
                logger.info("%s needs its own attention modules", self._name)
                self._unfuse()
                error = self._error(prompt[0].tolist(), expected)
        if not error < TOLERANCE[self.dtype]:
            raise ModelLoadError(
                f"{self._name} does not give the same logits through paged attention (off by {error:.2g} standard "
                "deviations): its attention has a feature that trimtab does not support yet; choose another model"
            )

    def prefill(self, chunks: Sequence[Chunk]) -> None:
        """Store keys and values of the chunks' tokens; no logits are computed."""
        self._forward(chunks, self.model.base_model)

    def decode(self, chunks: Sequence[Chunk]) -> Tensor:
        """Store one token per row and return the next-token logits, (B, V) in the model's dtype."""
        logits: Tensor = self._forward(chunks, self.model).logits
        return logits[:, -1]

    @torch.inference_mode()
    def scrub(self, pages: Sequence[int]) -> None:
        """Clear pages of a row without finite logits, before they go to another."""
        self.store.scrub(pages)

    def restore(self) -> None:
        """Put the model's own modules and weights back, for methods that need gradients or hidden layers' outputs."""
        self._unfuse()
        if self.packing is not None:
            self.packing.restore()

    def _unfuse(self) -> None:
        while self._fused:
            self._fused.pop().restore()

    @torch.inference_mode()
    def _forward(self, chunks: Sequence[Chunk], module: nn.Module) -> Any:
        tables = [table for table, _ in chunks]
        counts = [len(tokens) for _, tokens in chunks]
        step = self.store.begin(tables, counts)
        ids = torch.zeros(step.positions.shape, dtype=torch.long)
        for row, (_, tokens) in enumerate(chunks):
            ids[row, : len(tokens)] = torch.as_tensor(tokens)
        return module(
            input_ids=ids.to(self.device),
            position_ids=step.positions,
            past_key_values=self.store.cache,
            use_cache=True,
        )

    def _reference(self, prompt: Tensor) -> tuple[Tensor, KVShape]:
        """Last logits of the unmodified model, and the shape of its attention layers."""
        cache = DynamicCache()
        logits = self.model(input_ids=prompt, past_key_values=cache, use_cache=True).logits[0, -1]
        shapes = set()
        for layer in cache.layers:
            keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
            shapes.add(keys.shape if keys is not None and values is not None and keys.shape == values.shape else None)
        found = shapes.pop()
        if found is None or shapes:
            raise ModelLoadError(
                f"{self._name} keeps a cache that trimtab cannot page (only full attention with keys and values "
                "of one shape in every layer is supported): choose another model"
            )
        heads = self.model.config.get_text_config().num_attention_heads
        return logits.float(), KVShape(len(cache.layers), heads, kv_heads=found[1], head_dim=found[3])

    def _error(self, prompt: list[int], expected: Tensor) -> float:
        """Run the probe in two chunks and a decode step; its distance to `expected` in standard deviations."""
        table, half = PageTable(self.pool), len(prompt) // 2
        for tokens in (prompt[:half], prompt[half:-1]):
            table.reserve(table.length + len(tokens))
            self.prefill([(table, tokens)])
            table.length += len(tokens)
        table.reserve(len(prompt))
        got = self.decode([(table, prompt[-1:])])[0].float()
        table.free()
        error = ((got - expected).std() / expected.std().clamp_min(1e-6)).item()
        logger.debug("paged forward differs from the plain one by %.2g standard deviations", error)
        return error

    @property
    def _name(self) -> str:
        return type(self.model).__name__
