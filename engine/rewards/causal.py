"""Rewards read off a decoder's last hidden state, through the pages of its model."""

import math
from array import array
from collections.abc import Sequence

import torch

from trimtab.engine.errors import GuideError
from trimtab.engine.guides.base import Head
from trimtab.engine.guides.prompts import guide_transcript
from trimtab.engine.model import Model
from trimtab.engine.pages import PageTable
from trimtab.engine.plan import PLAIN, Variant
from trimtab.engine.rewards.base import Pair, batches
from trimtab.engine.runner import Chunk


class CausalReward:
    """A decoder whose head reads the last token of a conversation that ends with the answer.

    Prefixes that the model's pool still holds are not computed again. Every row has its own positions and no
    padding is attended: pad and EOS may be the same id.
    """

    def __init__(
        self, name: str, model: Model, head: Head, *, variant: Variant = PLAIN, max_batch_tokens: int = 16_384
    ) -> None:
        self.name = name
        self.tokens_read = 0
        self._model = model
        self._head = head
        self._variant = variant
        self._max_batch_tokens = max_batch_tokens

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Return one score per pair; GuideError if one is not finite.

        Raises OutOfPages if live sequences of the same pool leave no room for a pair. All pages are given back.
        """
        rows = [self.encode(pair) for pair in pairs]
        # One answer of each conversation goes first, so that the others find the pages of their prompt.
        firsts = list({repr(pair.messages): index for index, pair in enumerate(pairs)}.values())
        others = sorted(set(range(len(rows))).difference(firsts))
        scores = [0.0] * len(rows)
        pool = self._model.runner.pool
        for wave in (firsts, others):
            budget = min(self._max_batch_tokens, pool.available * pool.page_size)
            lengths = [pool.pages_for(len(rows[index])) * pool.page_size for index in wave]
            for batch in batches(lengths, budget):
                # falling lengths: neighbours of similar length are attended together
                indices = [wave[each] for each in reversed(batch)]
                for index, score in zip(indices, self._batch([rows[index] for index in indices]), strict=True):
                    scores[index] = score
        return scores

    def encode(self, pair: Pair) -> "array[int]":
        """Return the ids of what the model reads for `pair`, within its context; GuideError if its template refuses."""
        limit = self._model.context_length
        return array("q", guide_transcript(self.name, self._model.vocabulary, pair.messages, pair.answer, limit=limit))

    @torch.inference_mode()
    def _batch(self, rows: Sequence["array[int]"]) -> list[float]:
        runner, tables = self._model.runner, [self._table() for _ in rows]
        try:
            for table, row in zip(tables, rows, strict=True):
                table.match(row[:-1])  # the last token runs in any case, for its hidden state
                table.reserve(len(row))
            self._prefill(tables, rows)
            hidden = runner.hidden([self._chunk(table, row, len(row)) for table, row in zip(tables, rows, strict=True)])
            self.tokens_read += len(rows)
            scores: list[float] = self._head(hidden).tolist()
            if not all(map(math.isfinite, scores)):
                runner.scrub([page for table in tables for page in table.pages if runner.pool.references[page] == 1])
                raise GuideError(self.name, "a score is not finite: load it with dtype float32 or bfloat16")
            return scores
        finally:
            for table in tables:
                table.free()

    def _prefill(self, tables: Sequence[PageTable], rows: Sequence["array[int]"]) -> None:
        """Store all but the last token of each row, at most `max_batch_tokens` of them in one forward."""
        step = max(1, self._max_batch_tokens // len(rows))
        while todo := [(table, row) for table, row in zip(tables, rows, strict=True) if table.length < len(row) - 1]:
            chunks = [self._chunk(table, row, min(len(row) - 1, table.length + step)) for table, row in todo]
            self._model.runner.prefill(chunks)
            self.tokens_read += sum(len(chunk.tokens) for chunk in chunks)
            for chunk, (table, row) in zip(chunks, todo, strict=True):
                table.stored(row, table.length + len(chunk.tokens))

    def _chunk(self, table: PageTable, row: "array[int]", end: int) -> Chunk:
        return Chunk(table, row[table.length : end], self._variant)

    def _table(self) -> PageTable:
        return PageTable(self._model.runner.pool, self._model.salt + self._variant.salt)
