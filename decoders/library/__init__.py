"""Norms and profiles that outlive requests, in one SQLite file."""

from pathlib import Path

from trimtab.decoders.library.database import Database
from trimtab.decoders.library.norm import Asked, Found, Norm, NormPatch, Retrieved, StoredNorm
from trimtab.decoders.library.norms import Loaded, Norms
from trimtab.decoders.library.profiles import Profiles

__all__ = ["Asked", "Found", "Library", "Loaded", "Norm", "NormPatch", "Norms", "Profiles", "Retrieved", "StoredNorm"]


class Library:
    """The store at a path, which is made if there is none; None: a temporary one, gone after `close`.

    Safe for many threads; several processes may have the same file open.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._database = Database(path)
        self.norms = Norms(self._database)
        self.profiles = Profiles(self._database)

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        try:
            self.norms.settle()
        finally:
            self._database.close()
