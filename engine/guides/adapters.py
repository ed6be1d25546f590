"""Low-rank adapters of the base, from the folders that PEFT saves (LoRA, arXiv 2106.09685)."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.engine.errors import ModelLoadError
from trimtab.engine.guides.folders import BLOCKS
from trimtab.engine.sources import safetensors_header
from trimtab.engine.variants import find_linears

_FACTOR: Final = re.compile(r"base_model\.model\.(?P<path>.+)\.lora_(?P<side>[AB])(\.\w+)?\.weight")
_HEAD: Final = re.compile(r"base_model\.model\.score(\.modules_to_save(\.\w+)?)?\.weight")
_HEAD_MODULES: Final = {"score", "classifier"}  # PEFT lists both for any sequence classifier
_PLAIN_STARTS: Final = (None, True, False, "gaussian", "eva", "orthogonal")  # the others change the base's weights
_MORE: Final = (  # options under which PEFT computes more than B A x
    "use_dora",
    "lora_bias",
    "use_qalora",
    "alora_invocation_tokens",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
)
GENERAL: Final = "general"
"""the block of an adapter that no attribute scales"""
_RETRAIN: Final = "train it again without, or merge it into a full model"


@dataclass(frozen=True, eq=False, slots=True)
class LowRank:
    """One adapter: for every layer it changes, W becomes W + B A."""

    factors: Mapping[str, tuple[Tensor, Tensor]]
    """path of the linear layer: A (r, in) and B (out, r) float32, B with the scaling folded in"""
    head: Tensor | None = None
    """weight of a `score` head that was trained along, (labels, D) float32"""
    blocks: Mapping[str, int] = field(default_factory=dict)
    """rank dimensions by what they serve, in order: those that all preferences share as `general`, then each
    attribute's; empty: rows take or leave the adapter as a whole"""

    @property
    def attributes(self) -> tuple[str, ...]:
        """What a preference weighs; empty for an adapter without blocks."""
        return tuple(self.blocks)[1:]

    @property
    def even(self) -> tuple[float, ...]:
        """The scales of the blocks under a preference for all attributes alike; empty for an adapter without blocks."""
        return (1.0, *(1 / len(self.attributes) for _ in self.attributes)) if self.blocks else ()


def load_lora(folder: Path, model: PreTrainedModel) -> LowRank:
    """Read adapter_config.json and adapter_model.safetensors of a LoRA adapter of `model`, packed or not.

    Raises ModelLoadError for other kinds of adapters, parts that a low-rank term cannot express, and adapters of
    another base.
    """
    config = _config(folder)
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise _error(folder, "has no adapter_model.safetensors", "save it with safe_serialization=True")
    safetensors_header(file)
    sides: dict[str, dict[str, Tensor]] = {}
    head = None
    for key, tensor in load_file(file).items():
        if not tensor.isfinite().all():
            raise _error(folder, f"holds NaN or infinity in {key}", "take an earlier checkpoint of its training")
        if match := _FACTOR.fullmatch(key):
            sides.setdefault(match["path"], {})[match["side"]] = tensor.float()
        elif _HEAD.fullmatch(key):
            head = tensor.float()
        else:
            raise _error(folder, f"changes {key}, and only linear layers and a score head can change", _RETRAIN)
    if not sides:
        raise _error(folder, "holds no lora_A and lora_B weights", "save it again with PEFT's save_pretrained")
    shapes = {path: place.shape for path, place in find_linears(model).items()}
    factors = {}
    for path, pair in sides.items():
        if path not in shapes:
            raise _error(
                folder, f"adapts {path}, no linear layer of {type(model).__name__}", "pass the base it was trained on"
            )
        factors[path] = _scaled(folder, path, pair, shapes[path], config)
    width = model.config.get_text_config().hidden_size
    if head is not None and (head.dim() != 2 or head.shape[1] != width):
        raise _error(
            folder,
            f"has a score head of shape {tuple(head.shape)} for hidden states of {width}",
            "pass the base it was trained on",
        )
    ranks = {len(down) for down, _ in factors.values()}
    return LowRank(factors, head, _blocks(folder, ranks))


