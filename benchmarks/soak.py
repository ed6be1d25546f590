"""A server under mixed load for minutes: every answer is as documented, and afterwards nothing is left.

`trimtab serve` runs in a process of its own, on a tiny random model unless one is named, with a queue and a pool that
are too small for all clients, so that requests are refused and preempted. Clients stream, search, score, complete,
leave in the middle and send nonsense. A third process asks for /health meanwhile. Exit code 1 if a limit is missed.
"""

import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from report import print_json, print_table

from trimtab.bench.serve import served

HEALTH_LIMIT = 0.05
"""seconds, of the 99th percentile"""
PROBE = 0.05
"""seconds between two probes"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--warm-up", type=float, default=None, help="minutes before memory counts; a fifth if absent")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--model", help="absent: a tiny random one")
    parser.add_argument("--memory", type=float, default=0.05, help="growth of resident memory that passes")
    parser.add_argument("--health", type=float, default=HEALTH_LIMIT, help="99th percentile of /health that passes")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or str(tiny_model(Path(folder) / "tiny"))
        with served(model, SETTINGS) as server:
            rows, told = asyncio.run(soak(args, server.url, server.pid))
    print_table(rows)
    print_json("soak", rows, model=args.model or "tiny", clients=args.clients, minutes=args.minutes, **told)
    return 0 if all(row["met"] is not False for row in rows) else 1


def tiny_model(folder: Path) -> Path:
    """Save a random two-layer Llama with a token per byte."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<|end|>"])
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", chat_template=template)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SETTINGS = {
    "engine.dtype": "float32",
    "engine.threads": 1,
    "engine.pool_tokens": 4096,
    "engine.max_rows": 32,
    "engine.max_waiting": 32,
    "server.log.level": "error",
}


