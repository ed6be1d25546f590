"""Small runs of every kind of adapter, on a tiny base."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from trimtab.engine.guides.card import Card
from trimtab.training.arm import train_arm
from trimtab.training.expert import train_expert
from trimtab.training.options import ArmOptions, ExpertOptions, RewardOptions
from trimtab.training.reward import train_reward

PREFERENCES = [
    {"prompt": f"q{number}", "chosen": f"good{number % 3}", "rejected": "bad" + "ly" * (number % 2)}
    for number in range(12)
]
RATINGS = [{"text": f"it is {word}{number}", "score": score} for number in range(6) for word, score in
           (("good", 1.0), ("bad", -1.0))]  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A way to train: the function, its options, its data and its own settings."""

    train: Callable[[Any], Card]
    options: type[Any]
    data: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]

    def told(self, base: Path, out: Path, **changes: Any) -> Any:
        """Options of a run of two epochs of three or four steps, its data written beside `base`."""
        data = base.parent / f"data-{len(self.data)}-{'-'.join(self.data[0])}.jsonl"
        data.write_text("".join(json.dumps(line) + "\n" for line in self.data))
        schedule = {"epochs": 2, "batch": 3, "lr": 1e-2, **changes.pop("schedule", {})}
        lora = {"rank": 2, "alpha": 4, **changes.pop("lora", {})}
        given = {"out": out, "data": data, "base": str(base), "device": "cpu", **self.settings, **changes}
        return self.options.model_validate(given | {"schedule": schedule, "lora": lora})

    def run(self, base: Path, out: Path, **changes: Any) -> Card:
        return self.train(self.told(base, out, **changes))


KINDS = {
    "ratings": Kind(train_reward, RewardOptions, RATINGS, {}),
    "prefixes": Kind(train_reward, RewardOptions, RATINGS, {"prefixes": True}),
    "preferences": Kind(train_reward, RewardOptions, PREFERENCES, {}),
    "arm": Kind(train_arm, ArmOptions, PREFERENCES, {}),
    "sft": Kind(train_expert, ExpertOptions, PREFERENCES, {"method": "sft"}),
    "dpo": Kind(train_expert, ExpertOptions, PREFERENCES, {"method": "dpo"}),
}


def weights(out: Path) -> bytes:
    """What was trained, byte for byte."""
    return (out / "adapter_model.safetensors").read_bytes()


def tensors(out: Path) -> dict[str, Tensor]:
    return load_file(out / "adapter_model.safetensors")
