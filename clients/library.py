"""Requests about norms and profiles, and how their responses are read: what both clients share."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import httpx2

from trimtab.clients.calls import Call, data_of

JSONL = "application/jsonl"
Norm = Mapping[str, Any]
"""`id`, `text` and perhaps `tags`, `locale`, `tenant`, `topic`, `valid_from`, `valid_until`"""


def norms(
    *,
    q: str | None,
    tags: Sequence[str],
    tenant: str | None,
    locale: str | None,
    topic: str | None,
    after: str | None,
    limit: int,
) -> Call[list[dict[str, Any]]]:
    """GET /admin/norms."""
    given = {"q": q, "tenant": tenant, "locale": locale, "topic": topic, "after": after, "limit": limit}
    asked = [(name, value) for name, value in given.items() if value is not None] + [("tags", tag) for tag in tags]
    return Call("GET", f"/admin/norms?{urlencode(asked)}", data_of)


def norm(id_: str) -> Call[dict[str, Any]]:
    """GET /admin/norms/{id}."""
    return Call("GET", _norm(id_), _object)


def create_norm(given: Norm) -> Call[dict[str, Any]]:
    """POST /admin/norms."""
    return Call("POST", "/admin/norms", _object, given, accepted=(201,))


def change_norm(id_: str, changes: Norm, version: int | None) -> Call[dict[str, Any]]:
    """PATCH /admin/norms/{id}."""
    return Call("PATCH", _norm(id_), _object, changes, own_headers=_only(version))


def delete_norm(id_: str, version: int | None) -> Call[None]:
    """DELETE /admin/norms/{id}."""
    return Call("DELETE", _norm(id_), _nothing, own_headers=_only(version), accepted=(204,))


def import_norms(given: Iterable[Norm]) -> Call[dict[str, int]]:
    """POST /admin/norms/import."""
    lines = "".join(json.dumps(dict(each), ensure_ascii=False) + "\n" for each in given)
    return Call(
        "POST",
        "/admin/norms/import",
        lambda reply: dict(reply.json()),
        content=lines.encode(),
        own_headers={"content-type": JSONL},
    )


def export_norms() -> Call[list[dict[str, Any]]]:
    """GET /admin/norms/export."""
    return Call("GET", "/admin/norms/export", _lines)


def embed_norms(embedding: str, model: str | None) -> Call[int]:
    """POST /admin/norms/embed."""
    return Call(
        "POST",
        "/admin/norms/embed",
        lambda reply: int(reply.json()["embedded"]),
        {"embedding": embedding, "model": model},
    )


def profiles() -> Call[list[dict[str, Any]]]:
    """GET /v1/profiles."""
    return Call("GET", "/v1/profiles", data_of)


def profile(id_: str) -> Call[dict[str, Any]]:
    """GET /v1/profiles/{id}."""
    return Call("GET", _profile(id_), _object)


def store_profile(id_: str, preference: Mapping[str, Any]) -> Call[dict[str, Any]]:
    """PUT /v1/profiles/{id}."""
    return Call("PUT", _profile(id_), _object, preference)


def erase_profile(id_: str) -> Call[None]:
    """DELETE /v1/profiles/{id}."""
    return Call("DELETE", _profile(id_), _nothing, accepted=(204,))


def _norm(id_: str) -> str:
    return f"/admin/norms/{quote(id_, safe='')}"


def _profile(id_: str) -> str:
    return f"/v1/profiles/{quote(id_, safe='')}"


def _only(version: int | None) -> dict[str, str]:
    """The header for a change to one version alone."""
    return {} if version is None else {"if-match": f'"{version}"'}


def _object(response: httpx2.Response) -> dict[str, Any]:
    return dict(response.json())


def _lines(response: httpx2.Response) -> list[dict[str, Any]]:
    """Objects on lines of their own; texts may hold Unicode's other line ends."""
    return [json.loads(line) for line in response.content.split(b"\n") if line]


def _nothing(_: httpx2.Response) -> None:
    """What a 204 says."""
