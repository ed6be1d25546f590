"""The handle of replicas that do what a test says."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

from on_ray import ray

from trimtab.cluster.protocol import Call

JSON, STREAM = [(b"content-type", b"application/json")], [(b"content-type", b"text/event-stream")]
"""headers"""
DIES, HANGS = "dies", "hangs"


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
        self.answer = SimpleNamespace(remote=self.remote)

    def options(self, *, stream: bool) -> "Handle":
        assert stream
        return self

    def remote(self, call: Call) -> Any:
        self.avoided.append(set(call["route"]["avoid"]))
        call["route"]["known"] = self.known
        script = self.scripts.pop(0)
        call["route"]["chosen"] = self.chosen if self.known else []
        if self.taken:
            call["route"]["accepted"] = [self.taken.pop(0)]
        return Response(self.replies(script))

    async def replies(self, script: Sequence[Any]) -> AsyncIterator[Any]:
        for each in script:
            if each == DIES:
                raise ray.exceptions.ActorDiedError
            if each == HANGS:
                await asyncio.sleep(60)
            yield each


class Response:
    def __init__(self, replies: AsyncIterator[Any]) -> None:
        self.replies = replies

    def __anext__(self) -> Any:
        return self.replies.__anext__()

    def cancel(self) -> None:
        pass
