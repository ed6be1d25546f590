"""The metrics of all replicas as one text, in which the label `instance` says whose a number is."""

import asyncio
import copy
from collections.abc import Mapping
from contextvars import Context
from typing import TYPE_CHECKING

from starlette.responses import Response

from trimtab.cluster.protocol import Call

if TYPE_CHECKING:
    from trimtab.cluster.forward import Forwarder

PATIENCE = 5.0
"""seconds that a replica has for its metrics"""
UP = "trimtab:replica_up"


async def scrape(forwarder: "Forwarder", call: Call) -> Response:
    """Ask every replica; those that do not answer in time are down. Who may not ask is told so by the first."""
    replies = [reply async for reply in forwarder.answer(call)]
    start = replies[0]
    if start[0] == "start" and start[1] in (401, 403):
        refusal = Response(b"".join(reply[1] for reply in replies if reply[0] == "body"), start[1])
        refusal.raw_headers = start[2]
        return refusal
    known = call["route"]["known"]
    # Serve holds calls of one request for the same call; in a context of its own each counts by itself.
    asked = [
        asyncio.create_task(forwarder.ask_only(copy.deepcopy(call), each, PATIENCE), context=Context())
        for each in known
    ]
    try:
        told = dict(zip(known, await asyncio.gather(*asked), strict=True))
    finally:
        for task in asked:
            task.cancel()
    text = merged({each: None if body is None else body.decode() for each, body in told.items()})
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def merged(texts: Mapping[str, str | None]) -> str:
    """Expositions of several replicas as one: each family once, each sample with its replica as `instance`."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for replica, text in sorted(texts.items()):
        family = ""
        for line in (text or "").splitlines():
            if line.startswith("# HELP "):
                family = line.split(" ", 3)[2]
                head = heads.setdefault(family, [])
                if not head:
                    head.append(line)
            elif line.startswith("# TYPE "):
                if line not in heads[family]:
                    heads[family].append(line)
            elif line and line[0] != "#":
                samples.setdefault(family, []).append(_labelled(line, replica))
    heads[UP] = [f"# HELP {UP} 1 while a replica tells its metrics", f"# TYPE {UP} gauge"]
    samples[UP] = [f'{UP}{{instance="{each}"}} {int(text is not None)}' for each, text in sorted(texts.items())]
    return "".join(f"{line}\n" for family, head in heads.items() for line in (*head, *samples.get(family, ())))


def _labelled(sample: str, replica: str) -> str:
    """A sample with the label `instance` before its own."""
    end = min(at for at in (sample.find("{"), sample.find(" ")) if at >= 0)
    name, rest = sample[:end], sample[end:]
    own = f'instance="{replica}"'
    return f"{name}{{{own},{rest[1:]}" if rest[0] == "{" else f"{name}{{{own}}}{rest}"
