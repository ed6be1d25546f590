"""What `urial` adds to a request once its constant prefix is in the page cache: latency relative to a plain chat.

Both forms of every prompt are asked one at a time in one engine, in turns, with answers of equal length. No prompt
comes twice, so that only the constant part is found in the cache. `over plain` is the geometric mean of the prompts'
ratios of latency, `cpu over` that of the time on processors, which other programs on the machine disturb less; each
with its 95 % interval over prompts. The target is at most 1.05.
"""

import argparse
import math
import sys
from statistics import fmean
from time import perf_counter, process_time
from typing import NamedTuple

import torch
from report import print_json, print_table

from trimtab import LLM, EngineSettings, SamplingParams
from trimtab.requests import GenerationRequest

FORMS = {"plain": None, "urial": {"strategy": "urial"}}
SUBJECTS = ("bread", "glass", "rivers", "clocks", "bridges", "salt", "sleep", "maps", "wool", "steel", "tides", "paper")
TARGET = 1.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--pairs", type=int, default=12, help="prompts, each asked in both forms")
    args = parser.parse_args()
    settings = EngineSettings(model=args.model, dtype=args.dtype, threads=args.threads, guides={})
    turns: list[dict[str, Asked]] = []
    with LLM(settings=settings) as llm:
        for number in range(-1, args.pairs):  # the first stores the prefix and warms up
            turn = {form: _ask(llm, form, number, args.tokens) for form in sorted(FORMS, reverse=bool(number % 2))}
            if number >= 0:
                turns.append(turn)
                print(f"prompt {number + 1}: {turn['urial'].wall / turn['plain'].wall:.3f}", file=sys.stderr)
    rows: list[dict[str, object]] = []
    for form in FORMS:
        row: dict[str, object] = {
            "form": form,
            "ms": 1e3 * fmean(turn[form].wall for turn in turns),
            "cpu ms": 1e3 * fmean(turn[form].cpu for turn in turns),
            "cached tokens": min(turn[form].cached for turn in turns),
        }
        for title, clock in (("over plain", "wall"), ("cpu over", "cpu")):
            mean, low, high = _interval([getattr(turn[form], clock) / getattr(turn["plain"], clock) for turn in turns])
            row |= {title: mean, f"{title} interval": f"{low:.3f} to {high:.3f}"}
        rows.append(row | {"target": TARGET})
    print_table(rows)
    print_json("urial", rows, model=args.model, dtype=args.dtype, answer_tokens=args.tokens, prompts=len(turns))


class Asked(NamedTuple):
    """What one request took, seconds."""

    wall: float
    cpu: float
    cached: int
    """tokens of its prompt"""


def _ask(llm: LLM, form: str, number: int, tokens: int) -> Asked:
    """Ask a question that no other request asks, and read all of the answer."""
    subject = SUBJECTS[number % len(SUBJECTS)]
    question = f"{number}: Tell me what people ought to know about {subject}, and how {subject} came to be used."
    markers = {id_: -100.0 for id_ in range(llm.vocabulary.size) if llm.vocabulary.token_bytes(id_).strip() == b"#"}
    sampling = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, logit_bias=markers)
    request = GenerationRequest(
        messages=({"role": "user", "content": question},), sampling=sampling, decoding=FORMS[form]
    )
    began, worked = perf_counter(), process_time()
    (result,) = llm._run([request], False)
    took = Asked(perf_counter() - began, process_time() - worked, result.usage.cached_tokens)
    assert len(result.choices[0].token_ids) == tokens, "an answer ended early"
    return took


def _interval(ratios: list[float]) -> tuple[float, float, float]:
    """The geometric mean, and the ends of its 95 % interval."""
    logs = torch.tensor([math.log(ratio) for ratio in ratios], dtype=torch.float64)
    mean, error = logs.mean().item(), logs.std().item() / math.sqrt(len(ratios))
    return math.exp(mean), math.exp(mean - 2 * error), math.exp(mean + 2 * error)


if __name__ == "__main__":
    main()
