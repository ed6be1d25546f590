"""What every route needs: the model, the settings, the bridge to the engine and the metrics."""

import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool

from trimtab.engine.errors import InvalidRequest
from trimtab.server.bridge import Bridge
from trimtab.server.errors import ApiError
from trimtab.server.metrics import Metrics
from trimtab.server.nearest import hint
from trimtab.server.settings import Settings
from trimtab.server.version import installed_version

if TYPE_CHECKING:
    from trimtab.llm import LLM, GenerationRequest, PreparedRequest


class Service:
    """One model behind one app."""

    def __init__(self, llm: "LLM", settings: Settings) -> None:
        self.llm = llm
        self.settings = settings.server
        self.metrics = Metrics(llm.stats)
        self.bridge = Bridge(llm, self.metrics)
        self.created = int(time.time())
        self.fingerprint = f"trimtab-{installed_version()}"
        self.draining = False

    def drain(self) -> None:
        """Refuse new requests from now on; running ones go on. Safe from a signal handler."""
        self.draining = True
        self.llm.drain()

    def check_model(self, name: str) -> None:
        """Raise a 404 unless `name` is a model that is served."""
        if name != self.llm.model_name:
            message = f"the model {name!r} does not exist; {hint(name, [self.llm.model_name])}"
            raise ApiError(404, message, param="model", code="model_not_found")

    def limit(self, choices: int, prompts: int, max_tokens: int | None, field: str) -> int | None:
        """The token limit to use; raises InvalidRequest for more than the server allows, naming `field`."""
        limits = self.settings.limits
        if choices < 1:
            raise InvalidRequest(f"n must be at least 1, not {choices}", param="n", code="invalid_value")
        if choices * prompts > limits.max_n:
            message = f"n times the number of prompts may be {limits.max_n} at most, not {choices * prompts}"
            raise InvalidRequest(message, param="n", code="invalid_value")
        if max_tokens is None or limits.max_tokens is None:
            return limits.max_tokens if max_tokens is None else max_tokens
        if max_tokens > limits.max_tokens:
            message = f"{field} may be {limits.max_tokens} at most on this server, not {max_tokens}"
            raise InvalidRequest(message, param=field, code="invalid_value")
        return max_tokens

    def head(self, prefix: str, kind: str) -> dict[str, Any]:
        """The fields that open every answer: a fresh id, the object's kind, time, model and fingerprint."""
        return {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": self.llm.model_name,
            "system_fingerprint": self.fingerprint,
        }

    async def prepare(self, requests: Sequence["GenerationRequest"]) -> list["PreparedRequest"]:
        """Validate and tokenise outside the event loop; raises InvalidRequest or Overloaded."""
        return await run_in_threadpool(lambda: [self.llm.prepare(request) for request in requests])
