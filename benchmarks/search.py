"""What searches cost: time, tokens and the share that is no model's, each against one plain answer in the same run.

All run on one engine, one request at a time; they take turns, and the best of the rounds counts, since noise only adds
time. Answers never end early, so that every request is as long as asked for. The reward is a program (free); the model
that drafts, or is compared with, is a second copy of the base, which costs what the base does.

`orchestration` is what is left of the wall-clock after the models' forwards and the draws over the vocabulary.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from time import perf_counter
from typing import Any

import torch
from report import print_json, print_table
from timing import seconds

from trimtab import LLM, EngineSettings, SamplingParams
from trimtab.engine.results import Result

R = {"reward": "long"}
SEARCHES: dict[str, dict[str, Any]] = {
    "best_of_n": {"n": 16, **R},
    "self_consistency": {"n": 8, "extract": "last_line"},
    "speculative_rejection": {"n": 16, "schedule": [8, 16, 32], **R},
    "cards": {"target": 60.0, "beta": 10.0, **R},
    "treebon": {"n": 8, "dpo": "twin", **R},
    "cd_blockwise": {"k": 8, "block": 8, "value": "long"},
    "cbs": {"tuned": "twin"},
    "beam_search": {"n": 4, "m": 2, "separator": ".", "step_tokens": 12, "value": "long"},
    "dvts": {"n": 4, "m": 2, "separator": ".", "step_tokens": 12, "value": "long"},
    "particle_filter": {"n": 8, "block": 8, "beta": 0.05, "value": "long", **R},
    "ppo_mcts": {"value": "long", "c": 100.0},
    "ts_llm": {"simulations": 8, "step_tokens": 12, "value": "long"},
    "dts": {"simulations": 16, "block": 12, **R},
    "dts_star": {"simulations": 16, "block": 12, **R},
    "darwin": {"mutations": 3, "m": 12, "mutation_tokens": 24, **R},
    "deal": {**R},
    "qalign": {"steps": 8, "beta": 10.0, **R},
    "rps": {"directions": 5, "preference": {"long": 1.0, "brevity": 0.3}},
    "rsd": {"draft": "twin", "separator": ".", "step_tokens": 12, "delta": 20.0, "value": "long"},
    "gsi": {"draft": "twin", "n": 8, "separator": ".", "step_tokens": 12, "beta": 0.1, "value": "long"},
    "refine": {**R},
    "tqstar": {"k": 4, "rollout": 4, **R},
}
TARGETS = ("best_of_n", "speculative_rejection", "qalign", "cbs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tokens", type=int, default=48, help="tokens of each answer")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=SEARCHES, default=list(SEARCHES))
    args = parser.parse_args()
    guides: dict[str, Any] = {
        "long": {"role": "program", "kind": "length", "direction": "longer", "unit": "characters"},
        "brevity": {"role": "program", "kind": "length", "direction": "shorter", "unit": "characters"},
        "twin": {"role": "lm", "model": args.model, "dtype": args.dtype},
    }
    settings = EngineSettings(
        model=args.model, dtype=args.dtype, threads=args.threads, prefix_cache=False, guides=guides
    )
    with LLM(settings=settings) as llm:
        rows = list(_measure(llm, args))
        print_table(rows)
        targets = list(_targets(llm, args))
    if targets:
        print_table(targets)
    print_json("search", rows, targets=targets, model=args.model, dtype=args.dtype, answer_tokens=args.tokens)


def _measure(llm: LLM, args: argparse.Namespace) -> Iterator[dict[str, object]]:
    decodings = {"sample": {}} | {name: SEARCHES[name] for name in args.only}
    best: dict[str, tuple[float, float, float, Result]] = {}
    for turn in range(args.rounds):
        for name, parameters in decodings.items():
            with seconds(llm) as spent:
                began = perf_counter()
                result = _answer(llm, {"strategy": name, **parameters}, args.tokens)
                timed = (perf_counter() - began, spent["forwards"], spent["draws"], result)
            best[name] = min(best.get(name, timed), timed, key=lambda each: each[0])
            _say(f"round {turn + 1} of {args.rounds}: {name} {best[name][0]:.2f} s")
    plain, one = best["sample"][0], sum(best["sample"][3].usage.model_tokens.values())
    for name, (wall, forwards, draws, result) in best.items():
        yield {
            "strategy": name,
            "seconds": wall,
            "over plain": wall / plain,
            "tokens over plain": sum(result.usage.model_tokens.values()) / one,
            "candidates": len(result.candidates),
            "forwards %": 100 * forwards / wall,
            "draws %": 100 * draws / wall,
            "orchestration %": 100 * (wall - forwards - draws) / wall,
        }


def _targets(llm: LLM, args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """What is promised of single methods, in tokens: these do not depend on the machine."""
    if not set(TARGETS) <= set(args.only):
        return
    full = _tokens(_answer(llm, {"strategy": "best_of_n", "n": 16, **R}, 256))
    some = _tokens(_answer(llm, {"strategy": "speculative_rejection", "n": 16, **R}, 256))
    yield {"target": "speculative_rejection over best_of_n, 16 x 256 tokens", "asked": 0.6, "is": some / full}
    chains = _answer(llm, {"strategy": "qalign", "steps": 32, "chains": 8, "beta": 10.0, **R}, 64)
    yield {
        "target": "qalign, 32 steps, over 32 answers of 64 tokens; 8 chains",
        "asked": 0.55,
        "is": _tokens(chains) / (8 * 32 * 64),
    }
    before = llm.stats.prompt_tokens
    beams = _answer(llm, {"strategy": "cbs", "value": "long"}, 64)
    prefilled = llm.stats.prompt_tokens - before
    yield {
        "target": "cbs 4 x 4 x 10, prefilled tokens over the prompt's",
        "asked": 1.0,
        "is": prefilled / (beams.usage.prompt_tokens - 1),
    }


def _answer(llm: LLM, decoding: Mapping[str, Any], tokens: int) -> Result:
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True, seed=1)
    messages = [{"role": "user", "content": "Tell me of the sea and of the ships that sail on it."}]
    return llm.chat([messages], sampling, decoding=decoding, progress=False)[0]  # type: ignore[list-item]


def _tokens(result: Result) -> int:
    return result.usage.model_tokens["base"]


def _say(line: str) -> None:
    if sys.stderr.isatty():
        print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
