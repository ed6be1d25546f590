"""Every error of the HTTP interface as OpenAI's error body."""

import logging
import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path

from trimtab.decoders.invalid import VIOLATION, nearest
from trimtab.decoders.library.errors import LibraryError
from trimtab.engine.errors import (
    Draining,
    GuideError,
    GuideUnavailable,
    InvalidRequest,
    Overloaded,
    RemoteError,
    RemoteUnavailable,
)

log = logging.getLogger("trimtab.server")

NO_RETRY = {"x-should-retry": "false"}

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "server_error",
    503: "service_unavailable_error",
}


class ClientGone(Exception):
    """The client closed the connection before its answer was complete."""


class ApiError(HTTPException):
    """An answer other than 200: HTTP status, message, and OpenAI's `param` and `code`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.param = param
        self.code = code

    @property
    def body(self) -> dict[str, Any]:
        """`{"error": {message, type, param, code}}`"""
        kind = _TYPES.get(self.status_code, "invalid_request_error")
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The error as a whole HTTP response."""
        return JSONResponse(self.body, self.status_code, dict(self.headers or {}))


def api_error(error: Exception) -> ApiError:
    """What the client is told about `error`; anything unforeseen is logged here and told as a bare 500."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InvalidRequest):
        status = 403 if error.code == VIOLATION else 400
        return ApiError(status, str(error), param=error.param, code=error.code)
    if isinstance(error, RemoteUnavailable):
        log.warning("%s", error)  # with the address of the server, which is no caller's business
        message = f"the server of {_whose(error)} cannot be reached or is too busy: try again later"
        return ApiError(503, message, code="remote_unavailable", headers=_later(error))
    if isinstance(error, RemoteError):
        log.error("%s", error)
        message = f"the server of {_whose(error)} gave no answer that can be used; the log here says why"
        return ApiError(502, message, code="remote_error", headers=NO_RETRY if error.refused else None)
    if isinstance(error, Overloaded):
        return ApiError(503, str(error), code=_overload(error), headers=_later(error))
    if isinstance(error, LibraryError):
        log.error("%s", error)
        message = "norms and profiles cannot be reached; the server's log says why under this x-request-id"
        return ApiError(503, message, code="library_unavailable", headers={"retry-after": "5"})
    if isinstance(error, GuideError):
        log.error("%s", error)
        return ApiError(500, f"guide {error.guide!r} failed", code="guide_error", headers=NO_RETRY)
    log.error("internal error", exc_info=error)
    message = "internal error; the server's log has the details under this x-request-id"
    return ApiError(500, message, code="internal_error", headers=NO_RETRY)


def _later(error: Overloaded) -> dict[str, str]:
    """When to come again."""
    return {"retry-after": str(max(1, math.ceil(error.retry_after)))}


def _whose(error: RemoteUnavailable | RemoteError) -> str:
    """What a server runs, as callers know it."""
    return "the base model" if error.guide is None else f"guide {error.guide!r}"


def _overload(error: Overloaded) -> str:
    """Why a request has to come again."""
    match error:
        case Draining():
            return "draining"
        case GuideUnavailable():
            return "guide_unavailable"
    return "overloaded"


def install(app: FastAPI) -> None:
    """Answer every exception that leaves a route, and every path that has none, with an error body."""

    async def known(_: Request, error: Exception) -> JSONResponse:
        return api_error(error).response()

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return _from_http(app, request, error).response()

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return _from_validation(error).response()

    async def gone(_: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nginx's code; nobody reads it

    app.add_exception_handler(ClientGone, gone)
    for kind in (InvalidRequest, Overloaded, RemoteError, GuideError, LibraryError):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)


def _from_http(app: FastAPI, request: Request, error: HTTPException) -> ApiError:
    if isinstance(error, ApiError):
        return error
    path = request.url.path
    if error.status_code == 404:
        close = nearest(path, [str(each.path) for each in iter_route_contexts(app.routes)])
        advice = f"; did you mean {close}?" if close else ""
        return ApiError(404, f"nothing is served at {path}{advice}", code="not_found")
    if error.status_code == 405:
        served = [each for each in iter_route_contexts(app.routes) if each.methods]
        alike = [each for each in served if compile_path(str(each.path))[0].match(path)]
        literal = [each for each in alike if each.path == path]  # rather than one with a parameter in its place
        methods = {method for each in literal or alike for method in each.methods or ()}
        allowed = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
        message = f"{path} does not take {request.method}; use {allowed}"
        return ApiError(405, message, code="method_not_allowed", headers={"allow": allowed})
    return ApiError(error.status_code, str(error.detail), headers=error.headers)


_CODES = {"missing": "missing_required_parameter", "unknown_parameter": "unknown_parameter"}


def _from_validation(error: RequestValidationError) -> ApiError:
    first = error.errors()[0]
    context = first.get("ctx", {})
    param = param_name([*first["loc"][1:], *([context["param"]] if "param" in context else [])])
    kind, told = first["type"], first["msg"].removeprefix("Value error, ")
    if kind == "missing":
        message = f"{param} is required" if param else "a JSON object is required as the body"
    elif "param" in context:
        message = told
    else:
        message = f"{param}: {told[0].lower()}{told[1:]}" if param else told
    code = kind if kind.endswith("_parameter") else _CODES.get(kind, "invalid_value")
    return ApiError(400, message, param=param, code=code)


def param_name(location: list[int | str] | tuple[int | str, ...]) -> str | None:
    """`("messages", 0, "content")` as `messages[0].content`; tags of unions, in parentheses, are left out."""
    name = ""
    for part in location:
        if isinstance(part, int):
            name += f"[{part}]"
        elif not part.startswith("("):
            name += f".{part}"
    return name.lstrip(".") or None
