"""What the operator may change while the server runs, behind a key of its own: models, guides, and a reload."""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from trimtab.engine.errors import GuideInUse, InvalidRequest, ModelLoadError
from trimtab.engine.guides.config import GuideConfig, RemoteRewardConfig
from trimtab.engine.remote.settings import RemoteSettings
from trimtab.engine.settings import EngineSettings
from trimtab.engine.sources import short_name
from trimtab.server.callers import AdminRoute
from trimtab.server.errors import ApiError, param_name
from trimtab.server.guides import describe
from trimtab.server.listings import model_card
from trimtab.server.nearest import hint
from trimtab.server.openapi import refusals
from trimtab.server.schema.admin import LoadGuide, LoadModel, Reloaded, State, Unloaded
from trimtab.server.schema.responses import GuideCard, ModelCard
from trimtab.server.service import Service
from trimtab.server.settings import InvalidSettings

if TYPE_CHECKING:
    from trimtab.llm import LLM


def routes(service: Service) -> APIRouter:
    """The endpoints under /admin; all of them answer 401 without the key, and without `admin_key` nobody has it."""
    router = APIRouter(prefix="/admin", route_class=AdminRoute)
    loading = asyncio.Lock()  # one at a time: each takes memory that the next one has to find free

    @router.get("/state")
    async def state() -> State:
        """What is served, and what each caller uses now."""
        return State(models=_models(service), guides=_guides(service), callers=service.quotas.describe())

    @router.post("/reload")
    async def reload() -> Reloaded:
        """Read presets, policies, keys and the profile of auto anew, all or nothing, as SIGHUP does."""
        async with loading:
            try:
                waiting = await run_in_threadpool(service.reload)
            except InvalidSettings as error:
                raise ApiError(400, f"not reloaded, the old rules stay: {error}", code="invalid_settings") from None
        return Reloaded(needs_restart=waiting)

    @router.post("/models", status_code=201, responses=refusals(409))
    async def load_model(body: LoadModel) -> ModelCard:
        """Load another base model beside those that are served."""
        settings = _engine_settings(body.engine)
        _refuse_keys("engine", settings.guides, settings.remote)
        async with loading:
            name = short_name(settings.model)
            if name in service.llms:
                raise ApiError(409, f"the model {name!r} is served already", param="engine.model", code="exists")
            try:
                llm = await run_in_threadpool(partial(_load, service, settings))
            except ModelLoadError as error:
                raise InvalidRequest(str(error), param="engine.model") from None
            try:
                await run_in_threadpool(service.add, llm)
            except InvalidSettings as error:
                await run_in_threadpool(llm.close)
                raise ApiError(409, f"the rules do not fit this model: {error}", code="invalid_settings") from None
        return model_card(service, service.target(name))

    @router.delete("/models/{model:path}", responses=refusals(404, 409))
    async def unload_model(model: str) -> Unloaded:
        """Take a model out of service: new requests get a 404 at once, running ones finish first."""
        async with loading:
            llm = service.remove(model)
            llm.drain()
            while not llm.idle:
                await asyncio.sleep(0.05)
            await run_in_threadpool(llm.close)
        return Unloaded(name=model)

    @router.post("/guides", status_code=201, responses=refusals(404, 409))
    async def load_guide(body: LoadGuide) -> GuideCard:
        """Load a guide beside those of a model; its requests wait meanwhile."""
        llm = service.target(body.model).llm
        async with loading:
            if body.name in llm.guides:
                raise ApiError(409, f"the guide {body.name!r} is loaded already", param="name", code="exists")
            _refuse_keys("config", {body.name: body.config})
            try:
                await asyncio.wrap_future(llm.load_guide(body.name, body.config))
            except ModelLoadError as error:
                raise InvalidRequest(str(error), param="config") from None
        return next(card for card in describe(llm) if card.name == body.name)

    @router.delete("/guides/{name}", responses=refusals(404, 409))
    async def unload_guide(name: str, model: str | None = None) -> Unloaded:
        """Take a guide out of service; a 409 while requests use it."""
        llm = service.target(model).llm
        if name not in llm.guides:
            message = f"the guide {name!r} does not exist; {hint(name, llm.guides)}"
            raise ApiError(404, message, param="name", code="model_not_found")
        async with loading:
            if users := service.rules.users(name, llm):
                message = f"the guide {name!r} is needed by {', '.join(users)}: change that and reload first"
                raise ApiError(409, message, code="in_use")
            try:
                await asyncio.wrap_future(llm.unload_guide(name))
            except GuideInUse as error:
                raise ApiError(409, str(error), code="in_use", headers={"retry-after": "1"}) from None
        return Unloaded(name=name)

    return router


def _load(service: Service, settings: EngineSettings) -> "LLM":
    from trimtab.llm import LLM

    return LLM(settings=settings, library=service.library, attributes=service.attributes)


def _engine_settings(given: dict[str, Any]) -> EngineSettings:
    try:
        return EngineSettings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        param = param_name(("engine", *first["loc"]))
        raise InvalidRequest(f"{param}: {first['msg']}", param=param, code="invalid_value") from None


def _refuse_keys(param: str, guides: Mapping[str, GuideConfig], remote: RemoteSettings | None = None) -> None:
    """Raise InvalidRequest where a variable of this process's environment would be sent to an address."""
    far = [each for each in guides.values() if isinstance(each, RemoteRewardConfig)]
    if any(each is not None and each.api_key_env is not None for each in (remote, *far)):
        raise InvalidRequest(
            "api_key_env sends a variable of the server's environment elsewhere: name it in the configuration file",
            param=param,
        )


def _models(service: Service) -> list[ModelCard]:
    return [model_card(service, target) for target in service.targets.values()]


def _guides(service: Service) -> dict[str, list[GuideCard]]:
    return {name: describe(llm) for name, llm in service.llms.items()}
