"""How many tokens of keys and values fit a GPU: plain arithmetic over what the models' files say."""

import json
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig, PreTrainedConfig

from trimtab.engine.dtype import DType
from trimtab.engine.errors import ModelLoadError
from trimtab.engine.guides.build import brings_model
from trimtab.engine.guides.config import EmbeddingConfig, LanguageConfig, RemoteRewardConfig
from trimtab.engine.guides.folders import locate
from trimtab.engine.plan import BASE
from trimtab.engine.rewards.program import Program
from trimtab.engine.runner import READ_ROWS
from trimtab.engine.settings import EngineSettings
from trimtab.engine.sources import check_folder, resolve, safetensors_header

logger = logging.getLogger(__name__)

MIN_POOL: Final = 1024
"""tokens; a pool that holds fewer is not worth a server"""

LIBRARIES: Final = 1 << 30
"""bytes for cuBLAS, compiled kernels and captured graphs"""

SCORE_HEAD: Final = "score.weight"
"""a classifier with this weight is a decoder that scores from its pages; others keep none"""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one model takes, in bytes."""

    name: str
    weights: int
    per_token: int
    """keys and values of one token, over all layers"""
    workspace: int
    """activations and logits of its largest forward"""
    pool_tokens: int | None = None
    """of its own setting; None: it shares what is left"""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How the memory of a GPU is shared out, in bytes."""

    free: int
    """before anything is loaded"""
    share: int
    """of the whole GPU, at most"""
    allowed: int
    weights: int
    workspace: int
    per_token: int
    """keys and values of one token, over all models that share"""
    fixed: int
    """pools with a setting of their own"""
    tokens: int
    """what each pool without a setting of its own holds"""

    @property
    def line(self) -> str:
        """For a person to read."""
        fixed = f", pools of their own size {_size(self.fixed)}" if self.fixed else ""
        return (
            f"{_size(self.allowed)} of {_size(self.free)} free{self.shared}; weights {_size(self.weights)}, "
            f"workspace {_size(self.workspace)}{fixed}, {_size(self.per_token)} per token: "
            f"room for {self.tokens:,} tokens"
        )

    @property
    def shared(self) -> str:
        """What is said of a share that is less than what is free."""
        return f" (engine.gpu_share: {_size(self.share)})" if self.share < self.free else ""


def plan_memory(
    free: int,
    models: Iterable[Footprint],
    *,
    fraction: float,
    page_size: int,
    wanted: int | None = None,
    share: int | None = None,
) -> MemoryPlan:
    """Share `fraction` of `free` bytes out among `models`: weights, workspace, then pools of equally many tokens.

    `share` is the most bytes that are counted as free: others on the same GPU have the rest, loaded yet or not.
    `wanted` tokens stand in for as many as fit. Raises ModelLoadError, which holds the numbers and names the settings
    to change, when the pools would hold fewer tokens than `wanted`, or than MIN_POOL.
    """
    models = list(models)
    share = free if share is None else share
    allowed = int(min(free, share) * fraction)
    weights = sum(model.weights for model in models)
    workspace = LIBRARIES + sum(model.workspace for model in models)
    per_token = sum(model.per_token for model in models if model.pool_tokens is None)
    fixed = sum(model.per_token * (model.pool_tokens + page_size) for model in models if model.pool_tokens is not None)
    left = allowed - weights - workspace - fixed
    fits = left // per_token // page_size * page_size - page_size  # less the page that padding writes to
    plan = MemoryPlan(free, share, allowed, weights, workspace, per_token, fixed, wanted or max(fits, 0))
    if fits < (wanted or MIN_POOL):
        raise ModelLoadError(too_small(plan, fits=max(fits, 0), wanted=wanted or MIN_POOL))
    return plan


def too_small(plan: MemoryPlan, *, fits: int, wanted: int) -> str:
    """What is said when a GPU's memory does not do."""
    return (
        f"not enough GPU memory: {_size(plan.free)} are free{plan.shared} and engine.memory_fraction allows "
        f"{_size(plan.allowed)}; weights take {_size(plan.weights)}, workspace {_size(plan.workspace)}, pools of their "
        f"own size {_size(plan.fixed)} and each token of keys and values {_size(plan.per_token)}, so {fits:,} tokens "
        f"fit and {wanted:,} are wanted: set a smaller engine.pool_tokens, a higher engine.memory_fraction, dtype "
        "bfloat16, or smaller guides"
    )


