"""The one ASGI layer around every request: its id, its count, and a sanitised 500."""

import logging
import re
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab.server.errors import api_error

log = logging.getLogger("trimtab.server")

_SAFE_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class RequestEnvelope:
    """Echo or create `x-request-id` on every response and answer an unhandled exception with a bare 500."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sent = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = sent if _SAFE_ID.fullmatch(sent) else uuid.uuid4().hex.encode()
        started = False

        async def tagged(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        try:
            await self.app(scope, receive, tagged)
        except Exception as error:
            log.error("request %s failed: %s", request_id.decode(), scope["path"])
            if started:
                raise
            await api_error(error).response()(scope, receive, tagged)
