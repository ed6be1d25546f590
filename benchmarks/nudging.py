"""Nudging a pretrained base with a small aligned model of another vocabulary: answers and time, against each alone.

Thirty-six instructions, decoded greedily. An answer counts as readable when it does not go round in circles: at most a
fifth of its four-word sequences occurred before. What counts is how many the base fails at alone, and how many of those
it answers readably when it is nudged.
`--show` prints the answers, which are there to be read. Time is per token of the base, over all instructions in one
run; each model alone answers the same instructions one by one.
"""

import argparse
import sys
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from report import print_json

from trimtab import LLM, EngineSettings, SamplingParams

INSTRUCTIONS = (
    "Give three tips for staying healthy.",
    "Write a short poem about the sea.",
    "Explain in two sentences why the sky is blue.",
    "How do I make a cup of tea?",
    "Name three animals that live in the desert and say how they find water.",
    "Write a friendly email that asks a colleague for help.",
    "What should I pack for a week in the mountains?",
    "Explain what a computer program is to a child.",
    "Give me a recipe for a simple vegetable soup.",
    "Why is it important to sleep well?",
    "Describe a rainy day in a big city.",
    "What is the difference between a lake and a river?",
    "Suggest three games for a birthday party.",
    "How can I save money at the supermarket?",
    "Tell a short story about a dog that got lost.",
    "What does a doctor do?",
    "List four uses of wood.",
    "How do plants grow?",
    "Write a thank-you note to a teacher.",
    "Give advice to someone who is nervous before an exam.",
    "Write a short speech to open a village festival.",
    "How do I teach a puppy to sit?",
    "Explain how a bicycle works.",
    "Plan a day at the museum with a friend.",
    "Describe a forest in autumn.",
    "Give tips for learning a new language.",
    "Write a letter to a friend about a journey.",
    "How can I make my room feel cosy?",
    "Why do people keep pets?",
    "Write a short dialogue between a cat and a mouse.",
    "What makes a good leader?",
    "Describe how bread is made.",
    "Give three reasons to read books.",
    "Write a short story about a lighthouse.",
    "How do I prepare for a long walk?",
    "Invite a neighbour to dinner in a short note.",
)
REPEATED = 0.2
WORDS = 4


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer and what is measured of it."""

    text: str
    tokens: int
    ended: bool
    seconds: float
    interventions: float | None

    @property
    def repeated(self) -> float:
        """Share of the sequences of four words that occurred before."""
        words = self.text.split()
        runs = [tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)]
        return 1 - len(set(runs)) / len(runs) if runs else 0.0

    @property
    def readable(self) -> bool:
        return bool(self.text.strip()) and self.repeated <= REPEATED

    @property
    def cells(self) -> tuple[str, ...]:
        return str(self.tokens), "yes" if self.ended else "no", f"{self.repeated:.0%}", "yes" if self.readable else "no"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="a pretrained model")
    parser.add_argument("--aligned", default="demo")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--gamma", type=float, default=0.4)
    parser.add_argument("--tokens", type=int, default=96, help="of an answer at most")
    parser.add_argument("--first", type=int, default=len(INSTRUCTIONS), help="take so many of the instructions")
    parser.add_argument("--show", action="store_true", help="print the answers")
    args = parser.parse_args()

    nudging = {"strategy": "nudging", "aligned": "aligned", "gamma": args.gamma}
    base = _answers(args, args.base, "plain", {"base alone": None, "nudged": nudging})
    alone = _answers(args, args.aligned, None, {"aligned alone": None})
    both = {**base, **alone}
    _print_answers(both, args.show)
    speed = {name: sum(a.seconds for a in each) / sum(a.tokens for a in each) * 1e3 for name, each in both.items()}
    rates = [answer.interventions or 0.0 for answer in both["nudged"]]
    failed = [i for i, answer in enumerate(both["base alone"]) if not answer.readable]
    summary = {
        "base alone fails": len(failed),
        "of these readable when nudged": sum(both["nudged"][i].readable for i in failed),
        "readable": {name: sum(answer.readable for answer in each) for name, each in both.items()},
        "ended": {name: sum(answer.ended for answer in each) for name, each in both.items()},
        "ms/token": {name: round(ms, 1) for name, ms in speed.items()},
        "over the slower": speed["nudged"] / max(speed["base alone"], speed["aligned alone"]),
        "intervention rate": sum(rates) / len(rates),
    }
    for name, value in summary.items():
        print(f"{name}: {value}")
    print_json("nudging", [summary], base=args.base, aligned=args.aligned, dtype=args.dtype, gamma=args.gamma)


def _answers(
    args: argparse.Namespace, model: str, template: str | None, decodings: dict[str, dict[str, Any] | None]
) -> dict[str, list[Answer]]:
    """Answers of one model under each decoding, one instruction at a time."""
    guides = {"aligned": {"role": "lm", "model": args.aligned, "dtype": args.dtype}} if len(decodings) > 1 else {}
    settings = EngineSettings(
        model=model,
        dtype=args.dtype,
        threads=args.threads,
        chat_template=template,
        guides=guides,  # type: ignore[arg-type]
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=args.tokens, stop=("\nQuestion:",))
    answers: dict[str, list[Answer]] = {name: [] for name in decodings}
    with LLM(settings=settings) as llm:
        for number, instruction in enumerate(INSTRUCTIONS[: args.first]):
            for name, decoding in decodings.items():
                began = perf_counter()
                (result,) = llm.chat(
                    [[{"role": "user", "content": instruction}]], sampling, decoding=decoding, progress=False
                )
                (choice,) = result.choices
                rate = None if choice.steering is None else choice.steering.intervention_rate
                ended = choice.finish_reason == "stop"
                answer = Answer(choice.text, len(choice.token_ids), ended, perf_counter() - began, rate)
                answers[name].append(answer)
                if sys.stderr.isatty():
                    print(f"{number + 1} of {args.first}: {name} {answer.seconds:.1f} s", file=sys.stderr)
    return answers


def _print_answers(answers: dict[str, list[Answer]], show: bool) -> None:
    """A markdown table of both, and the answers themselves if they are asked for."""
    measures = ("tokens", "ended", "repeated", "readable")
    names = ("base alone", "nudged")
    titles = ["instruction", *(f"{name}: {measure}" for name in names for measure in measures), "nudged words' share"]
    print("| " + " | ".join(titles) + " |")
    print("|" + "---|" * len(titles))
    for instruction, base, nudged in zip(INSTRUCTIONS, *(answers[name] for name in names), strict=False):
        cells = (instruction, *base.cells, *nudged.cells, f"{nudged.interventions or 0:.0%}")
        print("| " + " | ".join(cells) + " |")
    shown = INSTRUCTIONS[: len(answers["nudged"])] if show else ()
    for number, instruction in enumerate(shown):
        print(f"\n## {instruction}")
        for name, each in answers.items():
            print(f"\n[{name}]\n{each[number].text}")
    print()


if __name__ == "__main__":
    main()
