"""The playground: the page at `/` and its files under /static/, for everybody who reaches the port."""

import hashlib
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from trimtab.server.errors import ApiError
from trimtab.server.logs import FILES, PAGE
from trimtab.server.service import Service

FOLDER = Path(__file__).resolve().parent / "static"
LIBRARIES = ("preact.js", "eventsource-parser.js", "uplot.js", "uplot.css", "d3-hierarchy.js")
"""what `make page` fetches into lib/; the page needs them all"""
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
"""by the end of the name, since what an operating system knows of them differs; nothing else is served"""
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
"""`no-cache`: a browser keeps the files and asks each time whether they are still the same"""


def routes(service: Service) -> APIRouter:
    """The page and its files; nothing where `server.playground` is off."""
    router = APIRouter(include_in_schema=False)
    if not service.settings.playground:
        return router

    @router.get(PAGE)
    async def page(request: Request) -> Response:
        """The playground, or how to build it: 200 all the same, since nothing failed and the API is served."""
        return await _answer(request, "index.html" if is_built() else "unbuilt.html")

    @router.get(FILES)
    async def file(request: Request, path: str) -> Response:
        """A file of the playground."""
        return await _answer(request, path)

    return router


def is_built() -> bool:
    """Whether the page has all its libraries."""
    return all((FOLDER / "lib" / name).is_file() for name in LIBRARIES)


async def _answer(request: Request, path: str) -> Response:
    """The file at `path` of the folder, or that what the browser has of it is still right; raises ApiError."""
    body = await run_in_threadpool(_read, path)
    if body is None:
        raise ApiError(404, f"the playground has no file {path}", code="not_found")
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {**HEADERS, "etag": etag}
    known = (tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(","))
    if etag in known:
        return Response(status_code=304, headers=headers)
    return Response(body, headers={**headers, "content-type": TYPES[Path(path).suffix]})


def _read(path: str) -> bytes | None:
    """What the file holds; None if there is none, or if the path or a link leads out of the folder."""
    try:
        file = (FOLDER / path).resolve(strict=True)
        served = file.is_relative_to(FOLDER) and Path(path).suffix in TYPES
        return file.read_bytes() if served else None
    except (OSError, ValueError):  # of no file, a folder, or a name that no file can have
        return None
