"""What serving adds to the engine: HTTP streams against the engine alone, best-of-8 against one answer, memory.

The engine runs in this process and the server in another one; they take turns on the same cores, and the best of the
rounds counts for each. The client is a bare socket reader, so that its own work hardly shows.
"""

import argparse
import asyncio
import json
import re
from pathlib import Path
from time import perf_counter

import torch
from report import print_json, print_table

from trimtab import LLM, EngineSettings, SamplingParams
from trimtab.bench.serve import served


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48, help="tokens of each answer")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rows: list[dict[str, object]] = []

    def row(what: str, value: float, unit: str, limit: float | None) -> None:
        rows.append({"what": what, "value": round(value, 3), "unit": unit, "limit": limit})

    prompts = [f"Write a long and detailed story about the number {i}." for i in range(args.streams)]
    sampling = SamplingParams(seed=1, max_tokens=args.tokens, ignore_eos=True)
    settings = EngineSettings(model=args.model, dtype=args.dtype, threads=args.threads, prefix_cache=False)
    own = {"engine.dtype": args.dtype, "engine.threads": args.threads, "engine.prefix_cache": "false"}
    with LLM(settings=settings) as llm, served(args.model, own) as server:
        port = int(server.url.rpartition(":")[2])
        alone, http = [], []
        for _ in range(args.rounds):
            began = perf_counter()
            llm.generate(prompts, sampling, progress=False)
            alone.append(perf_counter() - began)
            began = perf_counter()
            received = asyncio.run(stream_all(port, prompts, args.tokens))
            http.append(perf_counter() - began)
            assert received == args.streams, f"{received} of {args.streams} streams came to their end"
        row("engine alone", args.streams * args.tokens / min(alone), "tokens/s", None)
        row(f"{args.streams} HTTP streams", args.streams * args.tokens / min(http), "tokens/s", None)
        row("cost of HTTP", 1 - min(alone) / min(http), "share", 0.15)
        fill_pool(port)
        row("resident memory of the server, pool filled", resident(server.pid) / 2**30, "GiB", 2.5 * 1e9 / 2**30)

        plain, best = [], []
        decoding = {"strategy": "best_of_n", "n": 8, "reward": "lexicon"}
        for _ in range(args.rounds):
            for times, spec in ((plain, None), (best, decoding)):
                began = perf_counter()
                llm.generate(prompts[:1], sampling, decoding=spec, progress=False)
                times.append(perf_counter() - began)
        row("best-of-8 over one plain answer", min(best) / min(plain), "times", 1.6)
    print_table(rows)
    print_json("serving", rows, model=args.model, dtype=args.dtype, answer_tokens=args.tokens)


async def stream_all(port: int, prompts: list[str], tokens: int) -> int:
    """Stream all prompts at once; how many streams ended as they should."""
    ends = await asyncio.gather(*(stream(port, prompt, tokens) for prompt in prompts))
    return sum(ends)


async def stream(port: int, prompt: str, tokens: int) -> bool:
    body = {"model": "demo", "prompt": prompt, "max_tokens": tokens, "seed": 1, "ignore_eos": True, "stream": True}
    payload = await post(port, "/v1/completions", body)
    return payload.rstrip().endswith(b"0") and b"data: [DONE]" in payload


async def post(port: int, path: str, body: dict[str, object]) -> bytes:
    """The raw response, headers and chunk sizes included."""
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n"
        f"content-length: {len(data)}\r\n\r\n".encode()
        + data
    )
    payload = await reader.read(-1)
    writer.close()
    return payload


def fill_pool(port: int) -> None:
    """Store keys and values in every page of the default pool: 32 sequences of 1,024 tokens."""

    async def fill() -> None:
        for start in range(32):
            ids = [1000 + start, *range(2000, 3022)]
            await post(port, "/v1/completions", {"model": "demo", "prompt": ids, "max_tokens": 1})

    asyncio.run(fill())


def resident(pid: int) -> int:
    """Resident memory of a process in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
