"""What can go wrong on the way to a remote server and back, and when a call is sent again."""

import random
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from trimtab.engine.errors import RemoteError, RemoteUnavailable

_KINDS = {429: "limited", 502: "unavailable", 503: "unavailable", 504: "unavailable"}
_WORD = re.compile(r"[\w.\[\]-]{1,64}")


@dataclass(eq=False)
class Failed(Exception):
    """One attempt that failed, and how."""

    kind: str
    """as RemoteStats counts it"""
    what: str
    """for a person, without anything that was sent or answered"""
    unavailable: bool
    """nothing is wrong with what was asked: another time, or another server, may answer"""
    again: bool = False
    """the same call may be sent again at once"""
    retry_after: float | None = None
    """seconds that the server asked to wait"""

    def error(self, server: str) -> RemoteError | RemoteUnavailable:
        """The error of the call."""
        message = f"the server at {server} {self.what}"
        if self.unavailable:
            return RemoteUnavailable(message, retry_after=self.retry_after or 1.0)
        return RemoteError(message, refused=self.kind == "refused")


def garbage(what: str) -> Failed:
    """An answer that cannot be read."""
    return Failed("garbage", what, unavailable=False)


def broken(error: Exception, seconds: float) -> Failed:
    """What an attempt without a whole answer failed of; `seconds` is the longest silence."""
    match error:
        case httpx2.ConnectTimeout() | httpx2.ConnectError():
            return Failed("connect", "cannot be reached: start it, or correct its url", unavailable=True, again=True)
        case httpx2.TimeoutException() | TimeoutError():  # to ask a slow server twice makes it slower
            return Failed("timeout", f"was silent for {seconds:g} s (read_timeout)", unavailable=True)
        case httpx2.DecodingError():
            return garbage("answered what cannot be decompressed")
        case _:
            return Failed("lost", "closed the connection before its answer was whole", unavailable=True, again=True)


def refused(response: httpx2.Response, body: Any) -> Failed:
    """What a status other than 200 says; of the text only short words are told, which are no prompts."""
    status = response.status_code
    what = f"answered {status}{_named(body)}"
    if status in _KINDS:
        after = _retry_after(response.headers.get("retry-after"))
        return Failed(_KINDS[status], what, unavailable=True, again=True, retry_after=after)
    if status in (401, 403):
        what += ": set api_key_env to the variable that holds its key"
    return Failed("failed" if status >= 500 else "refused", what, unavailable=False)


def pause(attempt: int, first: float, longest: float, asked: float | None) -> float | None:
    """Seconds before the next attempt after `attempt` before this one; None where the server asks for too many.

    Half of a wait of our own is drawn at random, and a quarter is added to one that the server asks for, so that calls
    that were turned away together do not come back together.
    """
    if asked is None:
        return float(min(first * 2.0**attempt, longest) * random.uniform(0.5, 1.0))
    return None if asked > longest else asked * random.uniform(1.0, 1.25)


def _named(body: Any) -> str:
    """Code and parameter of an error body in one of the usual forms."""
    error = body.get("error", body) if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return ""
    found = [error.get(key) for key in ("code", "type", "param")]
    words = [each for each in found if isinstance(each, str) and _WORD.fullmatch(each)]
    return f" ({', '.join(dict.fromkeys(words))})" if words else ""


def _retry_after(header: str | None) -> float | None:
    """Seconds, given as such or as a date."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(seconds, 0.0) if seconds < float("inf") else None
