"""Vectors of norms, by model: in the file as halves, in memory as a matrix that follows what any process writes."""

import sqlite3
from threading import Lock
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtab.decoders.library.errors import LibraryError

BLOCK = 2048
"""vectors of one array: a change copies one array, so that those who read the one before are not disturbed"""
STORED = np.dtype("<f2")
MODELS = 2
"""models whose vectors of a norm are kept, and models whose matrices are in memory"""
GONE = 0
"""key of a row whose vector was dropped; those of norms begin at 1"""


class Block(NamedTuple):
    """Some vectors; never changed, only replaced."""

    keys: NDArray[np.int64]  # (N,)
    vectors: NDArray[np.float32]  # (N, dim)


def drop_vectors(connection: sqlite3.Connection, key: int, changed: int) -> None:
    """Forget what a norm's text was like to any model, in the transaction that changes or deletes it."""
    connection.execute("UPDATE vectors SET vector = NULL, changed = ? WHERE key = ?", (changed, key))


def store_vector(
    connection: sqlite3.Connection, norm: tuple[int, int], model: str, vector: NDArray[np.float16], changed: int
) -> bool:
    """Keep the vector of a norm (key and version) by a model; False, and nothing is kept, if the norm has changed.

    Of other models the vectors that are oldest are dropped, so that MODELS stay.
    """
    key, version = norm
    kept = connection.execute(
        "INSERT OR REPLACE INTO vectors SELECT key, ?, ?, ? FROM norms WHERE key = ? AND version = ?",
        (model, vector.tobytes(), changed, key, version),
    ).rowcount
    if kept:
        connection.execute(
            "UPDATE vectors SET vector = NULL, changed = ? WHERE key = ? AND model IN (SELECT model FROM vectors "
            "WHERE key = ? AND vector IS NOT NULL AND model <> ? ORDER BY changed DESC LIMIT -1 OFFSET ?)",
            (changed, key, key, model, MODELS - 1),
        )
    return bool(kept)


class Matrix:
    """The vectors that one model has made, as far as this process has read them; safe for many threads."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.complete = -1
        """the change up to which every norm has a vector"""
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
            "SELECT key, vector FROM vectors WHERE model = ? AND changed > ?", (self.model, self._seen)
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


class Matrices:
    """The matrices of the MODELS models that were asked for last; safe for many threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._held: dict[str, Matrix] = {}
        """the one that was asked for last at the end"""

    def of(self, model: str) -> Matrix:
        """The matrix of a model, which is empty at first and reads when it is multiplied."""
        with self._lock:
            matrix = self._held.pop(model, None) or Matrix(model)
            self._held[model] = matrix
            for name in list(self._held)[:-MODELS]:
                del self._held[name]
            return matrix