@contextmanager
def memory_errors(device: torch.device, plan: MemoryPlan | None) -> Iterator[None]:
    """Turn running out of GPU memory while loading into a ModelLoadError with the numbers of `plan`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        left = _size(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else "nothing"
        planned = "" if plan is None else f" ({plan.line})"
        raise ModelLoadError(
            f"out of GPU memory while loading, with {left} free{planned}: set a smaller engine.pool_tokens, a lower "
            "engine.memory_fraction, dtype bfloat16, or smaller guides"
        ) from error


def plan_device(settings: EngineSettings, device: torch.device) -> MemoryPlan:
    """The plan for a GPU as it is now; raises ModelLoadError."""
    free, total = torch.cuda.mem_get_info(device)
    plan = plan_memory(
        free,
        survey(settings),
        fraction=settings.memory_fraction,
        page_size=settings.page_size,
        wanted=settings.pool_tokens,
        share=int(total * settings.gpu_share),
    )
    logger.info("GPU memory: %s", plan.line)
    return plan


def survey(settings: EngineSettings) -> list[Footprint]:
    """The footprints of the base, where it runs here, and of every guide; fetches what is not here yet."""
    remote, tokens = settings.trust_remote_code, max(settings.prefill_tokens, READ_ROWS)
    found = []
    if settings.remote is None:
        folder = resolve(settings.model, remote_code=remote)
        found.append(footprint(BASE, folder, settings.dtype, tokens=tokens, remote_code=remote))
    for name, config in settings.guides.items():
        if isinstance(config, Program | RemoteRewardConfig):
            continue
        if isinstance(config, EmbeddingConfig):
            place, most = resolve(config.model, remote_code=remote), config.max_batch_tokens
            found.append(footprint(name, place, config.dtype, tokens=most, scores=True, remote_code=remote))
        elif brings_model(config):
            batch = tokens if isinstance(config, LanguageConfig) else max(tokens, config.max_batch_tokens)
            found.append(
                footprint(
                    name,
                    resolve(config.model, remote_code=remote),
                    config.dtype,
                    tokens=batch,
                    pool_tokens=config.pool_tokens,
                    scores=not isinstance(config, LanguageConfig),
                    remote_code=remote,
                )
            )
        else:
            path = locate(config.model)
            files = [path] if path.is_file() else path.glob("*.safetensors")
            found.append(Footprint(name, sum(file.stat().st_size for file in files), per_token=0, workspace=0))
    return found


def footprint(
    name: str,
    folder: Path,
    dtype: DType,
    *,
    tokens: int,
    pool_tokens: int | None = None,
    scores: bool = False,
    remote_code: bool = False,
) -> Footprint:
    """What a checkpoint takes on a device when its largest forward reads `tokens` tokens."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=remote_code)
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"the config.json of {name} ({folder}) cannot be read: {error}") from error
    text = config.get_text_config()
    entries = [entry for file in check_folder(folder) for entry in json.loads(safetensors_header(file)).items()]
    number = _dtype_of(config, dtype)
    size = (number or torch.float32).itemsize
    weights = sum(_bytes(entry, number) for key, entry in entries if key != "__metadata__")
    paged = not scores or SCORE_HEAD in dict(entries)
    wide = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    # Residual stream and projections of a layer, and the three products of its gated MLP that live at once.
    activations = tokens * (4 * text.hidden_size + 3 * wide) * size
    logits = 0 if scores else READ_ROWS * text.vocab_size * (size + 12)  # and three float32 tensors that steer them
    return Footprint(name, weights, kv_bytes(text, size) if paged else 0, activations + logits, pool_tokens)


def kv_bytes(text: PreTrainedConfig, size: int) -> int:
    """Bytes of one token's keys and values over all layers, in numbers of `size` bytes."""
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    if getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False):
        heads = 1  # Falcon and GPT-BigCode
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(text.num_hidden_layers * 2 * heads * width * size)


def _dtype_of(config: PreTrainedConfig, dtype: DType) -> torch.dtype | None:
    """The dtype that weights are loaded in; None: each in its own."""
    if getattr(config, "quantization_config", None) is not None:
        return None
    wanted: Any = config.dtype if dtype == "auto" else dtype
    found: torch.dtype | None = getattr(torch, wanted) if isinstance(wanted, str) else wanted
    return found


def _bytes(entry: dict[str, Any], number: torch.dtype | None) -> int:
    """Bytes of one entry of a safetensors header, its floating-point numbers as `number`."""
    begin, end = entry["data_offsets"]
    kind = entry["dtype"]
    if number is None or "F" not in kind:
        return int(end - begin)
    found = re.search(r"\d+", kind)
    assert found is not None  # every floating-point dtype of the format names its bits
    return int((end - begin) * 8 // int(found[0]) * number.itemsize)


def _size(count: int) -> str:
    for unit, scale in (("GiB", 30), ("MiB", 20)):
        if count >= 1 << scale:
            return f"{count / (1 << scale):.1f} {unit}"
    return f"{count / 1024:.1f} KiB"
