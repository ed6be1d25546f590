"""What steering costs: milliseconds per token of each strategy against plain decoding and the forwards it needs.

Guides are made on the spot from the model itself, so that every forward costs what the base's does: two copies of it,
a reward model (its decoder under a random head), random value heads, a random adapter and control vector. All run in
one process and one engine; strategies take turns, and the best of the rounds counts, since noise only adds time.

`forwards` is the time that the models' forwards took in the same steps, `over` the step over those forwards.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from report import print_json, print_table
from safetensors.torch import save_file
from timing import seconds
from transformers import AutoConfig, LlamaForSequenceClassification

from trimtab import LLM, EngineSettings, SamplingParams
from trimtab.engine.guides.heads import ValueHead
from trimtab.engine.sources import resolve

Decoding = Mapping[str, Any]
HEAD_WIDTH = 128
RANK = 16

STRATEGIES: dict[str, tuple[Decoding, str]] = {
    "genarm": ({"strategy": "genarm", "arm": "twin"}, "1.1 x (base + guide)"),
    "dera": ({"strategy": "dera", "aligned": "twin", "lam": 0.5}, "1.1 x (base + guide)"),
    "proxy_tuning": ({"strategy": "proxy_tuning", "expert": "twin", "antiexpert": "other"}, "1.1 x (base + 2 guides)"),
    "args": ({"strategy": "args", "reward": "reward", "k": 10}, "2.8 x plain at 8"),
    "vas": ({"strategy": "vas", "value": "tokens"}, "1.1 x plain"),
    "cd": ({"strategy": "cd", "value": "tokens"}, "1.1 x plain"),
    "re_control": ({"strategy": "re_control", "value": "text"}, ""),
    "control_vector": ({"strategy": "control_vector", "vector": "mood"}, ""),
    "cfg": ({"strategy": "cfg", "negative_prompt": "Be rude."}, ""),
    "adapter": ({"strategy": "genarm", "arm": "adapter"}, "1.25 x plain"),
}
MIXED = ("plain", "genarm", "dera", "vas", "cd", "re_control", "control_vector", "adapter")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="a model of Llama's form")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=24, help="tokens decoded per answer")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _say("making guides")
        settings = EngineSettings(
            model=args.model,
            dtype=args.dtype,
            threads=args.threads,
            prefix_cache=False,
            guides=_guides(resolve(args.model), Path(folder), args.dtype),  # type: ignore[arg-type]
        )
        with LLM(settings=settings) as llm:
            rows = list(_measure(llm, args))
    print_table(rows)
    print_json("steering", rows, model=args.model, dtype=args.dtype, answer_tokens=args.tokens)


def _measure(llm: LLM, args: argparse.Namespace) -> Iterator[dict[str, object]]:
    for count in args.sequences:
        decodings: dict[str, list[Decoding | None]] = {"plain": [None] * count}
        decodings |= {name: [STRATEGIES[name][0]] * count for name in args.only}
        if count == len(MIXED) and set(MIXED) <= {"plain", *args.only}:
            decodings["8 strategies"] = [STRATEGIES[name][0] if name in STRATEGIES else None for name in MIXED]
        best: dict[str, tuple[float, float]] = {}
        for turn in range(args.rounds):
            for name, each in decodings.items():
                timed = _step(llm, each, args.tokens)
                best[name] = min(best.get(name, timed), timed)
                _say(f"{count} sequences, round {turn + 1} of {args.rounds}: {name} {best[name][0] * 1e3:.1f} ms/step")
        for name, (step, forwards) in best.items():
            yield {
                "sequences": count,
                "strategy": name,
                "ms/step": step * 1e3,
                "forwards ms": forwards * 1e3,
                "over": step / forwards,
                "over plain": step / best["plain"][0],
                "target": STRATEGIES[name][1] if name in STRATEGIES else "",
            }


def _step(llm: LLM, decodings: list[Decoding | None], tokens: int) -> tuple[float, float]:
    """Seconds of one decode step, and of the forwards in it."""
    times = []
    for length in (2, tokens):
        with seconds(llm) as spent:
            began = perf_counter()
            _run(llm, decodings, length)
            times.append((perf_counter() - began, spent["forwards"]))
    steps = tokens - 2
    return (times[1][0] - times[0][0]) / steps, (times[1][1] - times[0][1]) / steps


def _run(llm: LLM, decodings: list[Decoding | None], tokens: int) -> None:
    """Answer one prompt per decoding, all in one batch."""
    from queue import SimpleQueue

    from trimtab.engine.results import Failure, Result
    from trimtab.requests import GenerationRequest

    sampling = SamplingParams(temperature=1.0, max_tokens=tokens, ignore_eos=True, seed=1)
    messages = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Tell me of the sea. " * 8})
    done: SimpleQueue[Any] = SimpleQueue()
    for decoding in decodings:
        request = GenerationRequest(messages=messages, sampling=sampling, decoding=decoding)  # type: ignore[arg-type]
        llm.submit(llm.prepare(request), object(), done.put)
    left = len(decodings)
    while left:
        for _, event in done.get():
            if isinstance(event, Failure):
                raise event.error
            left -= isinstance(event, Result)


def _guides(base: Path, folder: Path, dtype: str) -> dict[str, Any]:
    """Guides that cost what real ones do; what they say does not matter here."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(base)
    size, vocabulary = config.hidden_size, config.vocab_size
    reward = LlamaForSequenceClassification.from_pretrained(base, num_labels=1, dtype=getattr(torch, dtype))
    torch.nn.init.normal_(reward.score.weight, std=0.02)
    reward.save_pretrained(folder / "reward")
    for file in base.glob("*token*"):
        (folder / "reward" / file.name).write_bytes(file.read_bytes())
    for name, width in (("tokens", vocabulary), ("text", 1)):
        sizes = [(HEAD_WIDTH, size), (width, HEAD_WIDTH)]
        weights = [torch.randn(shape) * shape[1] ** -0.5 for shape in sizes]
        ValueHead(weights, [torch.zeros(out) for out, _ in sizes]).save(folder / f"{name}.safetensors")
    save_file({f"direction.{layer}": torch.randn(size) * 0.1 for layer in range(5, 20)}, folder / "mood.safetensors")
    _save_adapter(reward, folder / "adapter")
    return {
        "twin": {"role": "lm", "model": str(base), "dtype": dtype},
        "other": {"role": "lm", "model": str(base), "dtype": dtype},
        "reward": {"role": "reward", "model": str(folder / "reward"), "dtype": dtype},
        "tokens": {"role": "value", "model": str(folder / "tokens.safetensors")},
        "text": {"role": "value", "model": str(folder / "text.safetensors")},
        "mood": {"role": "vector", "model": str(folder / "mood.safetensors")},
        "adapter": {"role": "lm", "model": str(folder / "adapter")},
    }


def _save_adapter(model: torch.nn.Module, folder: Path) -> None:
    """A LoRA of every linear layer of the decoder's blocks, in PEFT's form."""
    tensors = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in path:
            name = f"base_model.model.{path}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, module.in_features) * 0.02
            tensors[f"{name}.lora_B.weight"] = torch.randn(module.out_features, RANK) * 0.02
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = sorted({key.split(".")[-3] for key in tensors})
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": targets, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def _say(line: str) -> None:
    if sys.stderr.isatty():
        print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
