"""Errors meant for a person: each message says what is wrong and what to change."""


class TrimtabError(Exception):
    """Base of every error that trimtab raises on purpose."""


class ModelLoadError(TrimtabError):
    """A model, tokenizer or guide could not be loaded."""


class InvalidRequest(TrimtabError):
    """The request can never succeed as it stands; `param` names the field, `code` is OpenAI's error code."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class Overloaded(TrimtabError):
    """The queue is full or the engine is draining; try again after `retry_after` seconds."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Draining(Overloaded):
    """The server is shutting down: another one, or this one a little later, takes the request."""

    def __init__(self, message: str = "the server is shutting down", *, retry_after: float = 5.0) -> None:
        super().__init__(message, retry_after=retry_after)


class GuideUnavailable(Overloaded):
    """A guide that a request needs has failed again and again, and is left alone for a while."""

    def __init__(self, guide: str, failures: int, *, retry_after: float) -> None:
        super().__init__(
            f"guide {guide!r} has failed {failures} times in a row and is left alone for now: try again later, or "
            "leave it out",
            retry_after=retry_after,
        )
        self.guide = guide


class RemoteUnavailable(Overloaded):
    """A server that the request needs cannot be reached or takes no calls now; nothing is wrong with the request."""

    def __init__(self, message: str, *, retry_after: float = 1.0, guide: str | None = None) -> None:
        """`guide` is what the server runs; None: the base model."""
        super().__init__(message, retry_after=retry_after)
        self.guide = guide


class RemoteError(TrimtabError):
    """A server that the request needs answered what cannot be understood, or refused what it should be able to do."""

    def __init__(self, message: str, *, refused: bool = False, guide: str | None = None) -> None:
        """`refused`: it did not take what was asked, as its status from 400 to 499 says; `guide` as above."""
        super().__init__(message)
        self.refused = refused
        self.guide = guide


class GuideInUse(TrimtabError):
    """A guide cannot be unloaded: requests use it."""

    def __init__(self, guide: str, requests: int) -> None:
        super().__init__(
            f"guide {guide!r} is in use by {requests} request{'s' * (requests != 1)}: try again when they have ended"
        )
        self.guide = guide
        self.requests = requests


class GuideError(TrimtabError):
    """A guide failed while it scored or steered; `guide` is its name in the configuration."""

    def __init__(self, guide: str, message: str) -> None:
        super().__init__(f"guide {guide!r}: {message}")
        self.guide = guide


class Cancelled(TrimtabError):
    """The caller gave the request up."""
