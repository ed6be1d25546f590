"""Text as the index of words reads it, and the terms of a query that are worth looking up."""

import re
import sqlite3
import unicodedata

LONGEST_QUERY = 16_000
"""characters of a query that are looked at, from its two ends"""
LONGEST_WORDS = 200
"""words of a query that are looked at, from its two ends"""
MOST_TERMS = 24
"""terms of a query that are looked up, the rarest"""
MOST_COUNTED = 50_000
"""terms whose numbers are kept"""

# Scripts that write no spaces: Thai, Lao, Burmese, Khmer, kana, Han.
_UNSPACED = re.compile(
    "[\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]+"
)


def searchable(text: str) -> str:
    """The text with one form for each character, and as overlapping pairs of characters where no spaces are written."""
    return _UNSPACED.sub(_pairs, unicodedata.normalize("NFKC", text))


class Frequencies:
    """In how many texts terms are; counting takes time in proportion, so the numbers are kept while about right.

    Every change of the store moves a number by one at most: a number is counted anew when changes could have moved it
    by a tenth. Safe for many threads.
    """

    def __init__(self) -> None:
        self._counted: dict[str, tuple[int, int]] = {}
        """texts with the term, and the change after which they were counted"""

    def rarest(self, connection: sqlite3.Connection, query: str, *, postings: int, alone: int | None) -> list[str]:
        """The rarest terms of a query, as long as they are in no more than `postings` texts in all.

        The very rarest may be in `alone` texts; None: in any number. At most LONGEST_WORDS words are counted, so that
        the cost has a bound. To be called inside a read of the database: the query goes into its temporary table.
        """
        connection.execute("INSERT INTO temp.asked (rowid, text) VALUES (1, ?)", (_ends(query),))
        rows = connection.execute("SELECT term FROM temp.asked_terms LIMIT ?", (LONGEST_WORDS,))
        counts = self._counts(connection, [term for (term,) in rows])
        chosen: list[str] = []
        total = 0
        for count, term in sorted((count, term) for term, count in counts.items() if count)[:MOST_TERMS]:
            total += count
            bound = postings if chosen else alone
            if bound is not None and total > bound:
                break
            chosen.append(term)
        return chosen

    def _counts(self, connection: sqlite3.Connection, terms: list[str]) -> dict[str, int]:
        (changes,) = connection.execute("SELECT changes FROM state").fetchone()
        counts = {}
        for term in terms:
            count, counted = self._counted.get(term, (0, -1))
            if counted < 0 or abs(changes - counted) > count // 10:
                row = connection.execute("SELECT doc FROM terms WHERE term = ?", (term,)).fetchone()
                count = 0 if row is None else row[0]
                if len(self._counted) >= MOST_COUNTED:
                    self._counted.clear()
                self._counted[term] = count, changes
            counts[term] = count
        return counts


def expression(terms: list[str]) -> str:
    """An FTS5 expression for texts with any of the terms, each quoted, so that none is syntax."""
    return " OR ".join(map(_quoted, terms))


def every_word(query: str) -> str | None:
    """An FTS5 expression for texts with every word of a query; None where it has no word."""
    words = [word for word in _ends(query).split() if any(char.isalnum() for char in word)]
    return " AND ".join(map(_quoted, words)) or None


def _quoted(word: str) -> str:
    return '"' + word.replace('"', '""') + '"'


def _ends(query: str) -> str:
    """The query's two ends, cleared of what SQLite cannot take."""
    if len(query) > LONGEST_QUERY:
        query = query[: LONGEST_QUERY // 2] + " " + query[-LONGEST_QUERY // 2 :]
    words = searchable(query.encode("utf-8", "replace").decode().replace("\0", " ")).split()
    if len(words) > LONGEST_WORDS:
        words = words[: LONGEST_WORDS // 2] + words[-LONGEST_WORDS // 2 :]
    return " ".join(words)


def _pairs(run: re.Match[str]) -> str:
    text = run.group()
    pairs = [text[i : i + 2] for i in range(len(text) - 1)] or [text]
    return f" {' '.join(pairs)} "
