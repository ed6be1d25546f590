"""The server against the same strategies hand-written on transformers' `generate` (`baselines/`), in one run.

So many conversations ask for answers of a fixed length. The script answers them one after another, as a lock around it
would, and as one static batch, its best case: all must be there before it begins, and none comes until all are done.
The server gets them as streams that start together. Weights, guides, dtype, lengths and threads are the same; answers
are sampled at temperature 1, those of args and nudging greedy, as in their papers.

Script and server are processes of their own, because two thread pools in one process slow each other down. They take
turns, and the best of the rounds counts for each, since noise only ever adds time. The server's prefix cache is off:
the rounds repeat the prompts.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import torch
from baselines.args import Args
from baselines.best_of_n import BestOfN
from baselines.cd_blockwise import CdBlockwise
from baselines.genarm import GenArm
from baselines.models import Conversation, Language, Reward
from baselines.nudging import Nudging
from guides import PROMPTS
from guides import STRATEGIES as STEERED
from report import print_json, print_table

from trimtab.bench.serve import served
from trimtab.clients.client import TrimtabClient
from trimtab.clients.results import Answer
from trimtab.engine.guides.folders import locate
from trimtab.engine.guides.heads import ValueHead
from trimtab.engine.sources import resolve

STRATEGIES: dict[str, dict[str, Any]] = {
    **{name: STEERED[name] for name in ("args", "genarm", "cd_blockwise", "best_of_n")},
    "nudging": {"aligned": "aligned", "gamma": 0.4},
}
GREEDY = ("args", "nudging")
MODEL = "demo"
WAYS = ("one by one", "static batch", "server")
WARM = 4
"""tokens of the answers that are not timed"""


class Strategy(Protocol):
    """A hand-written one."""

    def answer(self, conversations: Sequence[Conversation], tokens: int, *, ignore_eos: bool) -> list[list[int]]: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--strategy", action="append", choices=STRATEGIES, help="may be repeated; absent: all")
    parser.add_argument("--requests", type=int, default=8, help="conversations that arrive at once")
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    prompts = [json.loads(line)["prompt"] for line in PROMPTS.read_text().splitlines()][: args.requests]
    if len(prompts) < args.requests:
        parser.error(f"--requests {args.requests}: {PROMPTS.name} has {len(prompts)} prompts")
    talk = [[{"role": "user", "content": prompt}] for prompt in prompts]
    context = get_context("spawn")
    pipe, theirs = context.Pipe()
    context.Process(target=_script, args=(theirs, args, talk), daemon=True).start()
    theirs.close()  # so that an end of the script is an end of the pipe
    rows = []
    own = {"engine.dtype": args.dtype, "engine.threads": args.threads, "engine.prefix_cache": "false"}
    with served(MODEL, own) as server, TrimtabClient(server.url, timeout=600) as client:
        for name in args.strategy or STRATEGIES:
            speeds = dict.fromkeys(WAYS, 0.0)
            for turn in range(args.rounds + 1):  # the first one warms up
                tokens = args.tokens if turn else WARM
                for way in WAYS:
                    if way == "server":
                        speed = _stream(client, name, talk, tokens)
                    else:
                        pipe.send((name, way, tokens))
                        speed = pipe.recv()
                    if turn:
                        speeds[way] = max(speeds[way], speed)
                        _say(f"{name}, round {turn} of {args.rounds}: {way} {speed:.1f} tokens/s")
            rows.append(
                {
                    "strategy": name,
                    **{f"{way} tokens/s": speed for way, speed in speeds.items()},
                    "over one by one": speeds["server"] / speeds["one by one"],
                    "over static batch": speeds["server"] / speeds["static batch"],
                }
            )
    pipe.send(None)
    print_table(rows)
    told = [{**row, "parameters": STRATEGIES[str(row["strategy"])]} for row in rows]
    conditions = {"requests": args.requests, "answer_tokens": args.tokens, "threads": args.threads}
    print_json("handwritten", told, model=MODEL, dtype=args.dtype, **conditions)


def _stream(client: TrimtabClient, name: str, talk: Sequence[Conversation], tokens: int) -> float:
    """Tokens per second that the server delivers while it streams all answers at once."""

    def answer(conversation: Conversation) -> int:
        *_, last = client.stream_chat(
            MODEL,
            list(conversation),  # type: ignore[arg-type]
            decoding={"strategy": name, **STRATEGIES[name]},
            temperature=None if name in GREEDY else 1.0,
            max_tokens=tokens,
            ignore_eos=True,
        )
        assert isinstance(last, Answer)
        return last.usage.completion_tokens

    with ThreadPoolExecutor(len(talk)) as pool:
        began = perf_counter()
        delivered = sum(pool.map(answer, talk))
        return delivered / (perf_counter() - began)


def _script(pipe: Connection, args: argparse.Namespace, talk: Sequence[Conversation]) -> None:
    """In a process of its own: answer each (strategy, way, tokens) with tokens per second."""
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    base = Language.load(resolve(MODEL), dtype)
    made: dict[str, Strategy] = {}
    while (asked := pipe.recv()) is not None:
        name, way, tokens = asked
        if name not in made:
            made = {name: make(name, STRATEGIES[name], base, dtype)}  # one at a time, since models take room
        batches = [talk] if way == "static batch" else [[conversation] for conversation in talk]
        torch.manual_seed(0)
        began = perf_counter()
        delivered = sum(len(row) for batch in batches for row in made[name].answer(batch, tokens, ignore_eos=True))
        pipe.send(delivered / (perf_counter() - began))


def make(
    name: str, parameters: Mapping[str, Any], base: Language, dtype: torch.dtype, *, sample: bool = True
) -> Strategy:
    """The hand-written strategy with the demo guides that its parameters name; args and nudging are always greedy."""

    def folder(field: str) -> Path:
        return locate(f"{MODEL}:{parameters[field]}")

    match name:
        case "args":
            reward = Reward.load(resolve(MODEL), dtype, folder("reward"))
            return Args(base, reward, w=parameters["w"], k=parameters["k"])
        case "genarm":
            arm = Language.load(resolve(MODEL), dtype, folder("arm"))
            return GenArm(base, arm, alpha=parameters["alpha"], sample=sample)
        case "nudging":
            aligned = Language.load(resolve(MODEL), dtype, folder("aligned"))
            return Nudging(base, aligned, gamma=parameters["gamma"])
        case "cd_blockwise":
            sizes = base.model.config
            head = ValueHead.load(folder("value") / "value_head.safetensors", sizes.hidden_size, sizes.vocab_size)
            return CdBlockwise(base, head, k=parameters["k"], block=parameters["block"], sample=sample)
        case "best_of_n":
            reward = Reward.load(resolve(MODEL), dtype, folder("reward"))
            return BestOfN(base, reward, n=parameters["n"], sample=sample)
    raise ValueError(f"nobody has written {name} by hand")


def _say(line: str) -> None:
    if sys.stderr.isatty():
        print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
