"""What a search costs over a base that another process serves, beside the same search over a base of its own.

Both bases are the same model on the same cores, with the prefix cache on, and they take turns. Answers must be the same
to the token where the numbers are (float32); in bfloat16 they part now and then, and the length is fixed.
"""

import argparse
from statistics import median
from time import perf_counter

import torch
from report import print_json, print_table

from trimtab import LLM, EngineSettings, SamplingParams
from trimtab.bench.serve import served
from trimtab.engine.remote.settings import RemoteSettings
from trimtab.engine.vocabulary import Message

PROMPT = "Tell me, in a friendly voice and at some length, what a trim tab does and why a large ship needs one."
TALK = [Message(role="user", content=PROMPT)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--segment", type=int, default=32, help="tokens of a segment")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of each answer")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    segment = args.segment
    searches = {
        "best_of_n": {"strategy": "best_of_n", "n": 4, "reward": "lexicon"},
        "cd_blockwise": {"strategy": "cd_blockwise", "k": 4, "block": segment, "value": "lexicon"},
        "cbs": {"strategy": "cbs", "w": 2, "k": 2, "chunk": segment, "value": "lexicon"},
        "particle_filter": {"strategy": "particle_filter", "n": 4, "block": segment, "reward": "lexicon"},
    }
    programs = EngineSettings(model="none").guides  # the rewards that every model has
    local = EngineSettings(model=args.model, dtype=args.dtype, threads=args.threads, guides=programs)
    own = {"engine.dtype": args.dtype, "engine.threads": args.threads}
    rows = []
    with (
        served(args.model, own) as server,
        LLM(settings=local) as here,
        LLM(settings=local.model_copy(update={"remote": RemoteSettings(url=server.url)})) as remote,
    ):
        for name, decoding in searches.items():
            times: dict[str, list[float]] = {"here": [], "remote": []}
            same = True
            for seed in range(args.rounds + 1):
                answers = []
                places = (("here", here), ("remote", remote))
                for place, llm in places if seed % 2 else places[::-1]:
                    sampling = SamplingParams(seed=seed, max_tokens=args.tokens, ignore_eos=True)
                    began = perf_counter()
                    (result,) = llm.chat([TALK], sampling, decoding=decoding, progress=False)
                    if seed:  # the first fills caches
                        times[place].append(perf_counter() - began)
                    answers.append(result.choices[0].token_ids)
                same &= answers[0] == answers[1]
            ratios = [far / near for near, far in zip(times["here"], times["remote"], strict=True)]
            rows.append(
                {
                    "search": name,
                    "here s": round(median(times["here"]), 3),
                    "remote s": round(median(times["remote"]), 3),
                    "remote / here": round(median(ratios), 3),
                    "limit": 1.15 if "block" in decoding or "chunk" in decoding else None,
                    "same answers": same,
                }
            )
    print_table(rows)
    print_json("remote", rows, **vars(args))


if __name__ == "__main__":
    main()
