"""The sampler pass on the CPU, beside the same step in plain torch, in one run.

One guide beside the base, ordinary sampling at temperature 1. Both take turns; the best of the rounds counts, since
noise only ever adds time.
"""

import argparse
from collections.abc import Callable
from functools import partial
from time import perf_counter

import torch
from eager import eager_chain
from report import print_json, print_table

from trimtab.kernels.mixing import Aux, Placement
from trimtab.kernels.philox import Keys
from trimtab.kernels.steer_sample import steer_sample
from trimtab.kernels.survivors import RowParams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--vocab", type=int, default=49_152)
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--compiled", action="store_true", help="also with compiled loops, which needs a C++ compiler")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [
        _measure(args.rows, args.vocab, getattr(torch, dtype), statistics, args.rounds, args.compiled)
        for dtype in args.dtype
        for statistics in (False, True)
    ]
    print_table(rows)
    print_json("sampler", rows, batch=args.rows, vocab=args.vocab, guides=1, rounds=args.rounds)


@torch.inference_mode()
def _measure(
    count: int, vocab: int, dtype: torch.dtype, statistics: bool, rounds: int, compiled: bool
) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    base, guide = ((torch.randn(count, vocab, generator=generator) * 3).to(dtype) for _ in range(2))
    one = torch.ones(count)
    params = RowParams(one, torch.zeros(count, dtype=torch.int64), one, torch.zeros(count))
    keys = Keys(torch.zeros(count, dtype=torch.int64), torch.arange(count), torch.zeros(count, dtype=torch.int64))
    aux = [Aux(guide, Placement.of(range(count), [0.5] * count, count, "cpu"))]
    measured = torch.ones(count, dtype=torch.bool) if statistics else None
    weights = torch.tensor([[1.0, 0.5]]).expand(count, 2)
    sample = partial(steer_sample, base, params, keys, base_weight=one, aux=aux, logprobs=True, measured=measured)
    runs: dict[str, Callable[[], object]] = {
        "eager": partial(eager_chain, base, [guide], weights, one, statistics=statistics),
        "steer_sample": sample,
    }
    if compiled:
        runs["compiled"] = partial(sample, backend="compiled")
    for run in runs.values():
        run()  # the first one compiles
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            began = perf_counter()
            run()
            best[name] = min(best[name], perf_counter() - began)
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "statistics": statistics,
        **{f"{name} ms": seconds * 1e3 for name, seconds in best.items()},
        **{f"eager/{name}": best["eager"] / seconds for name, seconds in best.items() if name != "eager"},
    }


if __name__ == "__main__":
    main()
