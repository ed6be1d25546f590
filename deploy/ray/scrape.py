"""The metrics of all replicas as one text, in which the label `instance` says whose a number is."""

import asyncio
import copy
from collections.abc import Mapping
from contextlib import aclosing
from contextvars import Context

from starlette.responses import Response

from trimtab.cluster.forward import Forwarder, no_replica
from trimtab.cluster.protocol import Body, Call, Start, meets

PATIENCE = 5.0
"""seconds that a replica has for its metrics"""
REFUSED = (401, 403)
"""statuses of an answer to who may not ask"""
UP = "trimtab:replica_up"


async def scrape(forwarder: Forwarder, call: Call) -> Response:
    """Ask every replica once; those that do not answer in time are down. Who may not ask is told so by the first.

    Raises ApiError where there is no replica.
    """
    first = await _first(forwarder, call)
    if not call["route"]["known"]:
        raise no_replica()
    told: dict[str, list[Start | Body]] = {each: [] for each in call["route"]["met"]}
    told |= dict.fromkeys(meets(call["route"]), first)
    if _status(first) not in REFUSED:
        told |= await _others(forwarder, call, [each for each in call["route"]["known"] if each not in told])
    for replies in told.values():
        if replies and replies[0][0] == "start" and replies[0][1] in REFUSED:
            refusal = Response(_body(replies), replies[0][1])
            refusal.raw_headers = replies[0][2]
            return refusal
    text = merged({each: _body(told[each]).decode() if _status(told[each]) == 200 else None for each in told})
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def _first(forwarder: Forwarder, call: Call) -> list[Start | Body]:
    """The answer of any replica; empty where it takes too long."""
    try:
        async with asyncio.timeout(PATIENCE), aclosing(forwarder.answer(call)) as replies:
            return [reply async for reply in replies]
    except TimeoutError:
        return []


async def _others(forwarder: Forwarder, call: Call, replicas: list[str]) -> dict[str, list[Start | Body]]:
    """The answers of these replicas, who are asked at the same time."""
    # Serve holds calls of one request for the same call; in a context of its own each counts by itself.
    asked = [
        asyncio.create_task(forwarder.ask_only(copy.deepcopy(call), each, PATIENCE), context=Context())
        for each in replicas
    ]
    try:
        return dict(zip(replicas, await asyncio.gather(*asked), strict=True))
    finally:
        for task in asked:
            task.cancel()


def _status(replies: list[Start | Body]) -> int:
    """The status of an answer; 0 for an empty one."""
    return replies[0][1] if replies and replies[0][0] == "start" else 0


def _body(replies: list[Start | Body]) -> bytes:
    return b"".join(reply[1] for reply in replies if reply[0] == "body")


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
