"""The autoregressive reward: by the real trainer, it tilts the base as the reward that the preferences come from."""

import json
import math
import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import torch
from exact import total_variation
from folders import merged_folder
from letters import ANSWERS, LETTERS, letters_folder
from plain import Plain
from taught import KINDS, weights
from tiny import tiny_folder
from toy import byte_tokenizer

from trimtab.training.arm import train_arm
from trimtab.training.options import ArmOptions, Lora
from trimtab.training.schedule import Schedule

REWARD = {"a": 0.0, "b": 1.0, "c": -1.0}
BETA_R, BETA = 0.5, 0.8
COPIES = 4


def reward(answer: str) -> float:
    return math.fsum(REWARD[letter] for letter in answer)


def bradley_terry_lines() -> list[str]:
    """Every pair of answers, each way as often as Bradley-Terry has it, under prompts that mean nothing."""
    dice, lines = random.Random(0), []
    for first, second in combinations(ANSWERS, 2):
        wins = COPIES / (1.0 + math.exp(reward(second) - reward(first)))
        count = int(wins) + (dice.random() < wins % 1.0)
        for copy in range(COPIES):
            chosen, rejected = (first, second) if copy < count else (second, first)
            lines.append(json.dumps({"prompt": dice.choice("opqrstuv"), "chosen": chosen, "rejected": rejected}))
    return lines


def answer_logprobs(model: Plain, prompt: Sequence[int]) -> torch.Tensor:
    """log p(letter | prompt, letters before) for every answer, (27, 3) float64."""
    rows = torch.tensor([[*prompt, *byte_tokenizer().encode(answer)] for answer in ANSWERS])
    every = model.model(input_ids=rows).logits.double().log_softmax(dim=-1)
    return every[:, len(prompt) - 1 : -1].gather(2, rows[:, len(prompt) :, None])[..., 0]


def steered_law(base: torch.Tensor, arm: torch.Tensor, alpha: float) -> dict[str, float]:
    """The law of genarm, sum over the three letters at every step: all else has no probability to speak of."""
    score = dict(zip(ANSWERS, (base + alpha * arm).tolist(), strict=True))
    law = {}
    for answer in ANSWERS:
        p = 1.0
        for place in range(3):
            beside = [answer[:place] + letter + answer[place + 1 :] for letter in LETTERS]
            p *= math.exp(score[answer][place]) / math.fsum(math.exp(score[each][place]) for each in beside)
        law[answer] = p
    return law


def test_it_recovers_the_tilted_distribution(tmp_path: Path) -> None:
    base, data = letters_folder(tmp_path / "base"), tmp_path / "data.jsonl"
    data.write_text("\n".join(bradley_terry_lines()))
    train_arm(
        ArmOptions(
            out=tmp_path / "arm",
            data=data,
            base=str(base),
            device="cpu",
            beta=BETA_R,
            schedule=Schedule(epochs=3, batch=64, lr=5e-3),
            lora=Lora(rank=4, alpha=8),
        )
    )
    prompt = byte_tokenizer().encode("<user>q\n<assistant>")
    own = answer_logprobs(Plain(base), prompt)
    arm = answer_logprobs(Plain(merged_folder(tmp_path / "merged", base, tmp_path / "arm")), prompt)
    tilted = {
        answer: math.exp(logprob + reward(answer) / BETA)
        for answer, logprob in zip(ANSWERS, own.sum(dim=1).tolist(), strict=True)
    }
    tilted = {answer: weight / math.fsum(tilted.values()) for answer, weight in tilted.items()}
    far = {alpha: total_variation(steered_law(own, arm, alpha), tilted) for alpha in (0.0, BETA_R / BETA, 1.0)}
    assert far[BETA_R / BETA] < 0.05, f"total variation distance {far[BETA_R / BETA]:.4f}"
    # It is alpha that makes it so: the base is far away, and so is another strength.
    assert far[0.0] > 0.3, f"total variation distance {far[0.0]:.4f}"
    assert far[1.0] > 0.1, f"total variation distance {far[1.0]:.4f}"


def test_card_tells_how_well_it_ranks(tmp_path: Path) -> None:
    card = KINDS["arm"].run(tiny_folder(tmp_path / "base"), tmp_path / "arm", schedule={"epochs": 4})
    assert (card.kind, card.policy) == ("arm", None)
    assert card.metrics.keys() == {"train_loss", "loss", "accuracy", "margin", "calibration_error"}
    assert card.metrics["accuracy"] == 1.0
    assert card.metrics["loss"] < math.log(2)  # of a coin


def test_beta_changes_the_result(tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base")
    KINDS["arm"].run(base, tmp_path / "one")
    KINDS["arm"].run(base, tmp_path / "other", beta=0.5)
    assert weights(tmp_path / "one") != weights(tmp_path / "other")
