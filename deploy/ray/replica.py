"""A replica: the whole server without its socket, around an engine of its own or a base behind another server."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from ray import serve
from trimtab.cluster.asgi import Driver
from trimtab.cluster.placing import SCHEME, far_guides, placed
from trimtab.cluster.protocol import Call, Reply, mismatch


class EngineDead(RuntimeError):
    """The engine has stopped for good; Serve starts another replica in the place of this one."""


class Replica:
    """Answers HTTP requests that the ingress hands over.

    The settings are those of `trimtab serve` as plain values; `guides` gives the digest of the configuration of each
    guide that runs as a deployment of its own.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        guides: Mapping[str, str],
        patience: Mapping[str, float],
        fraction: float,
        *deployments: object,
    ) -> None:
        """`fraction` is the share of a GPU that the replica may use, 1 for whole ones.

        `deployments` are those of the guides: that they are arguments makes them part of the application.
        """
        # Imported here: ingress and command line import this module too, and need neither torch nor transformers.
        from trimtab.cluster.transport import ServeTransport
        from trimtab.decoders.library import Library
        from trimtab.engine.errors import TrimtabError
        from trimtab.engine.rewards.transports import register
        from trimtab.llm import LLM
        from trimtab.server.app import create_app
        from trimtab.server.settings import Settings

        asking = partial(
            ServeTransport, first=patience["start"], waiting=patience["no_replica"], answering=patience["guide"]
        )
        register(SCHEME, asking)
        context = serve.get_replica_context()
        self._id = context.replica_id.unique_id
        own = Settings.model_validate(far_guides(placed(settings, fraction), context.app_name, guides))
        self._library = Library(own.server.library)
        llm = LLM(settings=own.engine, library=self._library, attributes=own.attributes)
        try:
            self._app = create_app(llm, own)
        except TrimtabError:
            llm.close()
            raise
        self._service = self._app.state.service
        self._driver = Driver(self._app, patience["beat"])
        self._lifespan: AsyncExitStack | None = None

    async def check_health(self) -> None:
        """Raise once the engine has stopped; Serve asks before the first request, and then every few seconds."""
        if self._lifespan is None:
            self._lifespan = AsyncExitStack()
            await self._lifespan.enter_async_context(self._app.router.lifespan_context(self._app))
        if (error := self._service.failed) is not None:
            raise EngineDead(f"the engine has stopped: {type(error).__name__}")

    async def answer(self, call: Call) -> AsyncGenerator[Reply, None]:
        """One HTTP request: who answers, then status and headers, then the body piece by piece."""
        if (reason := mismatch(call["protocol"])) is not None:
            yield ("refused", reason)
            return
        yield ("hello", self._id)
        async for reply in self._driver.drive(call):
            yield reply

    async def __del__(self) -> None:
        """Stop the engine; Serve calls it when no request is left, or their time is up."""
        if hasattr(self, "_service"):
            self._service.close()
            self._library.close()
            if self._lifespan is not None:
                await self._lifespan.aclose()
