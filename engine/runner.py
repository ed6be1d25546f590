"""One language model, or the decoder of a scorer, with its page pool: forwards over page tables."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from trimtab.engine.errors import ModelLoadError
from trimtab.engine.fused_attention import fuse_attention
from trimtab.engine.graphs import Capture, CudaCapture, DecodeGraphs
from trimtab.engine.kv import ATTENTION, IntArray, KVShape, KVStore, Plan, Step
from trimtab.engine.lm_head import Edit, tap_head
from trimtab.engine.packing import pack
from trimtab.engine.pages import PagePool, PageTable
from trimtab.engine.plan import PLAIN, Variant
from trimtab.engine.staging import place
from trimtab.engine.variants import RowTerms
from trimtab.kernels.backend import Backend

logger = logging.getLogger(__name__)

READ_ROWS = 256
"""tokens of one forward that gives logits of each"""

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
    """What a decode forward gave, one row per token of its chunks; valid until the model's next decode forward."""

    logits: Tensor  # (N, V) in the model's dtype
    hidden: Tensor  # (N, D) last hidden states before any edit
    unedited: Tensor  # (R, V) logits without the edits, for the rows that were edited, in the order of the edits


class ModelRunner:
    """Forwards of one decoder over a shared page pool.

    The caller reserves pages (`PageTable.reserve`) before a forward and records them (`PageTable.stored`) after it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        pool: PagePool,
        *,
        packed: bool = True,
        graph_rows: int = 0,
        capture: Capture | None = None,
        backend: Backend = "auto",
    ) -> None:
        """Put `model` behind the pages of `pool`; raises ModelLoadError for a model that cannot be paged.

        On a GPU, decode forwards of up to `graph_rows` rows are captured in CUDA graphs. `capture` stands in for CUDA's
        own way, on any device.
        """
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
            self.store = KVStore(pool, shape, self.dtype, self.device, backend=backend)
            self._fused = fuse_attention(model) if packed else []
            self._head = tap_head(model)
            self.vocab_size: int = config.vocab_size if self._head is None else expected.numel()
            self.terms = RowTerms(model, backend)
            self._graphs: DecodeGraphs | None = None
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
        if capture is None and self.device.type == "cuda":
            capture = CudaCapture()
        if capture is not None and self._head is not None and self.store.static and graph_rows:
            self._capture_with(capture, graph_rows)

    @torch.inference_mode()
    def prefill(self, chunks: Sequence[Chunk]) -> Tensor:
        """Store keys and values of the chunks' tokens; the last hidden state of each, (N, D), chunk by chunk."""
        counts = [len(chunk.tokens) for chunk in chunks]
        plan = self.store.plan([chunk.table for chunk in chunks], counts)
        ids = _ids([chunk.tokens for chunk in chunks], plan)
        variants = [chunk.variant for chunk in chunks]
        hidden: Tensor = self._forward(self.model.base_model, plan, ids, variants).last_hidden_state  # (N, q, D)
        last = np.arange(len(chunks)) * ids.shape[1] + np.array(counts) - 1
        return hidden.flatten(0, 1).index_select(0, place([last], self.device)[0])

    @torch.inference_mode()
    def read(self, chunks: Sequence[Chunk]) -> Tensor:
        """Store the chunks' tokens as `prefill` does; logits (N, V) of what follows each token, chunk by chunk."""
        counts = [len(chunk.tokens) for chunk in chunks]
        plan = self.store.plan([chunk.table for chunk in chunks], counts)
        ids = _ids([chunk.tokens for chunk in chunks], plan)
        logits: Tensor = self._forward(self.model, plan, ids, [chunk.variant for chunk in chunks]).logits  # (B, q, V)
        real = np.concatenate([row * ids.shape[1] + np.arange(count) for row, count in enumerate(counts)])
        return logits.flatten(0, 1).index_select(0, place([real], self.device)[0])

    @torch.inference_mode()
    def decode(self, chunks: Sequence[Chunk], edits: Sequence[Edit] = ()) -> Decoded:
        """Store the chunks' tokens and return what follows each of them, one row per token, chunk by chunk.

        The rows of `edits` are tensors on the host.
        """
        assert self._head is not None, "a model without an LM head gives no logits"
        plan, ids, variants = self._plan_rows(chunks)
        replayed = None if edits else self._replay(plan, ids, variants)
        if replayed is not None:
            logits, hidden = replayed
            return Decoded(logits, hidden, logits[:0])
        again = [variants[row] for edit in edits for row in edit.rows.tolist()]  # rows that the head reads twice
        self._head.edits = [replace(edit, rows=place([edit.rows.numpy()], self.device)[0]) for edit in edits]
        try:
            output = self._forward(self.model, plan, ids, [*variants, *again])
        finally:
            self._head.edits = ()
        count = len(ids)
        return Decoded(output.logits[:count, -1], self._head.hidden[:, -1], output.logits[count:, -1])

    @torch.inference_mode()
    def hidden(self, chunks: Sequence[Chunk]) -> Tensor:
        """Store the chunks' tokens and return the last hidden state of each, (N, D), chunk by chunk."""
        hidden: Tensor = self._forward(self.model.base_model, *self._plan_rows(chunks)).last_hidden_state
        return hidden[:, -1]

    @torch.inference_mode()
    def score(self, chunks: Sequence[Chunk], candidates: Sequence[Sequence[int]]) -> Tensor:
        """Read the chunks' tokens and, after each chunk, every candidate as its next token.

        Returns their hidden states (B, k, D), padded to the longest list. Every table has room for its chunk and its
        candidates. Afterwards the candidates' keys and values lie behind those of the chunk; `keep` makes one of
        them the next token.
        """
        pending, counts = [len(chunk.tokens) for chunk in chunks], [len(ids) for ids in candidates]
        plan = self.store.plan_candidates([chunk.table for chunk in chunks], pending, counts)
        ids = _ids([[*chunk.tokens, *each] for chunk, each in zip(chunks, candidates, strict=True)], plan)
        variants = [chunk.variant for chunk in chunks]
        hidden: Tensor = self._forward(self.model.base_model, plan, ids, variants).last_hidden_state  # (B, q, D)
        columns = np.minimum(np.array(pending)[:, None] + np.arange(max(counts)), ids.shape[1] - 1)
        (index,) = place([columns], self.device)
        return hidden.gather(1, index[:, :, None].expand(-1, -1, hidden.shape[2]))

    @torch.inference_mode()
    def keep(self, moves: Sequence[tuple[PageTable, int, int]]) -> None:
        """Move the keys and values of (table, from position, to position): of the candidates that were drawn."""
        self.store.keep(moves)

    @torch.inference_mode()
    def scrub(self, pages: Sequence[int]) -> None:
        """Clear pages of a row without finite logits, before they go to another."""
        self.store.scrub(pages)

    def forget(self, name: str) -> None:
        """Take out the adapter or the control vector of this name, if there is one."""
        self.terms.remove(name)
        if self._graphs is not None:
            self._graphs.drop()

    def restore(self) -> None:
        """Put the model's own modules and weights back, for methods that need gradients; adapters are lost."""
        self._unfuse()
        if self.packing is not None:
            self.packing.restore()
            self._head = tap_head(self.model)
        if self._graphs is not None:
            self._graphs.drop()

    def _unfuse(self) -> None:
        while self._fused:
            self._fused.pop().restore()

    def _plan_rows(self, chunks: Sequence[Chunk]) -> tuple[Plan, IntArray, list[Variant]]:
        """A forward with one row per token: where it reads and writes, its ids (B, 1) and its rows' variants."""
        plan = self.store.plan_rows([chunk.table for chunk in chunks], [len(chunk.tokens) for chunk in chunks])
        ids = np.array([token for chunk in chunks for token in chunk.tokens], dtype=np.int64)[:, None]
        return plan, ids, [chunk.variant for chunk in chunks for _ in chunk.tokens]

    def _forward(self, module: nn.Module, plan: Plan, ids: IntArray, variants: Sequence[Variant]) -> Any:
        """Run `module` over `ids` (B, q); `variants` may go on with rows that only the LM head adds."""
        self.terms.begin(variants)
        return self._call(module, self.store.place(plan, ids))

    def _call(self, module: nn.Module, ids: Tensor) -> Any:
        """Run `module` over the store's current step."""
        return module(
            input_ids=ids,
            position_ids=self.store.step.positions,
            past_key_values=self.store.cache,
            use_cache=True,
        )

    @torch.inference_mode()
    def _capture_with(self, capture: Capture, rows: int) -> None:
        """Let `decode` run captured forwards of up to `rows` rows."""

        def forward(ids: Tensor, step: Step) -> tuple[Tensor, Tensor]:
            assert self._head is not None
            self.store.step = step
            logits: Tensor = self._call(self.model, ids).logits
            return logits[:, -1], self._head.hidden[:, -1]

        self.terms.reserve(rows)
        self._graphs = DecodeGraphs(forward, capture, rows=rows, device=self.device)

    def _replay(self, plan: Plan, ids: IntArray, variants: Sequence[Variant]) -> tuple[Tensor, Tensor] | None:
        """Logits and hidden states of a captured forward; None where there is none for these rows."""
        if self._graphs is None or len(ids) > self._graphs.rows:
            return None
        self.terms.begin([*variants, *[PLAIN] * (self._graphs.bucket(len(ids)) - len(ids))])
        signature = self.terms.signature
        return None if signature is None else self._graphs.run(plan, ids, signature)

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
        return last[0, -1].float(), KVShape(len(cache.layers), kv_heads=found[1], head_dim=found[3])

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


def _ids(tokens: Sequence[Sequence[int]], plan: Plan) -> IntArray:
    """Token ids (B, q) of the rows of a plan, padded with token 0."""
    ids = np.zeros(plan.own.shape, dtype=np.int64)
    for row, each in enumerate(tokens):
        ids[row, : len(each)] = each
    return ids


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
