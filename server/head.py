"""HEAD: answered as GET; uvicorn sends the head alone."""

from starlette.types import ASGIApp, Receive, Scope, Send


class HeadAsGet:
    """Lets every GET route answer HEAD, as probes of load balancers ask, without listing it twice in /openapi.json."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self.app(scope, receive, send)
