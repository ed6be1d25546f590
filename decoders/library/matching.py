"""Which norms a query gets: those that hold for who asks, the nearest first.

OPO (Xu et al. 2023, arXiv 2312.15907) and Guide-Align (Luo et al. 2024, arXiv 2403.11838) retrieve rules for each query
from a library that may change at any time. Words count by BM25 (FTS5's own). With an embedding of the query, the two
orders are fused by reciprocal ranks (Cormack, Clarke and Buettcher 2009): a norm at rank r of an order, the first being
1, gets (1 - share) / (60 + r) from the words and share / (60 + r) from the embedding.
"""

import sqlite3
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtab.decoders.library.norm import Asked, Found, Retrieved, StoredNorm
from trimtab.decoders.library.rows import COLUMNS, Filter, eligible, first_keys, from_row, marks, tagged
from trimtab.decoders.library.vectors import Matrix
from trimtab.decoders.library.words import Frequencies, expression

FEW = 2_000
"""norms that pass a filter, up to which they are listed before anything is compared"""
POSTINGS = 6_000
"""occurrences of a query's terms that are scored at most; the rarest terms count most, so they come first"""
ALONE = 20_000
"""the same for the rarest term of all; if even that one is more frequent, the words tell nothing"""
POSTINGS_FEW = 30_000
"""the same where few norms pass, since only those are scored; the rarest term of all counts in any case"""
RANK_OFFSET = 60
"""what softens the lead of first ranks, by the paper"""


class Passing(NamedTuple):
    """The norms that a retrieval may give."""

    filter: Filter
    few: list[int] | None
    """their keys, where they are FEW at most"""


def retrieve(
    connection: sqlite3.Connection, asked: Asked, frequencies: Frequencies, matrix: Matrix | None
) -> Retrieved:
    """The norms that `asked` names, then at most k that its query finds; `connection` is in a read of the database.

    `matrix` has the vectors that the query's embedding is compared with; None without an embedding.
    """
    now = asked.now or datetime.now(UTC)
    within = eligible(asked, now)
    ids = tuple(dict.fromkeys(asked.ids))
    named = {norm.id: norm for norm in _norms(connection, "id", ids, within).values()}
    forced = tuple(Found(named[id_], None) for id_ in ids if id_ in named)
    missing = tuple(id_ for id_ in ids if id_ not in named)
    if asked.k <= 0:
        return Retrieved(forced, missing)
    keys = first_keys(connection, asked, now, FEW + 1)
    passing = Passing(tagged(asked, within), keys if len(keys) <= FEW else None)
    best = _best(connection, asked, frequencies, matrix, passing, asked.k + len(forced)) if keys else []
    norms = _norms(connection, "key", [key for key, _ in best], within)
    found = [Found(norms[key], score) for key, score in best if norms[key].id not in named]
    return Retrieved(forced + tuple(found[: asked.k]), missing)


def _best(
    connection: sqlite3.Connection,
    asked: Asked,
    frequencies: Frequencies,
    matrix: Matrix | None,
    passing: Passing,
    count: int,
) -> list[tuple[int, float]]:
    """Keys and scores of the nearest norms, the best first."""
    if matrix is None or asked.embedding is None or asked.share <= 0:
        return _by_words(connection, asked.query, frequencies, passing, count)
    depth = max(RANK_OFFSET, 4 * count)
    orders = [(asked.share, _by_embedding(connection, asked.embedding, matrix, passing, depth))]
    if asked.share < 1:
        words = _by_words(connection, asked.query, frequencies, passing, depth)
        orders.append((1 - asked.share, [key for key, _ in words]))
    fused: dict[int, float] = {}
    for share, keys in orders:
        for rank, key in enumerate(keys, 1):
            fused[key] = fused.get(key, 0.0) + share / (RANK_OFFSET + rank)
    return sorted(fused.items(), key=lambda each: (-each[1], each[0]))[:count]


def _by_words(
    connection: sqlite3.Connection, query: str, frequencies: Frequencies, passing: Passing, count: int
) -> list[tuple[int, float]]:
    """Keys and BM25 of the norms that share terms with the query, the best first."""
    if passing.few is None:
        terms = frequencies.rarest(connection, query, postings=POSTINGS, alone=ALONE)
        sql, values = passing.filter
    else:
        terms = frequencies.rarest(connection, query, postings=POSTINGS_FEW, alone=None)
        # The plus: rows that match are looked up among the keys, the index is not searched anew for every key.
        sql, values = f"+w.rowid IN ({', '.join(map(str, passing.few))})", ()
    if not terms:
        return []
    return connection.execute(
        "SELECT n.key, -bm25(words) AS score FROM words w CROSS JOIN norms n ON n.key = w.rowid "
        f"WHERE words MATCH ? AND {sql} ORDER BY score DESC, n.key LIMIT ?",
        (expression(terms), *values, count),
    ).fetchall()


def _by_embedding(
    connection: sqlite3.Connection, query: NDArray[np.float32], matrix: Matrix, passing: Passing, count: int
) -> list[int]:
    """Keys of the norms whose vectors are nearest to the query's."""
    keys, products = matrix.products(connection, np.asarray(query, np.float32))
    if passing.few is None:
        nearest = _nearest(keys, products, 8 * count)
        held = _held(connection, passing.filter, nearest)
        if len(held) >= count or len(nearest) == len(keys):
            return [key for key in nearest if key in held][:count]
        few = list(_held(connection, passing.filter, None))  # what passes is rare among the nearest
    else:
        few = passing.few
    among = np.isin(keys, few)
    return _nearest(keys[among], products[among], count)


def _nearest(keys: NDArray[np.int64], products: NDArray[np.float32], count: int) -> list[int]:
    """The keys with the greatest products, the greatest first."""
    if len(keys) > count:
        top = np.argpartition(products, -count)[-count:]
        keys, products = keys[top], products[top]
    nearest: list[int] = keys[np.lexsort((keys, -products))].tolist()
    return nearest


def _held(connection: sqlite3.Connection, filter_: Filter, keys: list[int] | None) -> set[int]:
    """Those of the keys that pass a filter; None: of all."""
    among = "" if keys is None else f"n.key IN ({marks(keys)}) AND "
    rows = connection.execute(f"SELECT n.key FROM norms n WHERE {among}{filter_.sql}", (*(keys or ()), *filter_.values))
    return {key for (key,) in rows}


def _norms(
    connection: sqlite3.Connection, column: str, values: "list[int] | tuple[str, ...]", within: Filter
) -> dict[int, StoredNorm]:
    """Norms that pass a filter by their keys, of those with the values in a column."""
    if not values:
        return {}
    rows = connection.execute(
        f"SELECT n.key, {COLUMNS} FROM norms n WHERE n.{column} IN ({marks(values)}) AND {within.sql}",
        (*values, *within.values),
    )
    return {key: from_row(tuple(row)) for key, *row in rows}
