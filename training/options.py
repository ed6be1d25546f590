"""What every kind of training is told; the command line is generated from these models."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trimtab.engine.dtype import DType
from trimtab.training.schedule import Schedule


class Lora(BaseModel):
    """Which layers get an adapter, and of what rank."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(8, ge=1, description="rank of the adapter")
    alpha: int = Field(16, ge=1, description="the adapter counts alpha / rank times")
    modules: str = Field("all", description="linear layers by name, joined by commas, or all of the decoder's")
    layers: str = Field("all", description="decoder layers, as 15-29; those below cost no backward pass")


class Source(BaseModel):
    """Where a guide comes from and where it goes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: Path = Field(description="folder that the guide is written to; an interrupted run there goes on")
    data: Path = Field(description="JSON Lines; training/data.py says what a line may be")
    base: str = Field("demo", description="the model that will be steered: demo, a folder, a hub id")
    dtype: DType = Field("auto", description="number format of the base's weights; auto: the checkpoint's")
    device: str = Field("auto", description="auto: cuda when there is one, else cpu")
    source: str | None = Field(None, description="where the data is from, for the card; absent: the file's name")
    licence: str = Field("unknown", description="licence of the data, for the card")


class Run(Source):
    """What is fitted step by step."""

    held_out: float = Field(0.1, gt=0.0, lt=1.0, description="share of the data that only measures")
    restart: bool = Field(False, description="forget an interrupted run in the folder")


class Sampled(BaseModel):
    """How answers are sampled where the data holds prompts alone, and what scores them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reward: str | None = Field(None, description="folder or hub id of the reward guide that scores sampled answers")
    answers: int = Field(8, ge=2, description="answers sampled for each prompt")
    max_tokens: int = Field(64, ge=1, description="tokens of a sampled answer at most")
    temperature: float = Field(1.0, gt=0.0, le=2.0, description="of the sampling")
    cache: Path | None = Field(
        None, description="folder that keeps sampled answers for other guides; absent: rollouts in the guide's own"
    )


class RewardOptions(Run):
    """Fit a reward model: an adapter with a score head, from ratings or from preferences."""

    kind: Literal["reward"] = "reward"
    prefixes: bool = Field(
        False, description="learn to score unfinished answers too, for strategies that score candidates (ratings only)"
    )
    chat_template: Path | None = Field(None, description="a Jinja file that the reward reads conversations under")
    schedule: Schedule = Schedule(epochs=3, batch=16, lr=5e-4)
    lora: Lora = Lora()


class ValueOptions(Run):
    """Fit a value head on the base's hidden states, for cd, vas, re_control and searches."""

    kind: Literal["value"] = "value"
    method: Literal["fudge", "q", "td"] = Field(
        "fudge", description="targets: the answer's reward; expected value of the next token (CD-Q); TD(lambda)"
    )
    trace: float = Field(0.95, ge=0.0, le=1.0, description="lambda of td; 0 is RE-Control's loss")
    tokens: bool = Field(False, description="one value for each token of the vocabulary, instead of one for the text")
    width: int = Field(16, ge=1, description="hidden units")
    layers: int = Field(2, ge=1, le=3, description="layers of the head")
    iterations: int = Field(
        1, ge=1, description="fits; from the second on, to answers that the last value guided (IVO)"
    )
    guidance: float = Field(
        1.0, description="lambda of cd, by which the values of tokens guide the next iteration; others choose blocks"
    )
    schedule: Schedule = Schedule(epochs=10, batch=32, lr=1e-3)
    sampled: Sampled = Sampled()

    @model_validator(mode="after")
    def _used(self) -> Self:
        given = self.model_fields_set
        if self.method == "q" and not self.tokens:
            raise ValueError("method q takes the mean over the next token: pass --tokens")
        if self.method == "q" and self.iterations > 1:
            raise ValueError("method q takes the mean under the base, and iterations are guided: use fudge or td")
        if "trace" in given and self.method != "td":
            raise ValueError("trace belongs to method td: leave it out")
        if "width" in given and self.layers == 1:
            raise ValueError("a head of one layer has no hidden units: leave width out, or pass --layers 2")
        if "guidance" in given and not (self.tokens and self.iterations > 1):
            raise ValueError("guidance is for --tokens and more than one of --iterations: leave it out")
        return self


class ArmOptions(Run):
    """Fit an autoregressive reward model, for genarm: an adapter, from preferences."""

    kind: Literal["arm"] = "arm"
    beta: float = Field(0.05, gt=0.0, description="beta_r of GenARM")
    schedule: Schedule = Schedule(epochs=3, batch=8, lr=5e-4)
    lora: Lora = Lora()
    sampled: Sampled = Sampled()


class ExpertOptions(Run):
    """Fit an expert: an adapter that writes as the data does, or prefers what the data prefers."""

    kind: Literal["expert"] = "expert"
    method: Literal["sft", "dpo"] = Field("sft", description="imitate answers, or prefer chosen ones (DPO)")
    keep: Literal["best", "worst"] = Field("best", description="sft: imitate the chosen or best answers, or the others")
    share: float = Field(0.25, gt=0.0, le=1.0, description="sft: share of the answers to imitate, by score")
    beta: float = Field(0.1, gt=0.0, description="beta of DPO")
    schedule: Schedule = Schedule(epochs=3, batch=8, lr=5e-4)
    lora: Lora = Lora()
    sampled: Sampled = Sampled()

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.method == "dpo" and {"keep", "share"} & self.model_fields_set:
            raise ValueError("keep and share choose answers to imitate: leave them out for method dpo")
        if self.method == "sft" and "beta" in self.model_fields_set:
            raise ValueError("beta is of method dpo: leave it out for sft")
        return self


class VectorOptions(Source):
    """Fit a control vector from pairs of opposite texts."""

    kind: Literal["vector"] = "vector"
    method: Literal["pca", "mean"] = Field("pca", description="first principal component of the differences, or mean")
    layers: str = Field("all", description="decoder layers that get a direction, as 8-24; all: from 1 on")
    held_out: float = Field(0.1, gt=0.0, lt=1.0, description="share of the pairs that only measures")
    seed: int = Field(0, ge=0, description="of the held-out part")


class PreferenceOptions(Run):
    """Fit weights of several rewards that depend on the prompt (PRO)."""

    kind: Literal["preference"] = "preference"
    rewards: Path = Field(description="YAML file of the rewards to weigh, written as under `guides` of a server")
    schedule: Schedule = Schedule(epochs=30, batch=16, lr=1e-2, weight_decay=0.1)


class PanaceaOptions(Run):
    """Fit an adapter whose blocks a preference over attributes scales, for panacea."""

    kind: Literal["panacea"] = "panacea"
    data: Path = Field(description="folder with preferences by each attribute, in a file NAME.jsonl each")
    block: int = Field(2, ge=1, description="rank of each attribute's block; the rest of the rank is for all of them")
    concentration: float = Field(
        1.0, gt=0.0, description="of the Dirichlet distribution that every step's preference is drawn from"
    )
    beta: float = Field(0.1, gt=0.0, description="beta of DPO")
    schedule: Schedule = Schedule(epochs=3, batch=8, lr=5e-4)
    lora: Lora = Lora()


AnyOptions = (
    RewardOptions | ValueOptions | ArmOptions | ExpertOptions | VectorOptions | PreferenceOptions | PanaceaOptions
)
