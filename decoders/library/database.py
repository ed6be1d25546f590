"""One SQLite file for many threads and processes: one writer, readers of their own, errors that say what to do."""

import logging
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from trimtab.decoders.library.errors import LibraryError, Locked, Unusable
from trimtab.decoders.library.schema import QUERIES, prepare

log = logging.getLogger("trimtab.library")

PATIENCE = 10.0
"""seconds that a write waits for those of other processes"""
ERASING = 0.5
"""seconds that an erasure waits for readers, before it leaves the rest to the next write"""
IDLE_READERS = 8
CACHE_KIB = 32_768
"""pages that each connection may keep; FTS5 and the rules of 100,000 norms fit"""


class Database:
    """The connections to one file; None makes a temporary file, which is removed by `close`."""

    def __init__(self, path: Path | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="trimtab-") if path is None else None
        self.path = Path(self._folder.name) / "library.sqlite" if self._folder is not None else Path(path or "")
        self._writing = Lock()
        self._pooling = Lock()
        self._readers: list[sqlite3.Connection] = []
        self._closed = False
        self._residue = False
        """what was erased may still be in the log of writes"""
        try:
            self._writer = self._open()
        except BaseException:
            self._remove()
            raise

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection that sees the file as it is now, whatever is written meanwhile; what it writes is not kept."""
        with self._explained():
            reader = self._take()
            try:
                reader.execute("BEGIN")
                yield reader
            finally:
                reader.rollback()
                self._put_back(reader)

    @contextmanager
    def write(self, *, erases: bool = False) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it or nothing is kept, and it is on disk when the block ends.

        With `erases`, what it deletes is also taken out of the log of writes that SQLite keeps beside the file.
        """
        with self._explained(), self._writing:
            self._require_open()
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                self._writer.rollback()
                raise
            if erases or self._residue:
                self._clean()

    def compact(self) -> None:
        """Write the whole file anew, without anything that deleted rows have left behind."""
        with self._explained(), self._writing:
            self._require_open()
            self._writer.execute("VACUUM")
            self._clean()

    def close(self) -> None:
        """Close every connection; a second time does nothing."""
        with self._explained(), self._writing:
            if self._closed:
                return
            if self._residue:
                self._clean()
            with self._pooling:
                self._closed = True
                for reader in self._readers:
                    reader.close()
            self._writer.close()
            self._remove()

    def _take(self) -> sqlite3.Connection:
        with self._pooling:
            self._require_open()
            if self._readers:
                return self._readers.pop()
        reader = self._open()
        reader.executescript(QUERIES)
        return reader

    def _put_back(self, reader: sqlite3.Connection) -> None:
        with self._pooling:
            if not self._closed and len(self._readers) < IDLE_READERS:
                self._readers.append(reader)
                return
        reader.close()

    def _open(self) -> sqlite3.Connection:
        if self.path.is_dir():
            raise Unusable(f"{self.path} is a folder: name a file in it")
        if not self.path.parent.is_dir():
            raise Unusable(f"there is no folder {self.path.parent} to keep {self.path.name} in: make it first")
        with self._explained():
            connection = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
            try:
                self._set_up(connection)
            except BaseException:
                connection.close()
                raise
        return connection

    def _set_up(self, connection: sqlite3.Connection) -> None:
        prepare(connection, str(self.path))
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise Unusable(f"SQLite cannot keep {self.path} with a log of writes (WAL): put it on a local disk")
        connection.execute(f"PRAGMA synchronous = {'FULL' if self._folder is None else 'OFF'}")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("PRAGMA secure_delete = ON")

    def _clean(self) -> None:
        """Move the log of writes into the file and empty it; tried again at the next write while others read."""
        self._writer.execute(f"PRAGMA busy_timeout = {round(ERASING * 1000)}")
        busy, _, _ = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._writer.execute(f"PRAGMA busy_timeout = {round(PATIENCE * 1000)}")
        if busy and not self._residue:
            log.warning("%s is being read by another process: what was erased leaves the log later", self.path)
        self._residue = bool(busy)

    def _require_open(self) -> None:
        if self._closed:
            raise LibraryError("the library is closed: open it again")

    def _remove(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """SQLite's errors as ours, with what to do about them."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise Locked(
                    f"{self.path} has stayed locked by another process for {PATIENCE:g} seconds: try again, or end "
                    "the program that keeps a write open"
                ) from error
            hint = {
                sqlite3.SQLITE_NOTADB: "is no SQLite database: name another file, which will be made",
                sqlite3.SQLITE_CORRUPT: "is damaged: put a copy of it in its place, or import the norms anew",
                sqlite3.SQLITE_CANTOPEN: "cannot be opened: is its folder writable?",
                sqlite3.SQLITE_READONLY: "cannot be written: check its permissions and those of its folder",
                sqlite3.SQLITE_FULL: "cannot grow: the disk is full",
                sqlite3.SQLITE_IOERR: "cannot be read or written: check the disk",
            }.get(code)
            if hint is None:
                raise
            raise Unusable(f"{self.path} {hint} ({error})") from error
