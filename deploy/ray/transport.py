"""How an engine asks a guide that is a deployment: `serve://application/deployment?digest=...`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs, urlsplit

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from trimtab.cluster.guide import Answer
from trimtab.cluster.protocol import PROTOCOL, GuideCall, route
from trimtab.engine.errors import RemoteError, RemoteUnavailable
from trimtab.engine.remote.settings import ConnectionSettings
from trimtab.engine.remote.stats import RemoteStats

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

RETRY_AFTER = 5.0
"""seconds after which a missing guide may be there"""


class ServeTransport:
    """Posts to a deployment of a guide and waits for the answer. Works in any thread but an event loop's."""

    def __init__(
        self, settings: ConnectionSettings, stats: RemoteStats, *, first: float, waiting: float, answering: float
    ) -> None:
        """Seconds: `first` for a replica to be there at the beginning, `waiting` later, `answering` for an answer."""
        parts = urlsplit(settings.url)
        self._application, self._deployment = parts.netloc, parts.path.strip("/")
        self._digest = parse_qs(parts.query)["digest"][0]
        self._waiting, self._later, self._answering = first, waiting, answering
        self._stats = stats
        self._handle: DeploymentHandle[Any] = serve.get_deployment_handle(self._deployment, self._application)

    def close(self) -> None:
        """Nothing is held: every call ends in its own time."""

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer's body. Raises RemoteUnavailable where nobody answers now, and RemoteError for a refusal."""
        try:
            try:
                status, told = self._ask(path, body)
            except (RayTaskError, TimeoutError):  # the second are Ray's own too: another replica would be as slow
                raise
            except RayError:  # its replica died: another one can answer the same
                status, told = self._ask(path, body)
        except TimeoutError:
            raise self._unavailable("does not answer in time") from None
        except RayTaskError as error:
            raise RemoteError(f"{self._deployment} failed with {type(error.cause).__name__}: see its log") from None
        except (RayError, RayServeException) as error:
            raise self._unavailable(f"was lost ({type(error).__name__})") from None
        if status == 503:
            raise self._unavailable(f"refused the call: {told['error']['message']}")
        if status != 200:
            raise RemoteError(f"{self._deployment} answered {status}: {told['error']['message']}")
        self._waiting = self._later
        return told

    def _ask(self, path: str, body: Mapping[str, Any]) -> Answer:
        asked: GuideCall = {
            "protocol": PROTOCOL,
            "digest": self._digest,
            "route": route(),
            "path": path,
            "body": dict(body),
        }
        self._stats.calls += 1
        response = self._handle.post.remote(asked)
        try:
            try:
                return cast(Answer, response.result(timeout_s=self._waiting))
            except TimeoutError:
                if not asked["route"]["accepted"]:
                    raise self._unavailable("has no replica") from None
                return cast(Answer, response.result(timeout_s=self._answering))
        except BaseException:
            response.cancel()  # type: ignore[no-untyped-call]
            raise

    def _unavailable(self, why: str) -> RemoteUnavailable:
        return RemoteUnavailable(f"the guide's deployment {self._deployment} {why}", retry_after=RETRY_AFTER)
