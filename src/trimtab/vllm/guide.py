"""A guide in a worker of vLLM: a small model with pages of its own, which reads along with rows that mix with it."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from trimtab.engine.alignment import Translation
from trimtab.engine.kv import Plan
from trimtab.engine.model import Model
from trimtab.engine.pages import OutOfPages, PageTable
from trimtab.engine.staging import place
from trimtab.vllm.history import History, Span
from trimtab.vllm.reading import Reading
from trimtab.vllm.rows import Row

PREFILL = 2048
"""tokens of one forward over what a guide has not read yet"""


class Output(Protocol):
    """What a causal language model of transformers gives."""

    logits: Tensor


class Wanted(NamedTuple):
    """A request whose next token a guide is asked about."""

    row: Row
    reading: Reading

    @property
    def target(self) -> int:
        """Tokens that the guide reads before that one."""
        return self.row.length - self.reading.skipped


class RunningGuide:
    """One loaded guide. Its pages are bounded: what is unused for longest is given up, and read again when needed."""

    def __init__(self, model: Model, translation: Translation, ids: Tensor | None) -> None:
        """`ids` (base rows,) are the guide's ids of the base's tokens; None: they are the same."""
        self.name = model.name
        self._model = model
        self._translation = translation
        self._ids = ids
        self._holding: dict[Reading, None] = {}

    def open(self, row: Row, *, alone: bool) -> Reading:
        """A reading of a request that holds nothing yet."""
        salt = b"|".join((self._model.salt, b"alone" if alone else b""))
        return Reading(PageTable(self._model.runner.pool, salt), self._holding, alone, row.prompt - 1 if alone else 0)

    @torch.inference_mode()
    def logits(self, wanted: Sequence[Wanted], history: History) -> Tensor:
        """Logits (N, V) of the next token of each request, in the base's vocabulary; one forward for all that fit.

        Where the pages do not hold all of them at once, one part after another is read.
        """
        parts, group = [], list[Wanted]()
        for each in wanted:
            if group and not self._holds(each, group):
                parts.append(self._forward(group, history))
                group = []
            if not group and not self._holds(each, group):
                raise AssertionError("a pool holds the longest request")  # checked when the guide was loaded
            group.append(each)
        parts.append(self._forward(group, history))
        logits = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self._translation.logits(logits)

    def _holds(self, wanted: Wanted, group: Sequence[Wanted]) -> bool:
        """Whether there are pages for a request beside those of `group`; others give theirs up, the oldest first."""
        row, reading, target = *wanted, wanted.target
        table = reading.table
        self._holding.pop(reading, None)
        self._holding[reading] = None  # at the end: used last
        table.trim(target - 1)  # the last token is read again where it was read before, for its logits
        if not table.pages and row.tokens is not None:
            table.match(row.tokens[reading.skipped : row.length - 1])
        kept = {each.reading for each in group} | {reading}
        while True:
            try:
                table.reserve(target)
            except OutOfPages:
                oldest = next((each for each in self._holding if each not in kept), None)
                if oldest is None:
                    return False
                oldest.free()
            else:
                return True

    def _forward(self, group: Sequence[Wanted], history: History) -> Tensor:
        """Read all that is unread of each request; logits (N, V) behind its last token."""
        while behind := [each for each in group if each.target - 1 > each.reading.table.length]:
            budget, counts = PREFILL, list[int]()
            behind.sort(key=lambda each: each.reading.table.length - each.target)  # longest first, stable
            for each in behind:
                count = min(budget, each.target - 1 - each.reading.table.length)
                budget -= count
                if count:
                    counts.append(count)
            self._read(behind[: len(counts)], counts, history)
        runner = self._model.runner
        plan = runner.store.plan_rows([each.reading.table for each in group], [1] * len(group))
        last = [Span(row, row.length - 1, row.length) for row, _ in group]
        logits: Tensor = self._run(runner.model, plan, self._own(history.ids(last))[:, None]).logits
        self._stored(group, [1] * len(group))
        return logits[:, -1]

    def _read(self, group: Sequence[Wanted], counts: Sequence[int], history: History) -> None:
        """Store keys and values of the next `counts` tokens of each request."""
        runner = self._model.runner
        plan = runner.store.plan([each.reading.table for each in group], counts)
        spans = []
        for (row, reading), count in zip(group, counts, strict=True):
            start = reading.skipped + reading.table.length
            spans.append(Span(row, start, start + count))
        ids = self._own(history.ids(spans))
        width = plan.own.shape[1]
        real = np.concatenate([number * width + np.arange(count) for number, count in enumerate(counts)])
        (index,) = place([real], ids.device)
        padded = ids.new_zeros(len(group) * width).index_copy_(0, index, ids).view(-1, width)  # (B, q)
        self._run(runner.model.base_model, plan, padded)
        self._stored(group, counts)

    def _run(self, module: torch.nn.Module, plan: Plan, ids: Tensor) -> Output:
        """Run `module` over ids (B, q) that lie on the device."""
        runner = self._model.runner
        runner.store.place(plan, np.zeros(tuple(ids.shape), dtype=np.int64))
        output: Output = module(
            input_ids=ids, position_ids=runner.store.step.positions, past_key_values=runner.store.cache, use_cache=True
        )
        return output

    def _own(self, ids: Tensor) -> Tensor:
        """Ids of the base as the guide numbers them."""
        return ids if self._ids is None else self._ids.index_select(0, ids)

    def _stored(self, group: Sequence[Wanted], counts: Sequence[int]) -> None:
        for (row, reading), count in zip(group, counts, strict=True):
            table = reading.table
            if row.tokens is None:
                table.length += count
            else:  # full pages become findable, for other requests and after a preemption
                tokens = row.tokens[reading.skipped :] if reading.skipped else row.tokens
                table.stored(tokens, table.length + count)
