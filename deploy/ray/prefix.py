"""Which replica has the beginning of a prompt cached: a key of the request, and an order of replicas for each key."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic_core import from_json

SESSION = b"x-session-id"
"""header that names a session, whose requests stay together whatever their prompts are"""


def prefix_key(body: bytes, session: str, length: int) -> str:
    """A digest of what requests share that should reach the same replica; empty where nothing can be said.

    It is of the session, or else of the first `length` characters of the prompt: of a conversation its messages up to
    the first of the user, so that the key stays as the conversation goes on. A cache salt keeps keys apart.
    """
    try:
        asked = from_json(body) if body else None
    except ValueError:
        asked = None
    if not isinstance(asked, Mapping):
        asked = {}
    beginning = session or _beginning(asked, length)
    if not beginning:
        return ""
    parts = (str(asked.get("cache_salt") or ""), "session" if session else "text", beginning)
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()


def ranked(key: str, replicas: Iterable[str]) -> list[str]:
    """Replicas by how much `key` prefers them (rendezvous hashing).

    One that comes or goes changes the order of the others for no key.
    """
    return sorted(replicas, key=lambda each: hashlib.blake2b(f"{key}/{each}".encode(), digest_size=8).digest())


def _beginning(asked: Mapping[str, Any], length: int) -> str:
    """The beginning of the prompt of a request, whatever its route is."""
    for field in ("messages", "prompt", "pairs", "conversations", "text_1"):
        if (value := asked.get(field)) is not None:
            return _text(value, length)[:length]
    return ""


def _text(value: object, length: int) -> str:
    """Text in a value, up to the first turn of a user; token ids as their numbers."""
    if isinstance(value, str):
        return value[:length]
    if isinstance(value, Mapping):
        parts = (value.get("role"), value.get("prompt"), value.get("messages"), value.get("content"), value.get("text"))
        return "\x1f".join(_text(part, length) for part in parts if part is not None)
    if not isinstance(value, list):
        return ""
    if value and isinstance(value[0], int):
        return " ".join(map(str, value[: max(1, length // 4)]))
    told = ""
    for part in value:
        told += _text(part, length) + "\x1e"
        if len(told) >= length or (isinstance(part, Mapping) and (part.get("role") == "user" or "prompt" in part)):
            break
    return told
