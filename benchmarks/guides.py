"""What the demo guides do: every strategy against plain sampling, by the reward they follow and by one they never see.

Each prompt of `prompts.jsonl`, which no guide was trained on, is answered once under each seed by plain sampling and by
every strategy, with the same seed. A row tells the mean paired differences with their 95 % bootstrap intervals over
prompts. The reward is the demo's own reward model; gold is VADER's compound score.

`gold/reward` is the gold that one unit of reward brings: low where a strategy pleases the reward model and not the word
lists. `logprob` is nats per token under the base and `distinct-2` the share of different word pairs, both of which fall
where steering ruins the text. `KL` is nats per answer, of searches their bound. `time` is milliseconds per token over
plain sampling's, eight answers of full length at once, the best of the rounds: noise only adds time.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from answers import Answer, answer_all, by_prompt, logprob_per_token, measured
from gains import MEASURES, Row, fill, lines
from pydantic_core import to_jsonable_python
from report import machine, print_json, print_table

from trimtab import LLM, EngineSettings, SamplingParams
from trimtab.bench.bootstrap import paired_gain
from trimtab.bench.texts import distinct

Decoding = dict[str, Any]

STRATEGIES: dict[str, Decoding] = {
    "args": {"reward": "positivity", "w": 12.0, "k": 10},
    "cd": {"value": "positivity-value", "lam": 50.0, "k": 20},
    "cd_blockwise": {"value": "positivity-prefix", "k": 8, "block": 8},
    "vas": {"value": "positivity-td", "beta": 100.0, "k": 20},
    "genarm": {"arm": "positivity-arm", "alpha": 1.0},
    "dexperts": {"expert": "positive-lm", "antiexpert": "negative-lm", "alpha": 3.0, "p": 0.9},
    "dera": {"aligned": "aligned", "lam": 1.0},
    "control_vector": {"vector": "positivity-vector", "coeff": 3.0},
    "re_control": {"value": "positivity-control", "lr": 6.0, "n": 30},
    "best_of_n": {"reward": "positivity", "n": 8},
}
"""weights tuned by a glance at the training prompts; a value of 0.3 more is much, so that its weight is large"""
BASE_BESIDE: dict[str, Decoding] = {"control_vector": {"measure_kl": True}}
"""what lets the base read along, for its log-probabilities; left out where time is taken"""
TIMED_AT_ONCE = 8
PROMPTS = Path(__file__).with_name("prompts.jsonl")


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    decodings = {name: {"strategy": name, **STRATEGIES[name]} for name in args.strategy or STRATEGIES}
    for name, parameter, value in args.set:
        if name not in decodings:
            sys.exit(f"--set {name}.{parameter}: {name} is not measured; measured: {', '.join(decodings)}")
        decodings[name][parameter] = value
    prompts = [json.loads(line)["prompt"] for line in args.prompts.read_text().splitlines()][: args.limit]
    settings = EngineSettings(model=args.model, dtype=args.dtype, threads=args.threads, prefix_cache=False)
    with LLM(settings=settings) as llm:
        answers = _answers(llm, args, prompts, decodings)
        times = _times(llm, args, prompts, decodings)
    rows = list(_rows(answers, times, decodings, len(args.seeds)))
    table = lines(rows)
    print_table(table)
    failing = {row.strategy: [name for name in MEASURES if row.gains[name].low <= 0.0] for row in rows[1:]}
    for name, measures in failing.items():
        if measures:
            print(f"{name}: the interval of {' and of '.join(measures)} is not above 0")
    conditions = {
        "prompts": len(prompts),
        "seeds": args.seeds,
        "answer_tokens": args.tokens,
        "model": args.model,
        "dtype": args.dtype,
    }
    print_json("guides", to_jsonable_python(rows), **conditions)
    if args.markdown:
        fill(args.markdown, table, {**conditions, "commit": machine()["commit"]})
    if args.check and any(failing.values()):
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--reward", default="positivity", help="guide that scores the answers")
    parser.add_argument("--strategy", action="append", choices=STRATEGIES, help="may be repeated; absent: all")
    parser.add_argument(
        "--set", action="append", default=[], type=_setting, metavar="STRATEGY.PARAMETER=VALUE", help="may be repeated"
    )
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="JSON lines with a prompt each")
    parser.add_argument("--limit", type=int, help="take so many of the prompts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="answers to a prompt, one for each seed")
    parser.add_argument("--tokens", type=int, default=40, help="of an answer at most")
    parser.add_argument("--rounds", type=int, default=2, help="of timing; 0: none")
    parser.add_argument("--answers", type=Path, help="write every answer here as it comes, as JSON lines")
    parser.add_argument("--markdown", type=Path, help="write the table here, between its markers")
    parser.add_argument("--check", action="store_true", help="exit with 1 if an interval is not above 0")
    return parser


def _setting(text: str) -> tuple[str, str, Any]:
    """`args.w=2` as (args, w, 2); a value that is not JSON is text."""
    path, equals, value = text.partition("=")
    name, dot, parameter = path.partition(".")
    if not (equals and dot):
        raise argparse.ArgumentTypeError(f"{text!r}: write STRATEGY.PARAMETER=VALUE, as in args.w=2")
    try:
        return name, parameter, json.loads(value)
    except json.JSONDecodeError:
        return name, parameter, value


def _answers(
    llm: LLM, args: argparse.Namespace, prompts: Sequence[str], decodings: Mapping[str, Decoding]
) -> dict[str, list[Answer]]:
    """Answers by strategy, seed by seed."""
    sampling = SamplingParams(temperature=1.0, max_tokens=args.tokens, logprobs=0)
    answers: dict[str, list[Answer]] = {name: [] for name in ("plain", *decodings)}
    with ExitStack() as stack:
        file = stack.enter_context(args.answers.open("w")) if args.answers else None
        for seed in args.seeds:
            for name in answers:
                decoding = {**decodings[name], **BASE_BESIDE.get(name, {})} if name in decodings else None
                results = answer_all(llm, prompts, decoding, sampling, seed)
                new = list(measured(llm, args.reward, name, seed, prompts, results))
                answers[name] += new
                for answer in new if file else ():
                    print(json.dumps(asdict(answer)), file=file, flush=True)
                _say(f"seed {seed}: {name} answered {len(prompts)} prompts")
    return answers


def _times(
    llm: LLM, args: argparse.Namespace, prompts: Sequence[str], decodings: Mapping[str, Decoding]
) -> dict[str, float]:
    """Milliseconds per token of the answers, by strategy."""
    sampling = SamplingParams(temperature=1.0, max_tokens=args.tokens, ignore_eos=True)
    some = prompts[:TIMED_AT_ONCE]
    best: dict[str, float] = {}
    for turn in range(args.rounds):
        for name in ("plain", *decodings):
            began = perf_counter()
            answer_all(llm, some, decodings.get(name), sampling, seed=0)
            spent = (perf_counter() - began) * 1e3 / (len(some) * args.tokens)
            best[name] = min(best.get(name, spent), spent)
            _say(f"round {turn + 1} of {args.rounds}: {name} {best[name]:.1f} ms/token")
    return best


def _rows(
    answers: Mapping[str, list[Answer]],
    times: Mapping[str, float],
    decodings: Mapping[str, Decoding],
    seeds: int,
) -> Iterator[Row]:
    plain = {measure: by_prompt(answers["plain"], measure, seeds) for measure in MEASURES}
    for name, each in answers.items():
        values = {measure: by_prompt(each, measure, seeds) for measure in MEASURES}
        known = [answer.kl for answer in each if answer.kl is not None]
        yield Row(
            strategy=name,
            parameters={key: value for key, value in decodings.get(name, {}).items() if key != "strategy"},
            means={measure: float(values[measure].mean()) for measure in MEASURES},
            gains={measure: paired_gain(values[measure], plain[measure]) for measure in MEASURES},
            kl=sum(known) / len(known) if known else None,
            logprob=logprob_per_token(each),
            distinct=distinct([answer.text for answer in each], 2),
            tokens=sum(answer.tokens for answer in each) / len(each),
            time=times[name] / times["plain"] if times else None,
        )


def _say(line: str) -> None:
    if sys.stderr.isatty():
        print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
