"""Who calls: every route that generates, scores or lists knows its caller before it reads the body."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import Request
from starlette.responses import Response

from trimtab.server.body import JsonRoute
from trimtab.server.errors import ApiError
from trimtab.server.keys import bearer

if TYPE_CHECKING:
    from trimtab.server.policy import Policy
    from trimtab.server.rules import Rules
    from trimtab.server.service import Service

ANONYMOUS = "anonymous"
"""everybody, on a server without keys"""


@dataclass(frozen=True, slots=True)
class Caller:
    """The owner of a key and what binds them; `policy_name` and `policy` are both None where nothing does."""

    name: str = ANONYMOUS
    policy_name: str | None = None
    policy: "Policy | None" = None


class GuardedRoute(JsonRoute):
    """A route for callers whose key the server knows; others get a 401 before anything of theirs is read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            service: Service = request.app.state.service
            self.identify(service.rules, request)
            return await handler(request)

        return guarded

    def identify(self, rules: "Rules", request: Request) -> None:
        """Note who calls; raises a 401."""
        request.state.caller = rules.caller(request.headers.get("authorization"))


class AdminRoute(GuardedRoute):
    """A route for the operator, behind a key of its own."""

    def identify(self, rules: "Rules", request: Request) -> None:
        """Raise a 401 for everybody else."""
        rules.check_admin(request.headers.get("authorization"))


def unauthorized(authorization: str | None) -> ApiError:
    """The 401 for a request without a key, or with one that nobody owns."""
    if bearer(authorization) is None:
        message = "this server asks for an API key: send it as `Authorization: Bearer KEY`"
        code = "missing_api_key"
    else:
        message, code = "the API key is not known here: check it, or ask the operator for one", "invalid_api_key"
    return ApiError(401, message, code=code, headers={"www-authenticate": "Bearer"})
