"""Vectors of many texts, computed in the engine's thread in parts between its ticks."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import numpy as np

from trimtab.engine.errors import InvalidRequest
from trimtab.engine.guides.base import EmbeddingGuide
from trimtab.engine.guides.embedding import Vectors
from trimtab.engine.results import EngineStats, add
from trimtab.engine.worker import Worker

EMBEDDED_AT_ONCE = 64
"""norms whose vectors one request may have to wait for"""


class Embedding:
    """One caller's texts; `loaded` tells whether the guide is there still, `budget` tokens are read between two ticks.

    The caller makes it, and may cancel `future` from any thread until the last part is done.
    """

    def __init__(
        self,
        guide: EmbeddingGuide,
        texts: Sequence[str],
        *,
        query: bool,
        budget: int,
        worker: Worker,
        stats: EngineStats,
        loaded: Callable[[EmbeddingGuide], bool],
    ) -> None:
        """Encode the texts and begin. Raises InvalidRequest for a text that cannot be read, and Overloaded."""
        self.future: Future[Vectors] = Future()
        self._guide, self._worker, self._stats, self._loaded = guide, worker, stats, loaded
        self._rows = [guide.encoder.encode(text, query=query) for text in texts]
        self._vectors = np.empty((len(self._rows), guide.encoder.width), np.float32)
        self._parts = deque(_parts([len(row) for row in self._rows], budget))
        worker.ask(self._run)

    def _run(self) -> None:
        """Embed one part, then come back after the next tick; what it raises ends the future."""
        if self.future.cancelled():
            return
        try:
            if not self._loaded(self._guide):
                raise InvalidRequest(f"guide {self._guide.name!r} was unloaded meanwhile", param="guide")
            if self._parts:
                part = self._parts.popleft()
                rows = [self._rows[index] for index in part]
                self._vectors[part] = self._guide.encoder.vectors(rows)
                add(self._stats.model_tokens, self._guide.name, sum(map(len, rows)))
            if self._parts:
                self._worker.ask(self._run)
            elif self.future.set_running_or_notify_cancel():
                self.future.set_result(self._vectors)
        except Exception as error:  # the engine goes on whatever a model does
            if self.future.set_running_or_notify_cancel():
                self.future.set_exception(error)


def _parts(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Yield indices in parts of rising length, each within `budget` tokens or of one text."""
    part: list[int] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if part and tokens + lengths[index] > budget:
            yield part
            part, tokens = [], 0
        part.append(index)
        tokens += lengths[index]
    if part:
        yield part
