"""How the benchmark of replicas counts what has become of a request."""

import argparse
import asyncio

import httpx2
import pytest
from on_ray import ray  # noqa: F401
from replicas import ask

from trimtab.cluster.forward import lost_error

pytestmark = pytest.mark.ray

ARGS = argparse.Namespace(tokens=1, model="m")
LOST = lost_error()


@pytest.mark.parametrize(
    ("stream", "answer", "end"),
    [
        (False, httpx2.Response(200, json={}), "complete"),
        (False, httpx2.Response(503, json=LOST.body), "replica_lost before it began"),
        (True, httpx2.Response(200, text="data: {}\n\ndata: [DONE]\n\n"), "complete"),
        (
            True,
            httpx2.Response(200, text='data: {"error": {"code": "replica_lost"}}\n\ndata: [DONE]\n\n'),
            "replica_lost",
        ),
        (True, httpx2.Response(200, text="data: {}\n\n"), "cut"),
    ],
)
def test_only_streams_can_be_lost_after_they_have_begun(stream: bool, answer: httpx2.Response, end: str) -> None:
    async def ended() -> str:
        transport = httpx2.MockTransport(lambda _: answer)
        async with httpx2.AsyncClient(transport=transport, base_url="http://replicas") as client:
            return await ask(client, ARGS, 0, stream=stream)

    assert asyncio.run(ended()) == end
