"""What a preference does: five settings between two rewards that pull apart, by every way that can follow it.

Positivity gets the weights 0, 0.25, 0.5, 0.75 and 1, and brevity the rest. Each prompt of `prompts.jsonl` is answered
at each setting, with the same seed at all of them:

- persona: the system message says it, and guidance on the system message (cfg) makes a small model listen
- best_of_n: the best of a few answers by the weighted rewards
- genarm: the autoregressive reward model of positivity with its weight; brevity has none
- panacea: the preference scales the blocks of an adapter
- pro: best_of_n by weights that a guide infers from the prompt, which ends in a wish, from brief to cheerful in five
  steps; no wish is one that the guide was trained on

A row tells the mean of both rewards, and what the setting adds to the targeted one, positivity, over the setting
before, with a paired 95 % bootstrap interval over prompts. `front` marks the rows that no other row beats in one reward
without losing in the other. Methods whose guides are not loaded are left out.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from answers import answer_all
from gains import fill
from numpy.typing import NDArray
from pydantic_core import to_jsonable_python
from report import machine, print_json, print_table

from trimtab import LLM, EngineSettings, SamplingParams
from trimtab.bench.bootstrap import paired_gain
from trimtab.bench.records import Gain
from trimtab.engine.rewards import Pair
from trimtab.engine.vocabulary import Message

Decoding = dict[str, Any]
Floats = NDArray[np.float64]

SETTINGS = (0.0, 0.25, 0.5, 0.75, 1.0)
TARGET, OTHER = "positivity", "brevity"
SEARCH: Decoding = {"strategy": "best_of_n", "n": 4}
METHODS: dict[str, Decoding] = {
    "persona": {"strategy": "persona", "steer": [{"method": "cfg", "gamma": 3.0}]},
    "best_of_n": SEARCH,
    "genarm": {"strategy": "genarm"},
    "panacea": {"strategy": "panacea", "guide": "preferences"},
    "pro": {**SEARCH, "preference": {"infer": "pro"}},
}
GUIDES = {"genarm": "positivity-arm", "panacea": "preferences", "pro": "pro"}
"""what a method cannot do without"""
WISHES = (
    ("Use just a handful of words.", "Please say it in one quick sentence."),
    ("Say little, though a kind word is fine.", "Be concise first, and pleasant second."),
    ("Be both concise and joyful.", "Something brief that lifts my spirits, please."),
    ("Be joyful, and not too wordy.", "Above all be upbeat, and keep an eye on the length."),
    ("Be overjoyed and share every happy detail.", "Brighten my day with the loveliest answer that you have."),
)
"""how a prompt asks for each setting"""
PROMPTS = Path(__file__).with_name("prompts.jsonl")
BEGIN = "<!-- written by benchmarks/preferences.py -->"
END = "<!-- end of what benchmarks/preferences.py writes -->"


@dataclass(frozen=True, slots=True)
class Row:
    """One method at one setting."""

    method: str
    setting: float
    target: float
    """mean over all answers"""
    other: float
    gain: Gain | None
    """of the target, over the setting before; None for the first"""
    told: float | None
    """weight of the target that a guide has inferred, on average"""
    front: bool = False
    """no other row is better in one reward and no worse in the other"""


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    prompts = [json.loads(line)["prompt"] for line in args.prompts.read_text().splitlines()][: args.limit]
    settings = EngineSettings(model="demo", dtype=args.dtype, threads=args.threads)
    rows: list[Row] = []
    with LLM(settings=settings) as llm:
        for method in args.method or METHODS:
            if GUIDES.get(method, TARGET) in llm.guides:
                rows += measure(llm, method, prompts, args.seeds, args.tokens)
            else:
                print(f"{method}: left out, there is no guide {GUIDES[method]!r}")
    rows = with_front(rows)
    table = lines(rows)
    print_table(table)
    methods = dict.fromkeys(row.method for row in rows)
    rising = {method: monotone([row for row in rows if row.method == method]) for method in methods}
    for method, does in rising.items():
        print(f"{method}: {TARGET} {'rises' if does else 'does NOT rise'} at every step")
    conditions = {"prompts": len(prompts), "seeds": args.seeds, "answer_tokens": args.tokens, "dtype": args.dtype}
    print_json("preferences", to_jsonable_python(rows), **conditions)
    if args.markdown:
        fill(args.markdown, table, {**conditions, "commit": machine()["commit"]}, begin=BEGIN, end=END)
    if args.check and not all(rising.values()):
        sys.exit(1)


def measure(llm: LLM, method: str, prompts: Sequence[str], seeds: Sequence[int], tokens: int) -> list[Row]:
    """Answer all prompts at every setting."""
    sampling = SamplingParams(temperature=1.0, max_tokens=tokens)
    rows: list[Row] = []
    before: Floats | None = None
    for index, setting in enumerate(SETTINGS):
        decoding, asked = dict(METHODS[method]), list(prompts)
        if method == "pro":
            asked = [f"{prompt} {WISHES[index][i % len(WISHES[index])]}" for i, prompt in enumerate(prompts)]
        else:
            decoding["preference"] = {"weights": {TARGET: setting, OTHER: 1.0 - setting}}
        results = [result for seed in seeds for result in answer_all(llm, asked, decoding, sampling, seed)]
        texts = [result.choices[0].text for result in results]
        pairs = [Pair((Message(role="user", content=asked[i % len(asked)]),), text) for i, text in enumerate(texts)]
        scores = {
            name: np.array(llm.score(name, pairs)).reshape(len(seeds), -1).T for name in (TARGET, OTHER)
        }  # (prompts, seeds) each
        told = [result.report["preference"][TARGET] for result in results if "preference" in result.report]
        rows.append(
            Row(
                method=method,
                setting=setting,
                target=float(scores[TARGET].mean()),
                other=float(scores[OTHER].mean()),
                gain=None if before is None else paired_gain(scores[TARGET], before),
                told=float(np.mean(told)) if told else None,
            )
        )
        before = scores[TARGET]
        if sys.stderr.isatty():
            print(f"{method} at {setting:g}: {rows[-1].target:.2f}, {rows[-1].other:.1f}", file=sys.stderr)
    return rows


def monotone(rows: Sequence[Row]) -> bool:
    """Whether the mean of the target rises at every step of one method."""
    return all(row.gain.mean > 0.0 for row in rows if row.gain is not None)


def with_front(rows: Sequence[Row]) -> list[Row]:
    """The rows, with the Pareto front marked."""

    def beaten(row: Row) -> bool:
        return any(
            each.target >= row.target
            and each.other >= row.other
            and (each.target, each.other) != (row.target, row.other)
            for each in rows
        )

    return [replace(row, front=not beaten(row)) for row in rows]


def lines(rows: Sequence[Row]) -> list[Mapping[str, str]]:
    """The rows as text by column."""
    return [
        {
            "method": row.method,
            f"weight of {TARGET}": f"{row.setting:.2f}",
            "inferred": "" if row.told is None else f"{row.told:.2f}",
            TARGET: f"{row.target:.3f}",
            "over the setting before": ""
            if row.gain is None
            else f"{row.gain.mean:+.3f} [{row.gain.low:+.3f}, {row.gain.high:+.3f}]",
            OTHER: f"{row.other:.1f}",
            "front": "yes" if row.front else "",
        }
        for row in rows
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--method", action="append", choices=METHODS, help="may be repeated; absent: all")
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="JSON lines with a prompt each")
    parser.add_argument("--limit", type=int, default=32, help="take so many of the prompts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="answers to a prompt, one for each seed")
    parser.add_argument("--tokens", type=int, default=40, help="of an answer at most")
    parser.add_argument("--markdown", type=Path, help="write the table here, between its markers")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a method does not rise at every step")
    return parser


if __name__ == "__main__":
    main()
