"""What can go wrong while a guide is trained; each message says what to change."""

from trimtab.engine.errors import TrimtabError


class TrainingError(TrimtabError):
    """A guide could not be trained."""


class DataError(TrainingError):
    """The training data cannot be used; a malformed line is named by file and number."""
