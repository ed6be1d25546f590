"""The FastAPI application around its models; nothing global."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI

from trimtab.server import (
    admin,
    chat,
    completions,
    errors,
    listings,
    norms,
    openapi,
    operations,
    page,
    profiles,
    scoring,
    telemetry,
)
from trimtab.server.head import HeadAsGet
from trimtab.server.middleware import RequestEnvelope
from trimtab.server.service import Service
from trimtab.server.settings import Settings
from trimtab.server.version import installed_version

if TYPE_CHECKING:
    from trimtab.llm import LLM


def create_app(llm: "LLM", settings: Settings, source: Callable[[], Settings] | None = None) -> FastAPI:
    """An app that serves `llm`; `app.state.service` holds what a runner needs for draining.

    `source` reads the settings anew for a reload. Raises InvalidSettings for presets, policies and keys that do not
    fit. The caller owns `llm`: ending the app neither drains nor closes it; `service.close()` closes every model. Norms
    and profiles are those of `llm.library`, which the caller closes; without it their routes answer 503.
    """
    service = Service(llm, settings, source)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.bridge.attach()
        yield

    app = FastAPI(
        title="trimtab",
        version=installed_version(),
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        telemetry=telemetry.configuration(settings.server.telemetry),
    )
    app.state.service = service
    app.add_middleware(RequestEnvelope)
    app.add_middleware(HeadAsGet)
    errors.install(app)
    for part in (chat, completions, scoring, listings, profiles, admin, norms, operations, page):
        app.include_router(part.routes(service))
    openapi.install(app, settings.server)
    return app
