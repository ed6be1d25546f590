"""The norms of a store: what changes them, what reads them, what a query gets."""

import hashlib
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from trimtab.decoders.library.database import Database
from trimtab.decoders.library.errors import Conflict, Exists, LibraryError, NotFound
from trimtab.decoders.library.matching import retrieve
from trimtab.decoders.library.norm import Asked, Norm, NormPatch, Retrieved, StoredNorm
from trimtab.decoders.library.rows import COLUMNS, FIELDS, Filter, from_row, marks, tagged, to_row
from trimtab.decoders.library.vectors import STORED, Matrices, Matrix, drop_vectors, store_vector
from trimtab.decoders.library.words import Frequencies, every_word, searchable
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.tally import Tally

PAGE = 500
"""norms read at once where all are read"""
EMBEDDED = 64
"""texts embedded at once"""
RETRIEVAL = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
"""bounds of the seconds that are told apart"""


class Loaded(NamedTuple):
    """What an import has done."""

    created: int
    replaced: int
    unchanged: int


class Norms:
    """Rules by id; safe for many threads, and for other processes with the same file. A change is in force at once."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._matrices = Matrices()
        self._frequencies = Frequencies()
        self._deleted = False
        self._counting = Lock()
        self.retrieval = Tally(RETRIEVAL)
        """seconds that each retrieval took"""
        self.retrieved = 0
        """norms that they gave, in all"""

    def __len__(self) -> int:
        with self._database.read() as c:
            (count,) = c.execute("SELECT count(*) FROM norms").fetchone()
            return int(count)

    def create(self, norm: Norm) -> StoredNorm:
        """Add a norm; raises Exists."""
        with self._database.write() as c:
            if _find(c, norm.id) is not None:
                raise Exists(f"there is a norm {norm.id!r} already: replace it, or take another id")
            return _insert(c, norm)

    def get(self, id_: str) -> StoredNorm:
        """One norm; raises NotFound."""
        with self._database.read() as c:
            return _require(c, id_)[1]

    def replace(self, norm: Norm, version: int | None = None) -> StoredNorm:
        """Put a norm in the place of the one with its id; raises NotFound, and Conflict unless that is at `version`."""
        with self._database.write() as c:
            key, old = _require(c, norm.id, version)
            return _update(c, key, old, norm)

    def patch(self, id_: str, patch: NormPatch, version: int | None = None) -> StoredNorm:
        """Change some fields of a norm as it is now; raises NotFound, Conflict, and InvalidRequest where none fits."""
        with self._database.write() as c:
            key, old = _require(c, id_, version)
            try:
                norm = Norm(**{**old.model_dump(exclude={"version", "updated"}), **patch.changes()})
            except ValidationError as error:
                first = error.errors()[0]  # of a field that the patch brings, or of one that no longer fits beside it
                raise InvalidRequest(str(first["msg"]), param=str(first["loc"][0])) from None
            return _update(c, key, old, norm)

    def delete(self, id_: str, version: int | None = None) -> None:
        """Take a norm away; raises NotFound and Conflict.

        SQLite overwrites its text. Copies that moved rows have left, and single words in the index of words, leave the
        file when the library is closed.
        """
        with self._database.write(erases=True) as c:
            key, old = _require(c, id_, version)
            c.execute("DELETE FROM norms WHERE key = ?", (key,))
            c.execute("DELETE FROM words WHERE rowid = ?", (key,))
            c.executemany("DELETE FROM tags WHERE tag = ? AND key = ?", [(tag, key) for tag in old.tags])
            c.execute("INSERT OR REPLACE INTO removed VALUES (?, ?)", (_digest(id_), old.version))
            drop_vectors(c, key, _count_change(c))
        self._deleted = True

    def settle(self) -> None:
        """Before the end: let nothing of deleted norms stay in the file."""
        if self._deleted:
            with self._database.write() as c:
                c.execute("INSERT INTO words (words) VALUES ('optimize')")
            self._database.compact()
            self._deleted = False

    def load(self, norms: Iterable[Norm]) -> Loaded:
        """Add and replace norms in one transaction: all of them, or none if one is refused."""
        given = list(norms)  # before the write, which others wait for, whatever the iterable reads from
        created = replaced = 0
        with self._database.write() as c:
            for norm in given:
                found = _find(c, norm.id)
                if found is None:
                    _insert(c, norm)
                    created += 1
                elif _fields(found[1]) != _fields(norm):
                    _update(c, *found, norm)
                    replaced += 1
        return Loaded(created, replaced, len(given) - created - replaced)

    def dump(self) -> Iterator[StoredNorm]:
        """All norms in the order of ids, read in pages: what changes meanwhile may be seen before or after."""
        after = None
        while page := self.list(after=after, limit=PAGE):
            yield from page
            after = page[-1].id

    def list(
        self,
        *,
        after: str | None = None,
        limit: int = 100,
        q: str | None = None,
        tags: Collection[str] = (),
        tenant: str | None = None,
        locale: str | None = None,
        topic: str | None = None,
    ) -> tuple[StoredNorm, ...]:
        """Norms in the order of ids, those after an id, whatever their dates.

        Of those with every word of `q`, any of the tags, and exactly these scopes, where given.
        """
        scope = {"tenant": tenant, "locale": locale, "topic": topic}
        exact = {name: value for name, value in scope.items() if value is not None}
        conditions = ["n.id > ?", *(f"n.{name} = ?" for name in exact)]
        chosen = tagged(Asked("", tags=tags), Filter(" AND ".join(conditions), (after or "", *exact.values())))
        words = every_word(q) if q is not None else None
        if words is not None:
            matched = "n.key IN (SELECT rowid FROM words WHERE words MATCH ?)"
            chosen = Filter(f"{chosen.sql} AND {matched}", (*chosen.values, words))
        with self._database.read() as c:
            rows = c.execute(
                f"SELECT {COLUMNS} FROM norms n WHERE {chosen.sql} ORDER BY n.id LIMIT ?", (*chosen.values, limit)
            )
            return tuple(from_row(row) for row in rows)

    def retrieve(self, asked: Asked) -> Retrieved:
        """The norms that a query gets, as the store is now; LibraryError for an embedding that does not fit."""
        began = time.perf_counter()
        matrix = None if asked.embedding is None else self._matrix(asked.model)
        with self._database.read() as c:
            told = retrieve(c, asked, self._frequencies, matrix)
        with self._counting:
            self.retrieval.add(time.perf_counter() - began)
            self.retrieved += len(told.found)
        return told

    def embed_missing(
        self, model: str, embed: Callable[[Sequence[str]], NDArray[np.float32]], most: int | None = None
    ) -> int:
        """Fill in the vectors of norms that have none by `model`, `most` of them at most; returns how many.

        `model` tells models apart (a digest of the weights); a norm keeps the vectors of the two that embedded it last.
        `embed` makes unit vectors (N, dim) of N texts, at most EMBEDDED. A norm that changes meanwhile is left for the
        next call.
        """
        matrix = self._matrices.of(model)
        done, after = 0, 0
        while True:
            with self._database.read() as c:
                (changes,) = c.execute("SELECT changes FROM state").fetchone()
                if changes == matrix.complete or done == most:
                    return done
                rows = c.execute(
                    "SELECT n.key, n.version, n.text FROM norms n LEFT JOIN vectors v ON v.key = n.key AND v.model = ? "
                    "WHERE n.key > ? AND v.vector IS NULL ORDER BY n.key LIMIT ?",
                    (model, after, EMBEDDED if most is None else min(EMBEDDED, most - done)),
                ).fetchall()
            if not rows:
                if not after:
                    matrix.complete = changes
                return done
            vectors = np.asarray(embed([text for _, _, text in rows]))
            if vectors.ndim != 2 or len(vectors) != len(rows) or not np.isfinite(vectors).all():
                raise LibraryError(f"an embedding model gave {vectors.shape} for {len(rows)} texts, or broken numbers")
            with self._database.write() as c:
                changed = _count_change(c)
                for (key, version, _), vector in zip(rows, vectors.astype(STORED), strict=True):
                    done += store_vector(c, (key, version), model, vector, changed)
            after = rows[-1][0]

    def _matrix(self, model: str | None) -> Matrix:
        if model is None:
            raise LibraryError("an embedding is compared with vectors of its own model: name that in `model`")
        return self._matrices.of(model)


def _find(c: sqlite3.Connection, id_: str) -> tuple[int, StoredNorm] | None:
    row = c.execute(f"SELECT n.key, {COLUMNS} FROM norms n WHERE n.id = ?", (id_,)).fetchone()
    return None if row is None else (row[0], from_row(row[1:]))


def _require(c: sqlite3.Connection, id_: str, version: int | None = None) -> tuple[int, StoredNorm]:
    """Key and norm of an id; NotFound, or Conflict unless it is at `version`."""
    found = _find(c, id_)
    if found is None:
        raise NotFound(f"there is no norm {id_!r}: create it first")
    if version is not None and version != found[1].version:
        raise Conflict(id_, version, found[1].version)
    return found


def _insert(c: sqlite3.Connection, norm: Norm) -> StoredNorm:
    row = c.execute("SELECT version FROM removed WHERE digest = ?", (_digest(norm.id),)).fetchone()
    stored = _stored(norm, 1 if row is None else row[0] + 1)
    c.execute("DELETE FROM removed WHERE digest = ?", (_digest(norm.id),))
    values = to_row(stored, stored.version, stored.updated)
    key = c.execute(f"INSERT INTO norms ({', '.join(FIELDS)}) VALUES ({marks(FIELDS)})", values).lastrowid
    c.execute("INSERT INTO words (rowid, text) VALUES (?, ?)", (key, searchable(norm.text)))
    c.executemany("INSERT INTO tags VALUES (?, ?)", [(tag, key) for tag in norm.tags])
    _count_change(c)
    return stored


def _update(c: sqlite3.Connection, key: int, old: StoredNorm, norm: Norm) -> StoredNorm:
    stored = _stored(norm, old.version + 1)
    values = to_row(stored, stored.version, stored.updated)
    c.execute(f"UPDATE norms SET ({', '.join(FIELDS)}) = ({marks(FIELDS)}) WHERE key = ?", (*values, key))
    c.executemany("DELETE FROM tags WHERE tag = ? AND key = ?", [(tag, key) for tag in old.tags])
    c.executemany("INSERT INTO tags VALUES (?, ?)", [(tag, key) for tag in norm.tags])
    changed = _count_change(c)
    if norm.text != old.text:
        c.execute("UPDATE words SET text = ? WHERE rowid = ?", (searchable(norm.text), key))
        drop_vectors(c, key, changed)
    return stored


def _count_change(c: sqlite3.Connection) -> int:
    """The number of this change; those who keep copies in memory compare it."""
    c.execute("UPDATE state SET changes = changes + 1")
    (changes,) = c.execute("SELECT changes FROM state").fetchone()
    return int(changes)


def _stored(norm: Norm, version: int) -> StoredNorm:
    return StoredNorm.model_construct(**_fields(norm), version=version, updated=datetime.now(UTC))


def _fields(norm: Norm) -> dict[str, Any]:
    return {name: getattr(norm, name) for name in Norm.model_fields}


def _digest(id_: str) -> bytes:
    """What remains of the id of a deleted norm."""
    return hashlib.blake2b(id_.encode(), digest_size=16).digest()
