"""Rewards read off a decoder's last hidden state, through the pages of its model."""

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.engine.errors import GuideError
from trimtab.engine.guides.heads import LinearHead
from trimtab.engine.guides.prompts import guide_transcript
from trimtab.engine.model import Model
from trimtab.engine.pages import PageTable
from trimtab.engine.plan import PLAIN, Variant
from trimtab.engine.rewards.base import Judgement, Pair, batches
from trimtab.engine.runner import Chunk
from trimtab.engine.vocabulary import Vocabulary


class CausalReward:
    """A decoder whose head reads the last token of a conversation that ends with the answer.

    Prefixes that the model's pool still holds are not computed again. Every row has its own positions and no
    padding is attended: pad and EOS may be the same id.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        head: LinearHead,
        *,
        labels: Sequence[str] = ("LABEL_0",),
        variant: Variant = PLAIN,
        vocabulary: Vocabulary | None = None,
        max_batch_tokens: int = 16_384,
    ) -> None:
        self.name = name
        self.labels = tuple(labels)
        self.vocabulary = vocabulary or model.vocabulary  # an adapter may bring a chat template of its own
        self.context_length = model.context_length
        self.dtype = model.runner.dtype
        self.pool = model.runner.pool
        self.adapted = variant != PLAIN
        self._model = model
        self._head = head
        self._variant = variant
        self._max_batch_tokens = max_batch_tokens

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Return the scores of `judge`."""
        return [judgement.score for judgement in self.judge(pairs)]

    def judge(self, pairs: Sequence[Pair]) -> list[Judgement]:
        """Return one judgement per pair; GuideError if a score or a logit is not finite.

        Raises OutOfPages if live sequences of the same pool leave no room for a pair. All pages are given back.
        """
        rows = [self.encode(pair) for pair in pairs]
        # One answer of each conversation goes first, so that the others find the pages of their prompt, if any.
        page = self._model.runner.pool.page_size
        starts = [(repr(pair.messages), pair.salt, bytes(row[:page])) for pair, row in zip(pairs, rows, strict=True)]
        firsts = list({start: index for index, start in enumerate(starts)}.values())
        others = sorted(set(range(len(rows))).difference(firsts))
        judged: dict[int, Judgement] = {}
        pool = self._model.runner.pool
        for wave in (firsts, others):
            budget = min(self._max_batch_tokens, pool.available * pool.page_size)
            lengths = [pool.pages_for(len(rows[index])) * pool.page_size for index in wave]
            for batch in batches(lengths, budget):
                # falling lengths: neighbours of similar length are attended together
                indices = [wave[each] for each in reversed(batch)]
                told = self._batch([rows[index] for index in indices], [pairs[index].salt for index in indices])
                judged |= zip(indices, told, strict=True)
        return [judged[index] for index in range(len(rows))]

    def encode(self, pair: Pair) -> "array[int]":
        """Return the ids of what the model reads for `pair`, within its context; GuideError if its template refuses."""
        limit = self.context_length
        return array("q", guide_transcript(self.name, self.vocabulary, pair.messages, pair.answer, limit=limit))

    @torch.inference_mode()
    def _batch(self, rows: Sequence["array[int]"], salts: Sequence[bytes]) -> list[Judgement]:
        runner, tables = self._model.runner, [self._table(salt) for salt in salts]
        try:
            # the last token runs in any case, for its hidden state
            cached = [table.match(row[:-1]) for table, row in zip(tables, rows, strict=True)]
            for table, row in zip(tables, rows, strict=True):
                table.reserve(len(row))
            logits = self._head.logits(self._read(tables, rows))  # (B, labels)
            if not logits.isfinite().all():
                runner.scrub([page for table in tables for page in table.pages if runner.pool.references[page] == 1])
                raise GuideError(self.name, "a score is not finite: load it with dtype float32 or bfloat16")
            scores = self._head.score(logits)  # (B,)
            told = zip(scores.tolist(), map(tuple, logits.tolist()), map(len, rows), cached, strict=True)
            return [Judgement(*each) for each in told]
        finally:
            for table in tables:
                table.free()

    def _read(self, tables: Sequence[PageTable], rows: Sequence["array[int]"]) -> Tensor:
        """The last hidden state of each row, (B, D), by forwards of at most `max_batch_tokens` tokens."""
        ends: dict[int, Tensor] = {}
        while todo := [index for index, row in enumerate(rows) if tables[index].length < len(row)]:
            step = max(1, self._max_batch_tokens // len(todo))
            chunks = []
            for index in todo:
                table, row = tables[index], rows[index]
                chunks.append(Chunk(table, row[table.length : table.length + step], self._variant))
            hidden = self._model.runner.prefill(chunks)  # (len(todo), D)
            for index, chunk, last in zip(todo, chunks, hidden, strict=True):
                tables[index].stored(rows[index], chunk.table.length + len(chunk.tokens))
                ends[index] = last
        return torch.stack([ends[index] for index in range(len(rows))])

    def _table(self, salt: bytes) -> PageTable:
        return PageTable(self._model.runner.pool, b"|".join((self._model.salt_of(self._variant), salt)))
