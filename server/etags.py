"""Versions over HTTP: what `etag` says, and what `if-match` asks for."""

from typing import Annotated

from fastapi import Header

from trimtab.server.errors import ApiError

IfMatch = Annotated[
    str | None,
    Header(alias="if-match", description='change this version only, as its `etag` has it: "3"; another one is a 412'),
]
TAGGED = {
    "headers": {"etag": {"description": "the version, in quotes", "required": True, "schema": {"type": "string"}}}
}
"""what a route with an `etag` tells of its answer"""


def etag(version: int) -> str:
    """The tag of a version."""
    return f'"{version}"'


def wanted(if_match: str | None, current: int) -> int | None:
    """The version that a change is to be made to, None for any; raises a 412 unless it is the `current` one."""
    if if_match is None or if_match.strip() == "*":
        return None
    if etag(current) not in (each.strip() for each in if_match.split(",")):
        raise changed(current)
    return current


def changed(current: int) -> ApiError:
    """The 412 for a change to a version that is no more."""
    message = f"it has changed and is at version {current}: read it again, and change that"
    return ApiError(412, message, param="if-match", code="version_conflict", headers={"etag": etag(current)})