@dataclass
class Seen:
    """What the clients saw."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class Client:
    """One client: request after request, each of a kind drawn at random."""

    def __init__(self, http: httpx2.AsyncClient, model: str, seen: Seen, seed: int) -> None:
        self._http = http
        self._model = model
        self._seen = seen
        self._random = random.Random(seed)

    async def run(self, until: float) -> None:
        """Ask until the time has come."""
        kinds: list[tuple[Callable[[], Awaitable[str]], int]] = [
            (self.stream, 30), (self.search, 15), (self.streamed_search, 10), (self.score, 15),
            (self.complete, 10), (self.leave, 10), (self.nonsense, 10),
        ]  # fmt: skip
        ways, weights = [way for way, _ in kinds], [weight for _, weight in kinds]
        while time.monotonic() < until:
            (way,) = self._random.choices(ways, weights)
            try:
                outcome = await way()
            except Exception as error:  # a reset connection or a broken stream is what this looks for
                outcome = "broken"
                self._seen.wrong.append(f"{way.__name__}: {type(error).__name__}: {error}")
            self._seen.outcomes[outcome] += 1
            if outcome == "refused":
                await asyncio.sleep(self._random.uniform(0.1, 1.0))

    async def stream(self) -> str:
        return await self._streamed(self._chat(stream=True, stream_options={"include_usage": True}))

    async def streamed_search(self) -> str:
        decoding = {"strategy": "best_of_n", "n": 4, "reward": "brevity"}
        options = {"include_progress": True}
        return await self._streamed(self._chat(stream=True, stream_options=options, decoding=decoding))

    async def search(self) -> str:
        strategy = self._random.choice(
            [
                {"strategy": "best_of_n", "n": 4, "reward": "lexicon"},
                {"strategy": "beam_search", "n": 4, "m": 2, "value": "brevity", "reward": "brevity"},
                {"strategy": "best_of_n", "n": 6, "reward": "length", "budget": {"max_model_tokens": 60}},
            ]
        )
        return await self._whole("/v1/chat/completions", self._chat(decoding=strategy))

    async def score(self) -> str:
        pairs = [{"prompt": self._text(40), "answer": self._text(80)} for _ in range(self._random.randint(1, 8))]
        return await self._whole("/v1/score", {"model": "lexicon", "pairs": pairs})

    async def complete(self) -> str:
        ids = [[self._random.randrange(256) for _ in range(20)] for _ in range(self._random.randint(1, 3))]
        body = {"model": self._model, "prompt": ids, "max_tokens": 8, "logprobs": 2, "echo": True}
        return await self._whole("/v1/completions", body)

    async def leave(self) -> str:
        """Go away in the middle of an answer, streamed or not."""
        if self._random.random() < 0.3:
            try:
                answer = await self._http.post("/v1/chat/completions", json=self._chat(max_tokens=200), timeout=0.05)
            except httpx2.TimeoutException:
                return "left"
            return self._judge("leave", answer.status_code, answer.content)
        async with self._http.stream("POST", "/v1/chat/completions", json=self._chat(stream=True)) as response:
            if response.status_code != 200:
                return self._judge("leave", response.status_code, await response.aread())
            async for _ in response.aiter_bytes():
                return "left"
        return "left"

    async def nonsense(self) -> str:
        """Send what is wrong; the answer must be an error that says so."""
        path, content, status = self._random.choice(
            [
                ("/v1/chat/completions", b"{", 400),
                ("/v1/chat/completions", json.dumps(self._chat(temperature=9)).encode(), 400),
                ("/v1/chat/completions", json.dumps({**self._chat(), "model": "none"}).encode(), 404),
                ("/v1/nothing", b"{}", 404),
                ("/v1/completions", json.dumps({"model": self._model, "prompt": "x" * 9000}).encode(), 400),
                ("/v1/chat/completions", json.dumps(self._chat(decoding={"strategy": "wrong"})).encode(), 400),
            ]
        )
        response = await self._http.post(path, content=content, headers={"content-type": "application/json"})
        if response.status_code == status and response.json()["error"]["message"]:
            return "ok: told what is wrong"
        return self._judge("nonsense", response.status_code, response.content)

    async def _whole(self, path: str, body: dict[str, Any]) -> str:
        response = await self._http.post(path, json=body)
        return self._judge(path, response.status_code, response.content)

    async def _streamed(self, body: dict[str, Any]) -> str:
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            content = await response.aread()
            if response.status_code != 200:
                return self._judge("stream", response.status_code, content)
        if not content.endswith(b"data: [DONE]\n\n") or b'data: {"error"' in content:
            self._seen.wrong.append(f"stream: ended with {content[-300:]!r}")
            return "broken"
        return "ok"

    def _judge(self, what: str, status: int, content: bytes) -> str:
        if status == 200:
            return "ok"
        if status in (429, 503):
            return "refused"
        self._seen.wrong.append(f"{what}: {status} {content[:300]!r}")
        return "wrong"

    def _chat(self, **changes: object) -> dict[str, Any]:
        message = {"role": "user", "content": self._text(60)}
        tokens = self._random.randint(4, 48)
        return {"model": self._model, "messages": [message], "max_tokens": tokens, "ignore_eos": True, **changes}

    def _text(self, longest: int) -> str:
        words = ("good", "bad", "the", "film", "was", "happy", "é", "\U0001f642", "and", "so")
        return " ".join(self._random.choice(words) for _ in range(self._random.randint(1, longest // 4)))


async def soak(args: argparse.Namespace, url: str, pid: int) -> tuple[list[dict[str, object]], dict[str, object]]:
    """Run everything; the table, and counts for the JSON line."""
    seconds, seen = args.minutes * 60, Seen()
    warm_up = seconds / 5 if args.warm_up is None else args.warm_up * 60
    limits = httpx2.Limits(max_connections=args.clients, max_keepalive_connections=args.clients)
    async with httpx2.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        model = (await http.get("/v1/models")).json()["data"][0]["id"]
        began = time.monotonic()
        memory = asyncio.create_task(watch(pid, began + seconds))
        prober = await asyncio.create_subprocess_exec(
            sys.executable, __file__, "--probe", url, str(seconds), stdout=subprocess.PIPE
        )
        clients = [Client(http, model, seen, args.seed * 10_000 + i) for i in range(args.clients)]
        await asyncio.gather(*(client.run(began + seconds) for client in clients))
        told, _ = await prober.communicate()
        left = await emptied(http)
    health = sorted(json.loads(told))
    resident = await memory
    span = min(10.0, warm_up / 2, (seconds - warm_up) / 2)
    start = statistics.median(size for at, size in resident if warm_up - span <= at - began <= warm_up)
    end = statistics.median(size for at, size in resident if at - began >= seconds - span)
    p50, p99 = (health[min(len(health) - 1, int(len(health) * share))] for share in (0.5, 0.99))
    requests = seen.outcomes.total()

    def row(what: str, value: float, unit: str, limit: float | None) -> dict[str, object]:
        met = None if limit is None else value <= limit
        return {"what": what, "value": round(value, 4), "unit": unit, "limit": limit, "met": met}

    rows = [
        row("requests", requests, "", None),
        row("answered as asked", seen.outcomes["ok"], "", None),
        row("refused for lack of room (503, 429)", seen.outcomes["refused"], "", None),
        row("left by the client", seen.outcomes["left"], "", None),
        row("wrong requests that were told so", seen.outcomes["ok: told what is wrong"], "", None),
        row("anything else", len(seen.wrong), "", 0),
        row("requests left in the engine", left["running"], "", 0),
        row("pages left in use", left["pages"], "", 0),
        row("resident memory after the warm-up", start / 2**20, "MiB", None),
        row("growth from there to the end", end / start - 1, "share", args.memory),
        row("probes of /health", len(health), "", None),
        row("/health, median", p50, "s", None),
        row("/health, 99th percentile", p99, "s", args.health),
        row("/health, slowest", health[-1], "s", None),
    ]
    for line in seen.wrong[:10]:
        print(line, file=sys.stderr)
    every = max(1, len(resident) // 20)
    return rows, {"outcomes": dict(seen.outcomes), "resident_mib": [size >> 20 for _, size in resident[::every]]}


async def watch(pid: int, until: float) -> list[tuple[float, int]]:
    """Resident memory of a process in bytes, with the time, twice a second."""
    sizes = []
    while time.monotonic() < until:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        assert found is not None
        sizes.append((time.monotonic(), int(found[1]) * 1024))
        await asyncio.sleep(0.5)
    return sizes


async def emptied(http: httpx2.AsyncClient) -> dict[str, float]:
    """What is left in the engine a while after the last client."""
    left: dict[str, float] = {}
    for _ in range(100):
        text = (await http.get("/metrics")).text
        left = {
            "running": total(text, "num_requests_running") + total(text, "num_requests_waiting"),
            "pages": total(text, "kv_pages_used"),
        }
        if not any(left.values()):
            break
        await asyncio.sleep(0.1)
    return left


def total(metrics: str, name: str) -> float:
    """The sum of all samples of one metric; KeyError where there is none."""
    samples = re.findall(rf"^trimtab:{name}(?:\{{.*\}})? (\S+)$", metrics, re.M)
    if not samples:
        raise KeyError(name)
    return sum(map(float, samples))


def probe(url: str, seconds: float) -> None:
    """Ask for /health again and again over one connection; print the seconds to the first byte of each answer."""
    import socket

    host, port = url.removeprefix("http://").split(":")
    request = f"GET /health HTTP/1.1\r\nhost: {host}\r\n\r\n".encode()
    times = []
    with socket.create_connection((host, int(port))) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began = time.perf_counter()
            connection.sendall(request)
            answer = connection.recv(65536)
            times.append(round(time.perf_counter() - began, 5))
            while not answer.endswith(b"}"):
                answer += connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200"), answer
            time.sleep(PROBE)
    print(json.dumps(times))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--probe"]:
        probe(sys.argv[2], float(sys.argv[3]))
    else:
        sys.exit(main())
