"""What can go wrong with the store of norms and profiles."""

from trimtab.engine.errors import TrimtabError


class LibraryError(TrimtabError):
    """The store cannot do what was asked; the message says what to change."""


class NotFound(LibraryError):
    """No norm, or no profile, has this id."""


class Exists(LibraryError):
    """A norm with this id is there already."""


class Conflict(LibraryError):
    """Somebody else has changed the norm since it was read; `current` is its version now."""

    def __init__(self, id_: str, expected: int, current: int) -> None:
        super().__init__(
            f"norm {id_!r} is at version {current}, not {expected}: read it again, and change what it says now"
        )
        self.current = current


class Unusable(LibraryError):
    """The file cannot be opened, is no store of ours, or is damaged."""


class Locked(LibraryError):
    """Another process keeps the file locked."""
