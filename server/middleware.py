"""The one ASGI layer around every request: its id, its place among the open ones, its line in the log, a bare 500."""

import logging
import re
import time
import uuid
from typing import TYPE_CHECKING

from opentelemetry import trace
from pydantic_core import from_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab.server.errors import ApiError, api_error
from trimtab.server.logs import PROBES, RequestRecord, current

if TYPE_CHECKING:
    from trimtab.server.service import Service

log = logging.getLogger("trimtab.server")

_SAFE_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class RequestEnvelope:
    """Echo or create `x-request-id` on every response, answer an unhandled exception with a bare 500, log the end.

    More than `server.max_connections` requests at a time get a 503, probes excepted.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        service: Service = scope["app"].state.service
        sent = (value for name, value in scope["headers"] if name == b"x-request-id")
        request_id = next(filter(_SAFE_ID.fullmatch, sent), None) or uuid.uuid4().hex.encode()
        record = RequestRecord(request_id.decode(), scope["method"], time.perf_counter())
        if service.settings.telemetry:
            record.span = trace.get_current_span()
        scope["trimtab.record"] = record
        token = current.set(record)
        self._open += 1

        async def tagged(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            elif record.status is not None and record.status >= 400 and record.error is None:
                record.error = _code(message.get("body", b""))
            await send(message)

        try:
            if self._open > service.settings.max_connections and scope["path"] not in PROBES:
                await _crowded(service.settings.max_connections).response()(scope, receive, tagged)
            else:
                await self.app(scope, receive, tagged)
        except Exception as error:
            log.error("request %s failed", record.request_id)
            if record.status is not None:
                raise
            await api_error(error).response()(scope, receive, tagged)
        finally:
            self._open -= 1
            current.reset(token)
            record.route = getattr(scope.get("route"), "path", None)
            caller = scope.get("state", {}).get("caller")
            record.caller = None if caller is None else caller.name
            service.metrics.ended(record.route, record.status or 499, record.model, record.error)
            record.write()


def _crowded(limit: int) -> ApiError:
    message = f"{limit} requests are open already (server.max_connections); try again later"
    return ApiError(503, message, code="overloaded", headers={"retry-after": "1", "connection": "close"})


def _code(body: bytes) -> str | None:
    """The code in an error body; None where there is none."""
    try:
        error = from_json(body)["error"]
        return None if error["code"] is None else str(error["code"])
    except (ValueError, KeyError, TypeError):
        return None
