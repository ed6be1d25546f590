"""What ingress, replicas and guides say to each other: plain values alone, so that any version can read them."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypedDict

from pydantic_core import to_json

PROTOCOL = 1
"""raised whenever a side of an older version would misunderstand; the two then refuse each other"""

SKEW = "version_skew"
"""code of the error when they do"""

READING = frozenset({"GET", "HEAD", "OPTIONS"})
"""methods that change nothing"""
PURE = frozenset(
    ("POST", path)
    for path in (
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/score",
        "/v1/classify",
        "/tokenize",
        "/detokenize",
        "/v1/norms/search",
    )
)
"""routes that change nothing although their method may"""


class Route(TypedDict):
    """What the router reads of a call, and what it tells of its choice."""

    key: str
    """calls of one key should reach one replica; empty: any"""
    met: list[str]
    """replicas that this call has met in vain: to pass over while there are others"""
    shunned: list[str]
    """replicas that other calls have lost not long ago: the same, but to ask rather than those"""
    only: str
    """the one replica to ask; empty: any"""
    chosen: list[str]
    """written by the router: who is asked first"""
    accepted: list[str]
    """written by the router, and once that one has spoken: who has taken it"""
    known: list[str]
    """written by the router: who could be"""


class Call(TypedDict):
    """One HTTP request on its way to a replica."""

    protocol: int
    route: Route
    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


class GuideCall(TypedDict):
    """One call of a guide: a body of /v1/score or /v1/classify."""

    protocol: int
    digest: str
    """of the guide's configuration that the caller expects"""
    route: Route
    path: str
    body: dict[str, Any]


Hello = tuple[Literal["hello"], str]
"""the first word of a replica: its id"""
Start = tuple[Literal["start"], int, list[tuple[bytes, bytes]]]
"""status and headers of the answer"""
Body = tuple[Literal["body"], bytes]
Beat = tuple[Literal["beat"]]
"""it is still computing"""
Refused = tuple[Literal["refused"], str]
"""it does not understand the call: why"""
Reply = Hello | Start | Body | Beat | Refused


def route(key: str = "", *, met: Iterable[str] = (), shunned: Iterable[str] = (), only: str = "") -> Route:
    """The routing part of a fresh call."""
    return {
        "key": key,
        "met": list(met),
        "shunned": list(shunned),
        "only": only,
        "chosen": [],
        "accepted": [],
        "known": [],
    }


def meets(wanted: Route) -> list[str]:
    """The replica that has taken the call; while none has, the one that it was offered to. Of several, none."""
    return wanted["accepted"] or (wanted["chosen"] if len(wanted["chosen"]) == 1 else [])


def changes(method: str, path: str) -> bool:
    """Whether a request changes something, so that it may be sent once alone and replicas may differ afterwards."""
    return method not in READING and (method, path) not in PURE


def digest(config: Mapping[str, Any]) -> str:
    """What stands for a guide's configuration in calls."""
    return hashlib.sha256(to_json(config, by_alias=False)).hexdigest()[:16]


def mismatch(protocol: object) -> str | None:
    """Why calls of another protocol are refused; None for this one."""
    if protocol == PROTOCOL:
        return None
    return f"the caller speaks protocol {protocol} and this replica {PROTOCOL}: an update is under way"
