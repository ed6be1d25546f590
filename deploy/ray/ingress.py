"""The ingress: takes HTTP requests from Serve's proxies, finds the replica that answers, and passes the answer on."""

import asyncio
import logging
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Receive, Scope, Send

from trimtab.cluster.forward import Forwarder, Lost, lost_error
from trimtab.cluster.prefix import SESSION, prefix_key
from trimtab.cluster.protocol import PROTOCOL, Call, changes, route
from trimtab.cluster.scrape import scrape
from trimtab.cluster.settings import Patience
from trimtab.server.chunks import DONE, event
from trimtab.server.errors import ApiError, ClientGone, api_error

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

log = logging.getLogger("trimtab.server")

REQUEST_ID = b"x-request-id"
"""header that Serve's proxy adds to requests without, and to every answer"""
PER_PROCESS = ("/admin/",)
"""routes that show or change one process: one replica would differ from the others"""
SHARED = ("/v1/norms", "/v1/profiles")
"""routes that change the library, which is one where the settings name its file"""


class Ingress:
    """Forwards whole requests. It holds no model, and knows of the API only what keeps replicas alike."""

    def __init__(
        self,
        replicas: "DeploymentHandle[Any]",
        patience: dict[str, Any],
        prefix: int,
        most_bytes: int,
        body_timeout: float,
        *,
        shared: bool,
    ) -> None:
        """`prefix`: characters of a prompt that decide where it goes; `shared`: all replicas have the same library."""
        self._forwarder = Forwarder(replicas, Patience.model_validate(patience))
        self._prefix = prefix
        self._most_bytes = most_bytes
        self._body_timeout = body_timeout
        self._shared = shared

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Serve's hook for the application behind the HTTP port; uvicorn takes bound methods for ASGI 2."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await _lifespan(receive, send)
            elif scope["type"] == "http":
                await self._http(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1000})

        return app

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            call = await self._call(scope, receive)
            await _while_there(receive, self._answer(call, scope, receive, send))
        except ClientGone:
            return
        except Exception as error:  # an answer that has not begun
            await api_error(error).response()(scope, receive, send)

    async def _call(self, scope: Scope, receive: Receive) -> Call:
        """The request with its body; raises ApiError for one that may not be forwarded."""
        path, method = scope["path"], scope["method"]
        self._check_alike(method, path)
        headers = [(bytes(k), bytes(v)) for k, v in scope["headers"]]
        session = next((v for k, v in headers if k == SESSION), b"").decode("latin-1")
        body = await self._body(receive)
        return {
            "protocol": PROTOCOL,
            "route": route(prefix_key(body, session, self._prefix)),
            "method": method,
            "path": path,
            "query": scope["query_string"],
            "headers": headers,
            "body": body,
        }

    def _check_alike(self, method: str, path: str) -> None:
        if path.startswith(PER_PROCESS):
            message = f"{path} is about one replica of several: change the configuration, and deploy it"
            raise ApiError(501, message, code="not_replicated")
        if changes(method, path) and path.startswith(SHARED) and not self._shared:
            message = f"{path} would change one replica of several: name a file for all of them in server.library"
            raise ApiError(501, message, code="not_replicated")

    async def _body(self, receive: Receive) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(self._body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    body += message.get("body", b"")
                    if len(body) > self._most_bytes:
                        told = f"the body may have {self._most_bytes} bytes at most (server.max_body_bytes)"
                        raise ApiError(413, told, code="body_too_large")
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            told = f"the body took longer than {self._body_timeout:g} seconds (server.body_timeout)"
            raise ApiError(408, told, code="request_timeout") from None

    async def _answer(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        if call["path"] == "/metrics" and call["method"] == "GET":
            response = await scrape(self._forwarder, call)
            response.raw_headers = _without_id(response.raw_headers)
            await response(scope, receive, send)
            return
        begun = False
        async with aclosing(self._forwarder.answer(call)) as replies:
            try:
                async for reply in replies:
                    if reply[0] == "start":
                        begun = True
                        headers = _without_id(reply[2])
                        await send({"type": "http.response.start", "status": reply[1], "headers": headers})
                    else:
                        await send({"type": "http.response.body", "body": reply[1], "more_body": True})
            except (Lost, ApiError) as error:
                if not begun:
                    raise
                log.warning("a stream has lost its replica")
                told = error if isinstance(error, ApiError) else lost_error()
                await send({"type": "http.response.body", "body": event(told.body) + DONE, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _without_id(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [pair for pair in headers if pair[0] != REQUEST_ID]


async def _while_there(receive: Receive, answering: Any) -> None:
    """Run until it is done; it is cancelled, and ClientGone raised, when the client has closed the connection."""
    task, gone = asyncio.ensure_future(answering), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        task.result()
    finally:
        for each in (task, gone):
            each.cancel()
            with suppress(BaseException):
                await each


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _lifespan(receive: Receive, send: Send) -> None:
    for phase in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{phase}.complete"})
