"""A guide in a worker of vLLM: a small model with pages of its own, which reads along with rows that mix with it."""

from collections.abc import Collection, Sequence
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
"""tokens, padded ones too, of one forward over what a guide has not read yet"""


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

    @property
    def unread(self) -> int:
        """Tokens in front of the last of those whose keys and values are not stored yet."""
        return self.target - 1 - self.reading.table.length


class RunningGuide:
    """One loaded guide. Its pages are bounded: some are given up where they run out, and read again when needed."""

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

        Where the pages do not hold all of them at once, one part after another is read. Those that hold pages come
        first, so that these are used before they are given up.
        """
        asked = {each.reading for each in wanted}
        order = sorted(range(len(wanted)), key=lambda number: not wanted[number].reading.table.pages)
        parts, group = [], list[Wanted]()
        for each in (wanted[number] for number in order):
            if group and not self._holds(each, group, asked):
                parts.append(self._forward(group, history))
                group = []
            if not group and not self._holds(each, group, asked):
                raise AssertionError("a pool holds the longest request")  # checked when the guide was loaded
            group.append(each)
        parts.append(self._forward(group, history))
        logits = parts[0] if len(parts) == 1 else torch.cat(parts)
        if order != list(range(len(order))):
            (back,) = place([np.argsort(order)], logits.device)
            logits = logits.index_select(0, back)
        return self._translation.logits(logits)

    def _holds(self, wanted: Wanted, group: Sequence[Wanted], asked: Collection[Reading]) -> bool:
        """Whether there are pages for a request beside those of `group`; others give theirs up."""
        row, reading, target = *wanted, wanted.target
        table = reading.table
        self._holding.pop(reading, None)
        self._holding[reading] = None  # at the end: used last
        table.trim(target - 1)  # the last token is read again where it was read before, for its logits
        if not table.pages and row.tokens is not None:
            table.match(row.tokens[reading.skipped : row.length - 1])
        while True:
            try:
                table.reserve(target)
            except OutOfPages:
                spare = self._spare({each.reading for each in group} | {reading}, asked)
                if spare is None:
                    return False
                spare.free()
            else:
                return True

    def _spare(self, kept: Collection[Reading], asked: Collection[Reading]) -> Reading | None:
        """The reading whose pages are missed least, none of `kept`; None: there is no other.

        It is the one unused for longest of those that this step does not ask about. The others take turns, step after
        step, so the one used last is needed again last.
        """
        idle = next((each for each in self._holding if each not in asked), None)
        return idle or next((each for each in reversed(self._holding) if each not in kept), None)

    def _forward(self, group: Sequence[Wanted], history: History) -> Tensor:
        """Read all that is unread of each request; logits (N, V) behind its last token."""
        while behind := sorted((each for each in group if each.unread > 0), key=lambda each: -each.unread):
            width = min(PREFILL, behind[0].unread)  # all rows of a forward are padded to its longest
            part = behind[: PREFILL // width]
            self._read(part, [min(width, each.unread) for each in part], history)
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
