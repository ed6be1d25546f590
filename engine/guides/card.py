"""The card in a guide's folder: what it is, what it was trained on, and for which base."""

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, ValidationError

from trimtab.engine.errors import ModelLoadError

if TYPE_CHECKING:  # they take seconds to import; the defaults of the settings read cards without them
    from torch import Tensor
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

CARD: Final = "card.json"
Kind = Literal["reward", "value", "arm", "expert", "vector", "preference", "panacea"]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]

_SHAPES: Final = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "tie_word_embeddings",
)
_ROWS: Final = 64  # of the embedding that enter the digest of the weights
_SMALLEST: Final = 2.0**-14  # float16 rounds what is smaller, and bfloat16 does not


class BaseIdentity(BaseModel):
    """Which base a guide belongs to; see `identity`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(description="as it was named: demo, a folder, a hub id, ...")
    config: Digest = Field(description="of what fixes the shapes")
    weights: Digest = Field(description="of samples of the weights")

    def __str__(self) -> str:
        return f"{self.source!r} (config {self.config}, weights {self.weights})"


class Card(BaseModel):
    """What a guide's folder says about it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    kind: Kind
    base: BaseIdentity
    data: str = Field(description="what it was trained on")
    licence: str = Field(description="of the data")
    policy: str | None = Field(None, description="whose answers the rollouts are; absent: it saw none")
    metrics: dict[str, FiniteFloat] = Field(description="on the held-out part of the data")
    training: dict[str, JsonValue] = Field(description="the settings and seeds of its training")
    version: str = Field(description="of trimtab")

    def save(self, folder: Path) -> None:
        """Write card.json into `folder`, which exists."""
        (folder / CARD).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def load(folder: Path) -> "Card | None":
        """The card in `folder`, None if there is none; ModelLoadError if it cannot be read."""
        file = folder / CARD
        if not file.is_file():
            return None
        try:
            return Card.model_validate_json(file.read_text(encoding="utf-8"))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise ModelLoadError(
                f"{file} is no card of a guide ({where}: {first['msg']}): train the guide again, or take the card "
                "out to load it unchecked"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise ModelLoadError(f"{file} cannot be read ({error}): train the guide again, or copy it anew") from error

    def check(self, served: BaseIdentity, guide: str) -> None:
        """Compare the guide's base with the one that is served.

        Raises ModelLoadError for a base of other shapes; other weights of the same shapes are logged as a warning.
        """
        if self.base.config != served.config:
            raise ModelLoadError(
                f"it was trained for the base {self.base} and this one is {served}: serve the base it was trained on, "
                f"or train it again with trimtab train ... --base {served.source}"
            )
        if self.base.weights != served.weights:
            log.warning(
                "guide %r was trained for the base %s and this one, %s, has other weights: expect it to steer less "
                "well, or train it again for this base",
                guide,
                self.base,
                served,
            )


def identity(source: str, model: "PreTrainedModel") -> BaseIdentity:
    """Tell which base `model` is, packed or not, in whatever dtype it was loaded.

    `config` does not depend on the version of transformers, and `weights` is the same for a bfloat16 checkpoint in
    every dtype: both are read off the model, never off its files.
    """
    config = model.config.get_text_config()
    shapes = {name: getattr(config, name, None) for name in _SHAPES}
    canonical = json.dumps(shapes, sort_keys=True, separators=(",", ":"))
    weights = hashlib.sha256()
    for sample in _samples(model):
        rounded = sample.detach().bfloat16().float().cpu()
        weights.update(rounded.masked_fill(rounded.abs() < _SMALLEST, 0.0).numpy().tobytes())
    return BaseIdentity(
        source=source, config=hashlib.sha256(canonical.encode()).hexdigest()[:16], weights=weights.hexdigest()[:16]
    )


def _samples(model: "PreTrainedModel") -> "list[Tensor]":
    """The first rows of the embedding and the final norm: tensors that packing keeps and adapters leave alone."""
    (embedding,) = model.get_input_embeddings().parameters()
    parts = (part.parameters(recurse=False) for part in model.get_decoder().children())
    norms = [parameter for part in parts for parameter in part if parameter.dim() == 1]
    return [embedding[:_ROWS], *norms]
