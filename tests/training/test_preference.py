"""Preference weights: targets, normalisation, and a toy task whose prompts want opposite rewards."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_folder

from trimtab.engine.guides.preference import PreferenceHead
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.settings import EngineSettings
from trimtab.llm import LLM
from trimtab.training.errors import DataError, TrainingError
from trimtab.training.losses import preference_cross_entropy
from trimtab.training.options import PreferenceOptions
from trimtab.training.preference import PreferenceTask, normalised, read_rewards, train_preference
from trimtab.training.schedule import Schedule

NAMES = ("short", "long")
REWARDS = """
short: {role: program, kind: length, direction: shorter}
long: {role: program, kind: length, direction: longer}
"""
REWARD = {
    "sum": [{"guide": name, "transform": "standardise", "samples": 0} for name in NAMES],
    "weights": "balance",
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_folder(tmp_path / "base")


def options(folder: Path, base: Path, *, seed: int = 0) -> PreferenceOptions:
    """Prompts of `!` want short answers, those of `?` long ones."""
    lines = []
    for index in range(24):
        short, long = f"{index}", f"{index} and much more of it"
        wants_short = index % 2 == 0
        chosen, rejected = (short, long) if wants_short else (long, short)
        lines.append({"prompt": "!?"[index % 2] * (index + 2), "chosen": chosen, "rejected": rejected})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "rewards.yaml").write_text(REWARDS)
    return PreferenceOptions(
        out=folder / "guide",
        data=folder / "pairs.jsonl",
        rewards=folder / "rewards.yaml",
        base=str(base),
        held_out=0.25,
        schedule=Schedule(epochs=12, batch=6, lr=0.05, patience=12, seed=seed),
    )


def test_prompts_that_want_opposite_rewards_get_them(tmp_path: Path, base: Path) -> None:
    card = train_preference(options(tmp_path, base))
    assert card.kind == "preference"
    assert card.metrics["loss"] < card.metrics["even_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert card.metrics["accuracy"] == 1.0, "the weights tell chosen from rejected"
    assert card.metrics["even_accuracy"] == 0.5, "two opposite rewards tell nothing"
    guides = {**yaml_rewards(), "balance": {"role": "preference", "model": str(tmp_path / "guide")}}
    settings = EngineSettings.model_validate({"model": str(base), "guides": guides, "pool_tokens": 1024})
    decoding = {"strategy": "best_of_n", "n": 6, "reward": REWARD}
    with LLM(settings=settings) as llm:
        prompts = [[{"role": "user", "content": text}] for text in ("!" * 30, "?" * 30)]
        results = llm.chat(prompts, SamplingParams(max_tokens=24, seed=1), decoding=decoding, progress=False)
    weights = [result.report["weights"]["balance"] for result in results]
    assert weights[0]["short"] > 0.6
    assert weights[1]["long"] > 0.6
    for result, pick in zip(results, (min, max), strict=True):
        lengths = [-each.rewards["short"] for each in result.candidates]
        (chosen,) = (each for each in result.candidates if each.choice == 0)
        assert -chosen.rewards["short"] == pick(lengths)


def yaml_rewards() -> dict[str, dict[str, str]]:
    kind = {"role": "program", "kind": "length"}
    return {"short": {**kind, "direction": "shorter"}, "long": {**kind, "direction": "longer"}}


def test_the_same_seed_gives_the_same_weights(tmp_path: Path, base: Path) -> None:
    file = tmp_path / "guide" / "preference_head.safetensors"
    train_preference(options(tmp_path, base))
    first = load_file(file)
    train_preference(options(tmp_path, base))
    assert file.is_file()
    assert all(torch.equal(first[name], value) for name, value in load_file(file).items())
    assert not (tmp_path / "guide" / "checkpoint.safetensors").exists()


def test_targets_are_the_softmax_of_the_chosen_answers_rewards() -> None:
    scores = torch.tensor([[[1.0, 0.0], [9.0, 9.0]], [[-2.0, 0.0], [9.0, 9.0]]])
    task = PreferenceTask(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), scores, [0, 1], [0])
    chance = [1 / (1 + math.exp(-1.0)), 1 / (1 + math.exp(2.0))]
    even = torch.full((2, 2), 0.5).log()
    target = torch.tensor([[chance[0], 1 - chance[0]], [chance[1], 1 - chance[1]]])
    assert task.loss([0, 1]).item() == pytest.approx(preference_cross_entropy(even, target).item())
    assert preference_cross_entropy(torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[0.5, 0.5]])).item() == (
        pytest.approx(-0.5 * math.log(0.25) - 0.5 * math.log(0.75))
    )
    assert task.loss([1]).item() != pytest.approx(0.0)
    gradient = torch.autograd.grad(task.loss([0]), task.parameters["bias"])[0]
    assert torch.allclose(gradient, torch.tensor([0.5 - chance[0], chance[0] - 0.5]))


def test_the_head_reads_states_as_they_are() -> None:
    generator = torch.Generator().manual_seed(3)
    states = torch.randn(6, 4, generator=generator) * torch.tensor([1.0, 10.0, 0.0, 0.1]) + 5.0
    task = PreferenceTask(states, torch.randn(6, 2, 3, generator=generator), [0, 1, 2, 3], [4, 5])
    with torch.no_grad():
        for value in task.parameters.values():
            value.normal_(generator=generator)
    spread = states[:4].std(dim=0, correction=0)
    spread[2] = 1.0  # it is the same everywhere
    standard = (states - states[:4].mean(dim=0)) / spread
    logits = standard @ task.parameters["weight"].T + task.parameters["bias"]
    head: PreferenceHead = task.head(("a", "b", "c"))
    assert torch.allclose(head(states), logits.softmax(-1), atol=1e-4)


def test_rewards_are_compared_over_all_answers_of_the_kept_pairs() -> None:
    scores = torch.tensor([[[1.0], [3.0]], [[5.0], [7.0]], [[100.0], [0.0]]])
    expected = (scores - 4.0) / math.sqrt(5.0)
    assert torch.allclose(normalised(scores, [0, 1], ["size"]), expected)
    with pytest.raises(DataError, match="reward 'size' gives every answer 2: leave it out"):
        normalised(torch.full((3, 2, 1), 2.0), [0, 1], ["size"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("short: {role: program, kind: length, direction: shorter}", "names 1 reward: there is something to weigh"),
        ("a: {role: reward}\nb: {role: reward, model: x}", "a.reward.model: Field required; write lines like"),
        ("- a\n- b", "Input should be a valid dictionary; write lines like"),
        ("a: [", "cannot read the rewards"),
        (None, "cannot read the rewards .*: .*No such file"),
    ],
)
def test_files_of_rewards_that_are_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "rewards.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(TrainingError, match=message):
        read_rewards(path)


def test_a_guide_that_scores_no_answers_is_refused(tmp_path: Path, base: Path) -> None:
    told = options(tmp_path, base)
    told.rewards.write_text(REWARDS + f"lm: {{role: lm, model: {base}}}\n")
    with pytest.raises(TrainingError, match=r"guide 'lm' \(role lm\) scores no answers: name rewards alone"):
        train_preference(told)
