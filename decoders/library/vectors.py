"""Vectors of norms: in the file as halves, in memory as one matrix that follows what any process writes."""

import sqlite3
from threading import Lock
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtab.decoders.library.errors import LibraryError

BLOCK = 2048
"""vectors of one array: a change copies one array, so that those who read the one before are not disturbed"""
STORED = np.dtype("<f2")
GONE = 0
"""key of a row whose vector was dropped; those of norms begin at 1"""


class Block(NamedTuple):
    """Some vectors; never changed, only replaced."""

    keys: NDArray[np.int64]  # (N,)
    vectors: NDArray[np.float32]  # (N, dim)


def drop_vector(connection: sqlite3.Connection, key: int, changed: int) -> None:
    """Forget what a norm's text was like, in the transaction that changes or deletes it."""
    connection.execute("UPDATE vectors SET vector = NULL, changed = ? WHERE key = ?", (changed, key))


class Matrix:
    """The vectors that one model has made, as far as this process has read them; safe for many threads."""

    def __init__(self, model: str) -> None:
        self.model = model
        self._lock = Lock()
        self._forget()

    def products(
        self, connection: sqlite3.Connection, query: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Keys (N,) of all norms with a vector, and their products with the query (N,), as the connection sees them."""
        blocks = self._refreshed(connection)
        if not blocks:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        size = blocks[0].vectors.shape[1]
        if query.shape != (size,):
            raise LibraryError(
                f"the query's vector has the shape {query.shape}, those of the norms ({size},): embed the norms anew "
                "with the model of the query"
            )
        keys = np.concatenate([block.keys for block in blocks])
        # einsum runs in the caller's thread alone; a matrix product would wake BLAS's, which fight with the engine's.
        products = np.concatenate([np.einsum("nd,d->n", block.vectors, query) for block in blocks])
        held = keys != GONE
        return keys[held], products[held]

    def _forget(self) -> None:
        self._seen = -1
        self._blocks: tuple[Block, ...] = ()
        self._places: dict[int, int] = {}
        self._dropped = 0

    def _refreshed(self, connection: sqlite3.Connection) -> tuple[Block, ...]:
        with self._lock:
            (changes,) = connection.execute("SELECT changes FROM state").fetchone()
            if changes > self._seen:
                if self._dropped > BLOCK + len(self._places) // 2:
                    self._forget()
                self._follow(connection)
                self._seen = changes
            return self._blocks

    def _follow(self, connection: sqlite3.Connection) -> None:
        """Take over what was written since: old rows are marked in copies of their blocks, new ones are appended."""
        rows = connection.execute(
            "SELECT key, CASE model WHEN ? THEN vector END FROM vectors WHERE changed > ?", (self.model, self._seen)
        ).fetchall()
        old = [place for key, _ in rows if (place := self._places.pop(key, None)) is not None]
        blocks = list(self._blocks)
        for block in {place // BLOCK for place in old}:
            keys = blocks[block].keys.copy()
            keys[[place % BLOCK for place in old if place // BLOCK == block]] = GONE
            blocks[block] = blocks[block]._replace(keys=keys)
        self._blocks = tuple(blocks)
        self._dropped += len(old)
        made = {key: vector for key, vector in rows if vector is not None}
        if made:
            vectors = np.frombuffer(b"".join(made.values()), STORED).reshape(len(made), -1)
            self._append(np.fromiter(made, np.int64, len(made)), vectors)

    def _append(self, keys: NDArray[np.int64], vectors: NDArray[np.float16]) -> None:
        blocks = list(self._blocks)
        start = len(self._places) + self._dropped
        self._places.update(zip(keys.tolist(), range(start, start + len(keys)), strict=True))
        if blocks:
            last = blocks.pop()
            keys, vectors = np.concatenate([last.keys, keys]), np.concatenate([last.vectors, vectors])
        for i in range(0, len(keys), BLOCK):
            blocks.append(Block(keys[i : i + BLOCK].copy(), vectors[i : i + BLOCK].astype(np.float32)))
        self._blocks = tuple(blocks)