class _Divided(BaseModel):
    """What preference_blocks.json says."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    general: int = Field(ge=0)
    blocks: dict[Annotated[str, Field(min_length=1)], Annotated[int, Field(ge=1)]] = Field(min_length=1)


def _blocks(folder: Path, ranks: set[int]) -> dict[str, int]:
    """The blocks of an adapter whose layers have these ranks, the general one first; empty if it has none."""
    file = folder / BLOCKS
    if not file.is_file():
        return {}
    try:
        told = _Divided.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise _error(
            folder, f"has no readable {BLOCKS}", 'write it as {"general": 2, "blocks": {"brevity": 2, "candour": 2}}'
        ) from error
    if GENERAL in told.blocks:
        raise _error(folder, f"has a block called {GENERAL}, which is what all preferences share", "rename it")
    blocks = {GENERAL: told.general, **told.blocks}
    if ranks != {sum(blocks.values())}:
        raise _error(
            folder,
            f"has rank {', '.join(map(str, sorted(ranks)))} where its {BLOCKS} divides {sum(blocks.values())}",
            "put the files of one training run together",
        )
    return blocks


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "adapter_config.json"
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise _error(folder, "has no readable adapter_config.json", "pass the folder that PEFT saved") from error
    kind = config.get("peft_type")
    if kind != "LORA":
        raise _error(folder, f"is a {kind} adapter, and only LORA runs beside the base", "merge it into a full model")
    unknown = [name for name in _MORE if config.get(name)]
    if unknown:
        raise _error(folder, f"uses {', '.join(unknown)}, which is more than a low-rank term", _RETRAIN)
    if config.get("bias", "none") != "none":
        raise _error(folder, f"trained biases (bias={config['bias']!r})", _RETRAIN)
    if saved := sorted(set(config.get("modules_to_save") or ()) - _HEAD_MODULES):
        raise _error(folder, f"replaces whole modules ({', '.join(saved)})", _RETRAIN)
    if (start := config.get("init_lora_weights")) not in _PLAIN_STARTS:
        raise _error(
            folder,
            f"starts from {start!r}, which changes the base's own weights",
            "save it with path_initial_model_for_weight_conversion",
        )
    return dict(config)


def _scaled(
    folder: Path, path: str, pair: dict[str, Tensor], shape: tuple[int, int], config: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """A and B of one layer, B times alpha / r (rsLoRA, arXiv 2312.03732: alpha / sqrt r)."""
    if len(pair) != 2:
        raise _error(folder, f"has only one of lora_A and lora_B for {path}", "save it again with save_pretrained")
    down, up = pair["A"], pair["B"]
    outer, inner = shape
    if down.dim() != 2 or up.dim() != 2 or (up.shape[0], down.shape[1]) != shape or up.shape[1] != down.shape[0]:
        raise _error(
            folder,
            f"has A {tuple(down.shape)} and B {tuple(up.shape)} for {path}, which maps {inner} to {outer}",
            "pass the base it was trained on",
        )
    rank = _of_pattern(config.get("rank_pattern"), path, config.get("r", 8))
    if rank != len(down):
        raise _error(
            folder,
            f"has rank {len(down)} at {path} where its adapter_config.json says {rank}",
            "put the config and the weights of one training run together",
        )
    alpha = _of_pattern(config.get("alpha_pattern"), path, config.get("lora_alpha", 8))
    return down, up * (alpha / (rank**0.5 if config.get("use_rslora") else rank))


def _of_pattern(patterns: dict[str, Any] | None, path: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of `path`, as PEFT looks it up."""
    found = (value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", path))
    return next(found, default)


def _error(folder: Path, what: str, fix: str) -> ModelLoadError:
    return ModelLoadError(f"adapter folder {folder} {what}: {fix}")
