"""The handle of replicas that do what a test says."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

from on_ray import ray
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from trimtab.cluster.protocol import Call

JSON, STREAM = [(b"content-type", b"application/json")], [(b"content-type", b"text/event-stream")]
"""headers"""
DIES, HANGS, UNAVAILABLE = "dies", "hangs", "unavailable"


class Handle:
    """Of replicas a and b, which say what is scripted for one call after the other.

    Each call is offered to those of `chosen`; `taken` says for one after the other who takes it: nobody, by default.
    """

    def __init__(
        self,
        *scripts: Sequence[Any],
        known: Sequence[str] = ("a", "b"),
        chosen: Sequence[str] = ("a",),
        taken: Sequence[str] = (),
    ) -> None:
        self.scripts, self.known, self.chosen, self.taken = list(scripts), list(known), list(chosen), list(taken)
        self.avoided: list[set[str]] = []
        """replicas that each call was to pass over, met or shunned"""
        self.met: list[set[str]] = []
        self.answer = SimpleNamespace(remote=self.remote)

    def options(self, *, stream: bool) -> "Handle":
        assert stream
        return self

    def remote(self, call: Call) -> Any:
        self.met.append(set(call["route"]["met"]))
        self.avoided.append({*call["route"]["met"], *call["route"]["shunned"]})
        call["route"]["known"] = self.known
        script = self.scripts.pop(0)
        call["route"]["chosen"] = self.chosen if self.known else []
        if self.taken:
            call["route"]["accepted"] = [self.taken.pop(0)]
        return Response(self.replies(script), broken=UNAVAILABLE in script)

    async def replies(self, script: Sequence[Any]) -> AsyncIterator[Any]:
        for each in script:
            if each == DIES:
                raise ray.exceptions.ActorDiedError
            if each == UNAVAILABLE:
                raise unavailable()
            if each == HANGS:
                await asyncio.sleep(60)
            yield each


class Response:
    """Of one call. Like Serve's, a broken one raises once more what has ended it when it is cancelled."""

    def __init__(self, replies: AsyncIterator[Any], *, broken: bool) -> None:
        self.replies, self.broken = replies, broken

    def __anext__(self) -> Any:
        return self.replies.__anext__()

    def cancel(self) -> None:
        if self.broken:
            raise unavailable()


def unavailable() -> DeploymentUnavailableError:
    """What Serve raises where the replicas of a deployment cannot start."""
    return DeploymentUnavailableError(DeploymentID("engine", "trimtab"))
