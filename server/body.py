"""Reading a JSON body: media type, size, time, encoding and syntax are checked before any schema is."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from trimtab.server.errors import ApiError
from trimtab.server.settings import ServerSettings


class JsonRequest(Request):
    """A request whose body is strict JSON: no NaN, no lone surrogate, no invalid UTF-8, bounded depth."""

    async def body(self) -> bytes:
        """The whole body; 413 as soon as it exceeds the limit, without reading the rest, and 408 if it is slow."""
        if not hasattr(self, "_body"):
            settings: ServerSettings = self.app.state.service.settings
            try:
                async with asyncio.timeout(settings.body_timeout):
                    self._body = await self._read(settings.max_body_bytes)
            except TimeoutError:
                raise _too_slow(settings.body_timeout) from None
            except ClientDisconnect:
                self.scope["trimtab.record"].gone = True
                raise
        return self._body

    async def _read(self, limit: int) -> bytes:
        if int(self.headers.get("content-length", 0)) > limit:
            raise _too_large(limit)
        chunks, size = [], 0
        async for chunk in self.stream():
            chunks.append(chunk)
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
        return b"".join(chunks)

    async def json(self) -> Any:
        """The parsed body; 400 with the position of the first mistake."""
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None


class JsonRoute(APIRoute):
    """A route that reads its body as `JsonRequest`; methods without a body are unaffected."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            if self.body_field is not None:
                media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
                if media != "application/json":
                    raise ApiError(
                        415, "send the body as content-type: application/json", code="unsupported_media_type"
                    )
            return await handler(JsonRequest(request.scope, request.receive))

        return strict


def _too_large(limit: int) -> ApiError:
    message = f"the body is larger than {limit} bytes (server.max_body_bytes)"
    return ApiError(413, message, code="body_too_large", headers={"connection": "close"})


def _too_slow(seconds: float) -> ApiError:
    message = f"the body took longer than {seconds:g} s (server.body_timeout)"
    return ApiError(408, message, code="body_timeout", headers={"connection": "close"})
