"""The `guides` of the configuration, and the rewards they name."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from trimtab.engine.rewards.base import Reward
from trimtab.engine.rewards.program import AnyProgram, Json, Length, Lexicon, ProgramReward
from trimtab.engine.sources import DType


class RewardModelConfig(BaseModel):
    """A sequence-classification model that scores answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["reward"] = "reward"
    model: str = Field(description="a folder or a hub id (org/name or org/name@revision)")
    dtype: DType = "auto"
    label: str | None = Field(default=None, description="the class that is the reward; needed from 3 classes on")
    max_batch_tokens: int = Field(default=16_384, ge=1, description="tokens of one forward, padding included")


GuideConfig = Annotated[AnyProgram | RewardModelConfig, Field(discriminator="role")]


def build_rewards(
    configs: Mapping[str, GuideConfig], *, device: str = "cpu", trust_remote_code: bool = False
) -> dict[str, Reward]:
    """Return the rewards under their names; ModelLoadError or GuideError if a model cannot serve as one."""
    rewards: dict[str, Reward] = {}
    for name, config in configs.items():
        if isinstance(config, RewardModelConfig):
            # transformers takes seconds to import, and a configuration can be read without it
            from trimtab.engine.loading import load_classifier
            from trimtab.engine.rewards.classifier import ClassifierReward

            loaded = load_classifier(
                config.model, dtype=config.dtype, device=device, trust_remote_code=trust_remote_code
            )
            rewards[name] = ClassifierReward(name, loaded, label=config.label, max_batch_tokens=config.max_batch_tokens)
        else:
            rewards[name] = ProgramReward(name, config)
    return rewards


def default_guides() -> dict[str, GuideConfig]:
    """Return the guides of a server that configures none: small programs that need no model."""
    praise = ("good", "great", "happy", "helpful", "kind", "love", "nice", "thanks", "welcome", "wonderful")
    blame = ("angry", "awful", "bad", "hate", "horrible", "sad", "stupid", "terrible", "useless", "wrong")
    return {
        "length": Length(direction="longer"),
        "brevity": Length(direction="shorter"),
        "json": Json(),
        "positivity": Lexicon(weights=dict.fromkeys(praise, 1.0) | dict.fromkeys(blame, -1.0)),
    }
