"""Decode throughput of the engine and of transformers `generate`, in one run on the same model.

Both decode the same prompts to the same length, as a static batch. The time of the first token (and so the prefill)
is measured apart and taken off. They take turns, each in a process of its own, because two thread pools in one process
slow each other down; the best of the rounds counts, since noise only ever adds time.
"""

import argparse
import sys
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from time import perf_counter

import torch
from report import print_json, print_table

Run = Callable[[torch.Tensor, int], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=32, help="tokens decoded per answer")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    context = get_context("spawn")
    pipes = {}
    for name in ("generate", "engine"):
        pipes[name], theirs = context.Pipe()
        context.Process(target=_serve, args=(name, theirs, args), daemon=True).start()
        pipes[name].recv()
    rows = []
    for count in args.sequences:
        step = dict.fromkeys(pipes, float("inf"))
        for turn in range(args.rounds):
            for name, pipe in pipes.items():
                pipe.send(count)
                step[name] = min(step[name], pipe.recv())
                _say(f"{count} sequences, round {turn + 1} of {args.rounds}: {name} {step[name] * 1e3:.1f} ms/step")
        rows.append(
            {
                "sequences": count,
                "generate ms/step": step["generate"] * 1e3,
                "engine ms/step": step["engine"] * 1e3,
                "generate tokens/s": count / step["generate"],
                "engine tokens/s": count / step["engine"],
                "ratio": step["generate"] / step["engine"],
            }
        )
    for pipe in pipes.values():
        pipe.send(None)
    print_table(rows)
    print_json(
        "throughput", rows, model=args.model, dtype=args.dtype, prompt_tokens=args.prompt, answer_tokens=args.tokens
    )


def _serve(name: str, pipe: Connection, args: argparse.Namespace) -> None:
    """In a process of its own: load, then answer each number of sequences with the seconds of one decode step."""
    run = {"generate": _generate, "engine": _engine}[name](args)
    pipe.send("ready")
    while (count := pipe.recv()) is not None:
        prompts = torch.randint(1000, 40_000, (count, args.prompt), generator=torch.Generator().manual_seed(0))
        times = []
        for length in (1, args.tokens):
            began = perf_counter()
            run(prompts, length)
            times.append(perf_counter() - began)
        pipe.send((times[1] - times[0]) / (args.tokens - 1))


def _generate(args: argparse.Namespace) -> Run:
    from transformers import AutoModelForCausalLM, GenerationConfig

    from trimtab.engine.sources import resolve

    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(resolve(args.model), dtype=getattr(torch, args.dtype)).eval()
    model.generation_config.eos_token_id = None

    def run(prompts: torch.Tensor, tokens: int) -> None:
        config = GenerationConfig(max_new_tokens=tokens, do_sample=False, pad_token_id=0)
        out = model.generate(prompts, generation_config=config, attention_mask=torch.ones_like(prompts))
        assert out.shape[1] == prompts.shape[1] + tokens

    return run


def _engine(args: argparse.Namespace) -> Run:
    from trimtab import LLM, EngineSettings, SamplingParams

    llm = LLM(settings=EngineSettings(model=args.model, dtype=args.dtype, threads=args.threads, prefix_cache=False))

    def run(prompts: torch.Tensor, tokens: int) -> None:
        sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        results = llm.generate(prompts.tolist(), sampling, progress=False)
        assert all(len(result.choices[0].token_ids) == tokens for result in results)

    return run


def _say(line: str) -> None:
    if sys.stderr.isatty():
        print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
