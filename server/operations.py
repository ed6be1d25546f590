"""What operators ask: alive, accepting, metrics, version."""

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, PlainTextResponse, Response

from trimtab.server.errors import ApiError
from trimtab.server.schema.responses import Status, Version
from trimtab.server.service import Service
from trimtab.server.version import installed_version


def routes(service: Service) -> APIRouter:
    """Health, readiness, metrics and version."""
    router = APIRouter()

    @router.get("/health", response_model=Status)
    async def health() -> JSONResponse:
        """200 while the engine lives."""
        if service.failed is not None:
            raise ApiError(503, f"the engine has stopped: {type(service.failed).__name__}", code="engine_failed")
        return JSONResponse({"status": "ok"})

    @router.get("/ready", response_model=Status)
    async def ready() -> JSONResponse:
        """200 while new requests are accepted."""
        await health()
        if service.draining:
            raise ApiError(503, "the server is shutting down", code="draining", headers={"retry-after": "5"})
        if not service.llms:
            raise ApiError(503, "no model is loaded", code="no_model", headers={"retry-after": "5"})
        return JSONResponse({"status": "ready"})

    @router.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> Response:
        """Prometheus text format."""
        return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/version", response_model=Version)
    async def version() -> dict[str, str]:
        """Version of the server."""
        return {"version": installed_version()}

    return router
