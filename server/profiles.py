"""/v1/profiles: preferences that callers keep under ids of their users; everybody sees their own alone."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.concurrency import run_in_threadpool

from trimtab.decoders.library.errors import NotFound
from trimtab.decoders.preference import Preference
from trimtab.engine.errors import InvalidRequest
from trimtab.server.callers import Caller, GuardedRoute
from trimtab.server.errors import ApiError
from trimtab.server.openapi import refusals
from trimtab.server.schema.profiles import NewProfile, Profile, ProfileList
from trimtab.server.service import Service

Id = Annotated[str, Path(min_length=1, max_length=256, description="the caller's own name for it, as of a user")]


def routes(service: Service) -> APIRouter:
    """The endpoints under /v1/profiles."""
    router = APIRouter(prefix="/v1/profiles", route_class=GuardedRoute)

    @router.get("")
    async def list_profiles(request: Request) -> ProfileList:
        """The caller's profiles."""
        caller: Caller = request.state.caller
        with service.quotas.held(caller):
            kept = await run_in_threadpool(service.kept.profiles.list, caller.name)
        return ProfileList(data=[_profile(id_, preference) for id_, preference in kept])

    @router.get("/{id}", responses=refusals(404))
    async def read_profile(id: Id, request: Request) -> Profile:
        """One profile."""
        caller: Caller = request.state.caller
        with service.quotas.held(caller):
            try:
                return _profile(id, await run_in_threadpool(service.kept.profiles.get, caller.name, id))
            except NotFound:
                raise _unknown(id) from None

    @router.put("/{id}")
    async def store_profile(id: Id, body: NewProfile, request: Request) -> Profile:
        """Store a preference under an id, in the place of what is there."""
        caller: Caller = request.state.caller
        given = _checked(service, body)
        with service.quotas.held(caller):
            await run_in_threadpool(service.written.profiles.put, caller.name, id, given)
        return _profile(id, given)

    @router.delete("/{id}", status_code=204, responses=refusals(404))
    async def erase_profile(id: Id, request: Request) -> None:
        """Erase a profile."""
        caller: Caller = request.state.caller
        with service.quotas.held(caller):
            try:
                await run_in_threadpool(service.written.profiles.delete, caller.name, id)
            except NotFound:
                raise _unknown(id) from None

    return router


def _checked(service: Service, body: NewProfile) -> dict[str, Any]:
    """What is to be stored; InvalidRequest for what no request could use, of any model that is served."""
    given = body.model_dump(exclude_none=True)
    try:
        preference = Preference.parse(given, path="")
        for llm in service.llms.values():
            preference.check(llm.personal(None), path="")
    except InvalidRequest as error:  # paths within the body begin without a dot
        raise InvalidRequest(str(error).lstrip("."), param=(error.param or "").lstrip(".") or None) from None
    return given


def _profile(id_: str, preference: Mapping[str, Any]) -> Profile:
    return Profile(id=id_, **preference)


def _unknown(id_: str) -> ApiError:
    return ApiError(404, f"there is no profile {id_[:99]!r}", param="id", code="profile_not_found")
