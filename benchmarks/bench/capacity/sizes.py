"""How large a model is: by a name that is known, from its config, or as a mix file says."""

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from trimtab.bench.capacity.naming import unknown
from trimtab.bench.errors import BenchError
from trimtab.bench.records import Record

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "fp8": 1, "int8": 1}

OTHER = ("num_local_experts", "num_experts", "n_routed_experts", "quantization_config")
"""keys of configs whose models have experts or quantised weights, which the shapes alone do not size"""


class Size(Record):
    """Of one model."""

    parameters: float = Field(gt=0)
    layers: int = Field(ge=1)
    hidden: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_size: int = Field(ge=1)
    dtype: Literal["float32", "float16", "bfloat16", "fp8", "int8"] = "bfloat16"
    kv_dtype: Literal["float32", "float16", "bfloat16", "fp8", "int8"] | None = None
    """None: as the weights, and 16 bits where they have 8"""

    @property
    def weights(self) -> float:
        """Bytes."""
        return self.parameters * BYTES[self.dtype]

    @property
    def kv(self) -> float:
        """Bytes of keys and values of one token."""
        each = BYTES[self.kv_dtype] if self.kv_dtype is not None else max(2, BYTES[self.dtype])
        return 2.0 * self.layers * self.kv_heads * self.head_size * each


@cache
def known() -> dict[str, Size]:
    """The sizes that come with trimtab, by name."""
    text = (resources.files("trimtab.bench") / "data" / "models.yaml").read_text(encoding="utf-8")
    return {name: Size.model_validate(each) for name, each in yaml.safe_load(text).items()}


def size_of(model: str | Size, path: str) -> Size:
    """The size of what a mix file has at `path`; raises BenchError that names it."""
    if isinstance(model, Size):
        return model
    if model in known():
        return known()[model]
    if Path(model).expanduser().is_dir() or "/" in model:
        return _read(_config(model, path), path)
    raise BenchError(
        f"{path}: {unknown('model', model, known())}; a folder, a hub id (org/name) or an object with "
        f"{', '.join(Size.model_fields)} will do too"
    )


def _config(source: str, path: str) -> dict[str, Any]:
    """The config.json of a folder or a hub repository."""
    try:
        if Path(source).expanduser().is_dir():
            file = Path(source).expanduser() / "config.json"
        else:
            from huggingface_hub import hf_hub_download

            file = Path(hf_hub_download(source, "config.json"))
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError(
            f"{path}: the config.json of {source!r} cannot be read ({type(error).__name__}): write the size out, as "
            f"{{{', '.join(Size.model_fields)}}}"
        ) from None
    return config


def _read(config: dict[str, Any], path: str) -> Size:
    """The size of a dense decoder of the Llama shape; raises BenchError for configs that are of others."""
    for key in OTHER:
        if config.get(key):
            raise BenchError(
                f"{path}: its config.json has {key!r}, so its shapes do not tell its size: write the size out"
            )
    try:
        hidden, layers, heads = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
        inner, vocabulary = config["intermediate_size"], config["vocab_size"]
    except KeyError as missing:
        raise BenchError(f"{path}: its config.json has no {missing}: write the size out") from None
    kv_heads = config.get("num_key_value_heads") or heads
    head = config.get("head_dim") or hidden // heads
    layer = 2 * hidden * head * (heads + kv_heads) + 3 * hidden * inner
    tables = vocabulary * hidden * (1 if config.get("tie_word_embeddings") else 2)
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    return Size(
        parameters=layers * layer + tables,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head,
        dtype=dtype if dtype in BYTES else "bfloat16",
    )
