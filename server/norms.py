"""/admin/norms: the operator's rules, which may change while requests are served."""

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from trimtab.decoders.library import Norms, Retrieved, StoredNorm
from trimtab.decoders.library.errors import Conflict, Exists, NotFound
from trimtab.engine.errors import InvalidRequest
from trimtab.server.callers import AdminRoute
from trimtab.server.errors import ApiError
from trimtab.server.etags import TAGGED, IfMatch, changed, etag, wanted
from trimtab.server.jsonl import MEDIA, NAMES, check_id, read_norms, written
from trimtab.server.openapi import refusals
from trimtab.server.schema.norms import (
    EmbeddedNorms,
    FoundNorm,
    FoundNorms,
    Imported,
    NewNorm,
    NormChange,
    NormEmbedding,
    NormList,
    NormQuery,
    NormSearch,
)
from trimtab.server.service import Service

T = TypeVar("T")

AT_A_TIME = 200
"""lines of an export that are sent in one piece"""
_LINES: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "a norm on each line; one with the id of another that is there takes its place",
        "content": {MEDIA: {"schema": {"type": "string"}}},
    }
}
_EXPORTED: dict[int | str, dict[str, Any]] = {200: {"content": {MEDIA: {"schema": {"type": "string"}}}}}


def routes(service: Service) -> APIRouter:
    """The endpoints under /admin/norms."""
    router = APIRouter(prefix="/admin/norms", route_class=AdminRoute)
    embedding = asyncio.Lock()  # one at a time: two would make the same vectors

    @router.get("")
    async def list_norms(query: Annotated[NormQuery, Query()]) -> NormList:
        """Norms in the order of their ids, a page at a time."""
        norms = service.kept.norms
        asked = query.model_dump(exclude={"limit"})
        found = await run_in_threadpool(lambda: norms.list(limit=query.limit + 1, **asked))
        page = found[: query.limit]
        return NormList(data=page, has_more=len(found) > query.limit, last_id=page[-1].id if page else None)

    @router.post("", status_code=201, responses={201: TAGGED, **refusals(409)})
    async def create_norm(body: NewNorm, response: Response) -> StoredNorm:
        """Add a norm; it is in force from the next request on."""
        check_id(body.id)
        norms = service.written.norms
        try:
            made = await run_in_threadpool(norms.create, body)
        except Exists:
            message = f"there is a norm {body.id!r} already: PUT puts another one in its place"
            raise ApiError(409, message, param="id", code="exists") from None
        return _told(made, response)

    @router.post("/import", openapi_extra=_LINES)
    async def import_norms(request: Request) -> Imported:
        """Add and replace norms, all or nothing; an error names the line."""
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media not in NAMES:
            raise ApiError(415, f"send the body as content-type: {MEDIA}", code="unsupported_media_type")
        body = await request.body()
        norms = service.written.norms
        loaded = await run_in_threadpool(lambda: norms.load(read_norms(body.splitlines())))
        return Imported(**loaded._asdict())

    @router.get("/export", response_class=StreamingResponse, responses=_EXPORTED)
    async def export_norms() -> StreamingResponse:
        """Every norm as a line of JSON, in the order of their ids."""
        return StreamingResponse(_pieces(written(service.kept.norms.dump())), media_type=MEDIA)

    @router.post("/embed", responses=refusals(404))
    async def embed_norms(body: NormEmbedding) -> EmbeddedNorms:
        """Make the vectors of all norms that have none by this guide."""
        norms, llm = service.written.norms, service.target(body.model).llm
        async with embedding:
            done = await run_in_threadpool(llm.embed_norms, body.embedding, norms, "embedding")
        return EmbeddedNorms(embedded=done)

    @router.post("/search", responses=refusals(404))
    async def search_norms(body: NormSearch) -> FoundNorms:
        """What a request with this query would have before it now, the best first."""
        norms = service.kept.norms

        def find() -> Retrieved:
            asked = body.asked()
            if body.embedding is not None and body.query:
                llm = service.target(body.model).llm
                vector, model = llm.embed_query(body.embedding, body.query, "embedding")
                asked = asked._replace(embedding=vector, model=model)
            return norms.retrieve(asked)

        told = await run_in_threadpool(find)
        found = [FoundNorm(norm=each.norm, score=each.score) for each in told.found]
        return FoundNorms(data=found, missing=list(told.missing))

    @router.get("/{id}", responses={200: TAGGED, **refusals(404)})
    async def read_norm(id: str, response: Response) -> StoredNorm:
        """One norm."""
        norms = service.kept.norms
        return _told(await run_in_threadpool(lambda: _found(id, lambda: norms.get(id))), response)

    @router.put("/{id}", responses={200: TAGGED, **refusals(404, 412)})
    async def replace_norm(id: str, body: NewNorm, response: Response, if_match: IfMatch = None) -> StoredNorm:
        """Another norm in the place of this one."""
        if body.id != id:
            raise InvalidRequest(f"the path says {id!r}: the norm's id must be the same", param="id")
        norms = service.written.norms
        replace = partial(norms.replace, body)
        return _told(await run_in_threadpool(_changed, norms, id, if_match, replace), response)

    @router.patch("/{id}", responses={200: TAGGED, **refusals(404, 412)})
    async def change_norm(id: str, body: NormChange, response: Response, if_match: IfMatch = None) -> StoredNorm:
        """Some fields of a norm; null takes a scope or a date away."""
        norms = service.written.norms
        patch = partial(norms.patch, id, body)
        return _told(await run_in_threadpool(_changed, norms, id, if_match, patch), response)

    @router.delete("/{id}", status_code=204, responses=refusals(404, 412))
    async def delete_norm(id: str, if_match: IfMatch = None) -> None:
        """Take a norm away."""
        norms = service.written.norms
        await run_in_threadpool(_changed, norms, id, if_match, partial(norms.delete, id))

    return router


def _changed(norms: Norms, id_: str, if_match: str | None, change: Callable[[int | None], T]) -> T:
    """What `change` makes of the version that is asked for; raises a 404, and a 412 where it is another one."""

    def run() -> T:
        version = None if if_match is None else wanted(if_match, norms.get(id_).version)
        try:
            return change(version)
        except Conflict:
            raise changed(norms.get(id_).version) from None

    return _found(id_, run)


def _found(id_: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except NotFound:
        raise ApiError(404, f"there is no norm {id_[:99]!r}", param="id", code="norm_not_found") from None


def _told(norm: StoredNorm, response: Response) -> StoredNorm:
    """The answer of a route about one norm, with its `etag`."""
    response.headers["etag"] = etag(norm.version)
    return norm


def _pieces(lines: Iterator[str]) -> Iterator[str]:
    """Lines in larger pieces."""
    while piece := "".join(islice(lines, AT_A_TIME)):
        yield piece
