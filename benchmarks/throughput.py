"""Decode throughput of the engine and of transformers `generate`, in one run on the same model.

Both decode the same prompts to the same length, as a static batch. The time of the first token (and so the prefill)
is measured apart and taken off. The two alternate, and the best of the rounds counts: noise only ever adds time.
"""

import argparse
from collections.abc import Callable
from time import perf_counter

import torch
from report import print_json, print_table
from transformers import AutoModelForCausalLM, GenerationConfig

from trimtab import LLM, EngineSettings, SamplingParams
from trimtab.engine.sources import resolve


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

    torch.set_num_threads(args.threads)
    plain = AutoModelForCausalLM.from_pretrained(resolve(args.model), dtype=getattr(torch, args.dtype)).eval()
    plain.generation_config.eos_token_id = None
    settings = EngineSettings(model=args.model, dtype=args.dtype, threads=args.threads, prefix_cache=False)
    rows = []
    with LLM(settings=settings) as llm:
        for count in args.sequences:
            prompts = torch.randint(1000, 40_000, (count, args.prompt), generator=torch.Generator().manual_seed(0))

            def generate(tokens: int, prompts: torch.Tensor = prompts) -> None:
                config = GenerationConfig(max_new_tokens=tokens, do_sample=False, pad_token_id=0)
                out = plain.generate(prompts, generation_config=config, attention_mask=torch.ones_like(prompts))
                assert out.shape[1] == prompts.shape[1] + tokens

            def engine(tokens: int, prompts: torch.Tensor = prompts) -> None:
                sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
                results = llm.generate(prompts.tolist(), sampling, progress=False)
                assert all(len(result.choices[0].token_ids) == tokens for result in results)

            step = {"generate": float("inf"), "engine": float("inf")}
            for _ in range(args.rounds):
                for name, run in (("generate", generate), ("engine", engine)):
                    step[name] = min(step[name], _step_seconds(run, args.tokens))
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
    print_table(rows)
    print_json(
        "throughput", rows, model=args.model, dtype=args.dtype, prompt_tokens=args.prompt, answer_tokens=args.tokens
    )


def _step_seconds(run: Callable[[int], None], tokens: int) -> float:
    """Seconds per decoded token and row batch, the first token left out."""
    times = []
    for length in (1, tokens):
        began = perf_counter()
        run(length)
        times.append(perf_counter() - began)
    return (times[1] - times[0]) / (tokens - 1)


if __name__ == "__main__":
    main()
