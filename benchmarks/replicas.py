"""What a second replica on Ray Serve adds, and what the death of one under load costs.

Throughput is that of replicas that always have as many requests as they take at a time, one thread each: the tokens
that their counters gain from when the first are done until no more are sent. One replica and two take turns. Then half
of the requests are streamed and one of the two replicas is killed: answers that had not begun must all come, and begun
streams of the dead one must end with an error that can be retried.
"""

import argparse
import asyncio
import json
import socket
from collections import Counter
from statistics import median
from time import perf_counter

import httpx2
import ray
from ray import serve
from report import print_json, print_table

from trimtab.cluster.app import build
from trimtab.cluster.forward import LOST
from trimtab.cluster.settings import ClusterSettings, Patience, Scale

KILLED_AT = 0.3
"""part of the requests that are answered when a replica is killed"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rows", type=int, default=16, help="requests that a replica works on at a time")
    parser.add_argument("--requests", type=int, default=160)
    parser.add_argument("--tokens", type=int, default=48, help="tokens of each answer")
    parser.add_argument("--rounds", type=int, default=3, help="the median of which counts")
    args = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=80_000_000, log_to_driver=False)
    rows: list[dict[str, object]] = []

    def row(what: str, value: float, unit: str, limit: float | None = None) -> None:
        rows.append({"what": what, "value": round(value, 3), "unit": unit, "limit": limit})

    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        rates: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(args.rounds):
            for count, told in rates.items():
                serve.run(build(settings(args, count)), name="trimtab", route_prefix="/")
                told.append(asyncio.run(load(url, args, streamed=0.0))[0])
        for count, told in rates.items():
            row(f"throughput of {count}", median(told), "tokens/s")
        row("two over one", median(two / one for one, two in zip(rates[1], rates[2], strict=True)), "times", 1.6)
        _, ends = asyncio.run(load(url, args, streamed=0.5, killing=True))
        row("requests when one of two is killed", args.requests, "")
        row("complete answers", ends["complete"], "")
        row("begun streams that ended with a retryable error", ends[LOST], "")
        row("lost otherwise", args.requests - ends["complete"] - ends[LOST], "", 0)
    finally:
        serve.shutdown()
        ray.shutdown()
    print_table(rows)
    print_json("replicas", rows, model=args.model, dtype=args.dtype, answer_tokens=args.tokens, rows_at_once=args.rows)


def settings(args: argparse.Namespace, replicas: int) -> ClusterSettings:
    """An application of so many replicas, each with one thread."""
    engine = {"model": args.model, "dtype": args.dtype, "threads": 1, "max_rows": args.rows, "guides": {}}
    return ClusterSettings(
        settings={"engine": engine, "server": {"playground": False}},
        engine=Scale(replicas=replicas),
        patience=Patience(beat=2.0, silence=10.0),
    )


async def load(
    url: str, args: argparse.Namespace, *, streamed: float, killing: bool = False
) -> tuple[float, Counter[str]]:
    """Keep 2.5 times as many requests open as one replica works on; tokens/s meanwhile, and how requests ended."""
    ends: Counter[str] = Counter()
    waiting = iter(range(args.requests))
    open_ = int(2.5 * args.rows)
    marks: list[tuple[float, float]] = []
    killed = not killing

    async def work(client: httpx2.AsyncClient) -> None:
        nonlocal killed
        for number in waiting:
            if ends.total() == open_ or number == args.requests - 1:
                marks.append((perf_counter(), await written(client)))
            ends[await ask(client, args, number, stream=number % 2 < 2 * streamed)] += 1
            if not killed and ends.total() >= KILLED_AT * args.requests:
                killed = True
                await asyncio.to_thread(kill_one)

    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        await asyncio.gather(*(work(client) for _ in range(open_)))
    (began, before), *_, (ended, after) = marks
    return (after - before) / (ended - began), ends


async def written(client: httpx2.AsyncClient) -> float:
    """Tokens that the replicas have written so far."""
    told = (await client.get("/metrics")).text.splitlines()
    return sum(float(each.rpartition(" ")[2]) for each in told if each.startswith("trimtab:generation_tokens_total"))


async def ask(client: httpx2.AsyncClient, args: argparse.Namespace, number: int, *, stream: bool) -> str:
    """How one request ended: complete, the code of its error, or what it was lost by."""
    prompt = f"{number} is a number. Write a long and detailed story about it."
    body = {"prompt": prompt, "max_tokens": args.tokens, "seed": 1, "ignore_eos": True, "stream": stream}
    body["model"] = args.model.rpartition("/")[2]
    try:
        answer = await client.post("/v1/completions", json=body)
        if not stream:
            return "complete" if answer.status_code == 200 else f"{answer.json()['error']['code']} before it began"
        *events, done = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
        if done != "[DONE]":
            return "cut"
        last = json.loads(events[-1])
        return str(last["error"]["code"]) if "error" in last else "complete"
    except (httpx2.HTTPError, ValueError, KeyError, IndexError) as error:
        return type(error).__name__


def kill_one() -> None:
    """End the process of one replica at once."""
    named = ray.util.list_named_actors(all_namespaces=True)
    name = next(each["name"] for each in named if each["name"].startswith("SERVE_REPLICA::trimtab#engine#"))
    ray.kill(ray.get_actor(name, namespace="serve"))


if __name__ == "__main__":
    main()
