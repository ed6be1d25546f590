"""Scoring throughput of a reward adapter through `LLM.score`, against a plain transformers forward of the same tokens.

The plain forward is that of the base alone, without adapter and head, over token ids that lie ready: in padded batches
sorted by length and one text at a time, of which the faster counts. Padding is not counted as tokens on either side.
They take turns, each in a process of its own, because two thread pools in one process slow each other down; the best
of the rounds counts, since noise only ever adds time. No two texts begin alike, so that no prefix is shared.
"""

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter

import torch
from report import print_json, print_table

Rows = Sequence[Sequence[int]]
WORDS = (
    "the a film was is very not quite good bad long calm bright dull warm plot end cast scene never always and but it"
)
TEMPLATE = "{{ messages[-1].content }}{{ eos_token }}"
RANK = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="base model, of Llama's form")
    parser.add_argument("--guide", default="demo:positivity", help="reward adapter; random: one made on the spot")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--answers", type=int, default=64)
    parser.add_argument("--words", type=int, nargs="+", default=[12, 40, 120], help="of the longest answer; the "
                        "shortest has a quarter")  # fmt: skip
    parser.add_argument("--batch", type=int, default=32, help="rows of a padded batch of the plain forward")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()

    context = get_context("spawn")
    pipes: dict[str, Connection] = {}
    for name in ("score", "plain"):
        pipes[name], theirs = context.Pipe()
        context.Process(target={"score": _score, "plain": _plain}[name], args=(theirs, args), daemon=True).start()
        pipes[name].recv()
    rows = []
    for words in args.words:
        seconds = dict.fromkeys(("score", "padded", "alone"), float("inf"))
        tokens: Rows = []
        for turn in range(args.rounds):
            pipes["score"].send(_answers(args.answers, words, seed=turn))
            tokens, spent = pipes["score"].recv()
            seconds["score"] = min(seconds["score"], spent)
            for way in ("padded", "alone"):
                pipes["plain"].send((way, tokens))
                seconds[way] = min(seconds[way], pipes["plain"].recv())
            _say(f"{words} words, round {turn + 1} of {args.rounds}: {seconds}")
        real = sum(map(len, tokens))
        rows.append(
            {
                "words": words,
                "tokens": real,
                "plain padded tok/s": real / seconds["padded"],
                "plain alone tok/s": real / seconds["alone"],
                "score tok/s": real / seconds["score"],
                "ratio": min(seconds["padded"], seconds["alone"]) / seconds["score"],
            }
        )
    for pipe in pipes.values():
        pipe.send(None)
    print_table(rows)
    print_json("scoring", rows, model=args.model, guide=args.guide, dtype=args.dtype, answers=args.answers)


def _answers(count: int, words: int, seed: int) -> list[str]:
    """Texts of a quarter to the whole of `words`; a round's texts are as long as another's, and differ."""
    lengths = [max(1, words // 4 + index * (words - words // 4) // max(1, count - 1)) for index in range(count)]
    random.Random(0).shuffle(lengths)
    draw, choice = random.Random(seed), WORDS.split()
    return [" ".join([str(draw.randrange(10**6)), *draw.choices(choice, k=length)]) for length in lengths]


def _score(pipe: Connection, args: argparse.Namespace) -> None:
    """In a process of its own: load, then answer each list of answers with its token ids and the seconds it took."""
    from trimtab import LLM, EngineSettings
    from trimtab.engine.rewards import Pair

    with tempfile.TemporaryDirectory() as folder:
        guide = _adapter(Path(folder), args.model) if args.guide == "random" else args.guide
        guides = {"reward": {"role": "reward", "model": guide}}
        settings = EngineSettings.model_validate(
            {"model": args.model, "dtype": args.dtype, "threads": args.threads, "guides": guides}
        )
        with LLM(settings=settings) as llm:
            pipe.send("ready")
            while (answers := pipe.recv()) is not None:
                pairs = [Pair(({"role": "user", "content": "Say it."},), answer) for answer in answers]
                rows = [list(llm.rewards["reward"].encode(pair)) for pair in pairs]  # type: ignore[attr-defined]
                began = perf_counter()
                llm.score("reward", pairs)
                pipe.send((rows, perf_counter() - began))


def _plain(pipe: Connection, args: argparse.Namespace) -> None:
    """The same of plain forwards, for token ids."""
    from transformers import AutoModel

    from trimtab.engine.sources import resolve

    torch.set_num_threads(args.threads)
    model = AutoModel.from_pretrained(resolve(args.model), dtype=getattr(torch, args.dtype)).eval()

    def forward(rows: Rows) -> None:
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
        mask = None
        if min(map(len, rows)) < longest:
            mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        model(input_ids=ids, attention_mask=mask, use_cache=False)

    pipe.send("ready")
    while (asked := pipe.recv()) is not None:
        way, rows = asked
        size = args.batch if way == "padded" else 1
        rows = sorted(rows, key=len)
        with torch.inference_mode():
            began = perf_counter()
            for at in range(0, len(rows), size):
                forward(rows[at : at + size])
            pipe.send(perf_counter() - began)


def _adapter(folder: Path, base: str) -> str:
    """A random LoRA of every linear layer with a score head, that reads the answer alone."""
    import json

    from safetensors.torch import save_file
    from transformers import AutoModel

    from trimtab.engine.sources import resolve

    torch.manual_seed(0)
    model = AutoModel.from_pretrained(resolve(base))
    tensors = {"base_model.model.score.weight": torch.randn(1, model.config.hidden_size) * 0.02}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            tensors[f"base_model.model.model.{path}.lora_A.weight"] = torch.randn(RANK, module.in_features) * 0.02
            tensors[f"base_model.model.model.{path}.lora_B.weight"] = torch.randn(module.out_features, RANK) * 0.02
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = sorted({key.split(".")[-3] for key in tensors if "lora" in key})
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": targets, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return str(folder)


def _say(line: str) -> None:
    if sys.stderr.isatty():
        print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
