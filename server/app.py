"""The FastAPI application around one model; nothing global."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI

from trimtab.server import chat, completions, errors, listings, operations, scoring
from trimtab.server.middleware import RequestEnvelope
from trimtab.server.service import Service
from trimtab.server.settings import Settings
from trimtab.server.version import installed_version

if TYPE_CHECKING:
    from trimtab.llm import LLM


def create_app(llm: "LLM", settings: Settings) -> FastAPI:
    """An app that serves `llm`; `app.state.service` holds what a runner needs for draining.

    The caller owns `llm`: ending the app neither drains nor closes it.
    """
    service = Service(llm, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.bridge.attach()
        yield

    app = FastAPI(title="trimtab", version=installed_version(), lifespan=lifespan, redirect_slashes=False)
    app.state.service = service
    app.state.max_body_bytes = settings.server.max_body_bytes
    app.add_middleware(RequestEnvelope)
    errors.install(app)
    for part in (chat, completions, scoring, listings, operations):
        app.include_router(part.routes(service))
    return app
