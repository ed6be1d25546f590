"""vLLM's answers through `vllm.LLM`: `python offline.py FOLDER` writes FOLDER/theirs.json.

All requests at once, with room for a part of them, so that some are preempted and come back.
"""

import json
import sys
from pathlib import Path

import yaml
from cases import CASES, LONGEST, TOKENS
from vllm import LLM, SamplingParams


def main(place: Path) -> None:
    """Answer every prompt in every way, with a way of abstaining beside."""
    prompts = json.loads((place / "ours.json").read_text())["prompts"]
    base = yaml.safe_load((place / "trimtab.yaml").read_text())["engine"]["model"]
    llm = LLM(
        base,
        dtype="float32",
        enforce_eager=True,
        max_model_len=LONGEST,
        max_num_seqs=48,
        max_num_batched_tokens=LONGEST,
        block_size=32,
        num_gpu_blocks_override=40,
        disable_log_stats=False,
    )
    extras = {case.name: xargs(case.decoding, case.penalties) for case in CASES}
    extras["abstain always"] = {"trimtab_abstain_below": 1.0}
    extras["abstain never"] = {"trimtab_abstain_below": 1e-9}
    asked = [(name, each) for each in prompts for name in extras]
    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for _, prompt in asked],
        [SamplingParams(temperature=0.0, max_tokens=TOKENS, extra_args=extras[name]) for name, _ in asked],
        use_tqdm=False,
    )
    answers: dict[str, list[list[int]]] = {name: [] for name in extras}
    for (name, _), output in zip(asked, outputs, strict=True):
        answers[name].append(list(output.outputs[0].token_ids))
    preempted = sum(each.value for each in llm.get_metrics() if each.name == "vllm:num_preemptions")
    (place / "theirs.json").write_text(json.dumps({"answers": answers, "preempted": preempted}))


def xargs(decoding: dict[str, object] | None, penalties: dict[str, float]) -> dict[str, object]:
    """The extra arguments of a request, as over HTTP: scalars and JSON as text."""
    told: dict[str, object] = {f"trimtab_{name}": value for name, value in penalties.items()}
    return told if decoding is None else {**told, "trimtab": json.dumps(decoding)}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
