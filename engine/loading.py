"""Load a frozen transformers model and its tokenizer, checked for what the engine relies on."""

import hashlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
)
from transformers.utils import logging as transformers_logging

from trimtab.engine.dtype import DType
from trimtab.engine.errors import ModelLoadError
from trimtab.engine.sources import check_folder, resolve, safetensors_header

log = logging.getLogger(__name__)

_SAMPLES: Final = 64  # spots of each weight file that enter the fingerprint
_LONG_LOAD: Final = 2 << 30  # bytes of weights from which a progress bar is worth its line
_POOLER: Final = "pooler."  # a layer for classification, which vectors of texts are read in front of
_ATTENTION: Final = frozenset({"full_attention", "sliding_attention", "chunked_attention"})


@dataclass(frozen=True)
class LoadedModel:
    """A frozen model in evaluation mode; every field is filled by the function that loads it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    fingerprint: str
    """of config and weights; the same in every run, different for other weights of the same shape"""
    dtype: torch.dtype
    context_length: int
    eos_ids: frozenset[int]

    @property
    def embedding_rows(self) -> int:
        """How many ids the model can read."""
        embedding = self.model.get_input_embeddings()
        assert isinstance(embedding, torch.nn.Embedding)
        return embedding.num_embeddings


def load_causal_lm(
    source: str, *, dtype: DType = "auto", device: str | torch.device = "cpu", trust_remote_code: bool = False
) -> LoadedModel:
    """Load a decoder-only language model; `auto` is the dtype of the checkpoint, on every device.

    Raises ModelLoadError for sources that cannot be had and for models the engine cannot run:
    encoder-decoders, encoders, and models with recurrent state.
    """
    folder = resolve(source, remote_code=trust_remote_code)
    config = _config(source, folder, trust_remote_code)
    _refuse_unsupported(source, config, MODEL_FOR_CAUSAL_LM_MAPPING)
    heads = config.architectures or []
    if heads and not any(name.endswith(("CausalLM", "LMHeadModel", "ConditionalGeneration")) for name in heads):
        raise ModelLoadError(f"model {source!r} is a {heads[0]}: a base model needs a causal LM head")
    if getattr(config, "is_decoder", None) is False:
        raise ModelLoadError(f"model {source!r} ({config.model_type}) is an encoder: pass a causal LM")
    model = _weights(AutoModelForCausalLM, source, folder, dtype, device, trust_remote_code)
    if not isinstance(model.get_output_embeddings(), torch.nn.Linear):
        raise ModelLoadError(f"model {source!r} ({type(model).__name__}) has no linear LM head")
    return _loaded(model, source, folder, trust_remote_code, _within_window(model, source))


def load_classifier(
    source: str, *, dtype: DType = "auto", device: str | torch.device = "cpu", trust_remote_code: bool = False
) -> LoadedModel:
    """Load a sequence-classification model: a reward model or any classifier of texts.

    Raises ModelLoadError for sources that cannot be had, for checkpoints without a trained head,
    encoder-decoders and models with recurrent state.
    """
    folder = resolve(source, remote_code=trust_remote_code)
    config = _config(source, folder, trust_remote_code)
    _refuse_unsupported(source, config, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING)
    model = _weights(AutoModelForSequenceClassification, source, folder, dtype, device, trust_remote_code)
    return _loaded(model, source, folder, trust_remote_code, _positions(model, source))


def load_encoder(
    source: str,
    folder: Path,
    *,
    dtype: DType = "auto",
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load an encoder or a decoder without its head from `folder`, to which `source` was resolved.

    Raises ModelLoadError for checkpoints that lack weights, encoder-decoders and models with recurrent state.
    """
    config = _config(source, folder, trust_remote_code)
    _refuse_unsupported(source, config, MODEL_MAPPING)
    model = _weights(AutoModel, source, folder, dtype, device, trust_remote_code, unread=_POOLER)
    return _loaded(model, source, folder, trust_remote_code, _positions(model, source))


@dataclass(frozen=True)
class LoadedTokenizer:
    """What is known of a model without its weights."""

    tokenizer: PreTrainedTokenizerBase
    rows: int
    """ids that the model can read, as its config says"""
    context_length: int
    eos_ids: frozenset[int]


def load_tokenizer(source: str, *, trust_remote_code: bool = False) -> LoadedTokenizer:
    """Load the tokenizer and the config of a language model; its weights are neither needed nor fetched.

    Raises ModelLoadError for sources that cannot be had.
    """
    folder = resolve(source, remote_code=trust_remote_code, weights=False)
    config = _config(source, folder, trust_remote_code)
    with _one_line_errors(source):
        has_own = (folder / "generation_config.json").is_file()
        generation = GenerationConfig.from_pretrained(folder, local_files_only=True) if has_own else None
    text = config.get_text_config()
    return LoadedTokenizer(
        tokenizer=_tokenizer(source, folder, trust_remote_code),
        rows=text.vocab_size,
        context_length=_stated_length(config, source),
        eos_ids=_eos_ids(generation, config, text),
    )


def is_decoder(config: PreTrainedConfig) -> bool:
    """Whether tokens of such a model see those before them alone."""
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and getattr(config, "is_decoder", None) is not False


def fingerprint(folder: Path) -> str:
    """Return 16 hex digits over config, tensor names and shapes, and samples spread over the weights."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in check_folder(folder):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        digest.update(safetensors_header(file))
        with file.open("rb") as stream:
            for sample in range(_SAMPLES):
                stream.seek(sample * size // _SAMPLES)
                digest.update(stream.read(4096))
    return digest.hexdigest()[:16]


def _config(source: str, folder: Path, trust_remote_code: bool) -> PreTrainedConfig:
    with _one_line_errors(source):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    return config


def _refuse_unsupported(source: str, config: PreTrainedConfig, classes: Any) -> None:
    name = f"model {source!r} ({config.model_type})"
    if config.is_encoder_decoder:
        raise ModelLoadError(f"{name} is an encoder-decoder: pass a decoder-only model")
    model_class = classes.get(type(config), None)  # None for a model that brings its own code
    stateful = set(_layer_types(config)) - _ATTENTION - {"sparse", "dense"}
    if stateful or (model_class is not None and model_class._is_stateful):
        what = ", ".join(sorted(stateful)) or "a recurrent state"
        raise ModelLoadError(
            f"{name} has layers without a plain key-value cache ({what}): pass an attention-only model"
        )


def _weights(
    auto: Any,
    source: str,
    folder: Path,
    dtype: DType,
    device: str | torch.device,
    trust_remote_code: bool,
    *,
    unread: str | None = None,
) -> PreTrainedModel:
    long = sum(file.stat().st_size for file in check_folder(folder)) >= _LONG_LOAD
    with _one_line_errors(source), _progress(long and sys.stderr.isatty()):
        model, report = auto.from_pretrained(
            folder,
            dtype="auto" if dtype == "auto" else getattr(torch, dtype),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    if missing := sorted(key for key in report["missing_keys"] if unread is None or not key.startswith(unread)):
        raise ModelLoadError(
            f"model {source!r} lacks the weights {', '.join(missing[:3])} of a {type(model).__name__}: "
            "pass a checkpoint that was trained with this head"
        )
    if not isinstance(model.get_input_embeddings(), torch.nn.Embedding):
        raise ModelLoadError(f"model {source!r} ({type(model).__name__}) has no plain token embedding")
    loaded: PreTrainedModel = model.to(device).eval().requires_grad_(False)
    return loaded


def _loaded(
    model: PreTrainedModel, source: str, folder: Path, trust_remote_code: bool, context_length: int
) -> LoadedModel:
    return LoadedModel(
        model=model,
        tokenizer=_tokenizer(source, folder, trust_remote_code),
        source=source,
        fingerprint=fingerprint(folder),
        dtype=model.dtype,
        context_length=context_length,
        eos_ids=_eos_ids(getattr(model, "generation_config", None), model.config, model.config.get_text_config()),
    )


def _tokenizer(source: str, folder: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    with _one_line_errors(source):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    if not tokenizer.is_fast:
        raise ModelLoadError(f"model {source!r} has no fast tokenizer: add a tokenizer.json to its folder")
    return tokenizer


def _stated_length(config: PreTrainedConfig, source: str) -> int:
    text = config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
    length = next((value for name in names if isinstance(value := getattr(text, name, None), int)), None)
    if length is None:
        raise ModelLoadError(f"model {source!r} states no context length: set max_position_embeddings in config.json")
    return length


def _positions(model: PreTrainedModel, source: str) -> int:
    length = _stated_length(model.config, source)
    positions = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    if isinstance(positions, torch.nn.Embedding) and positions.padding_idx is not None:
        length = min(length, positions.num_embeddings - positions.padding_idx - 1)  # RoBERTa counts from there
    return length


def _within_window(model: PreTrainedModel, source: str) -> int:
    """Return the longest input within which no layer works in chunks or blocks, which the page cache cannot."""
    length = _positions(model, source)
    window = attention_block(model.config.get_text_config())
    if window is None or window >= length:
        return length
    log.warning("model %r: context cut from %d to its attention window of %d tokens", source, length, window)
    return window


def attention_block(config: PreTrainedConfig) -> int | None:
    """Tokens within which attention is full, in models that attend in blocks; None for the others."""
    windows = []
    if "chunked_attention" in _layer_types(config):
        windows.append(getattr(config, "attention_chunk_size", None))
    if "local" in getattr(config, "attention_layers", ()):  # GPT-Neo
        windows.append(getattr(config, "window_size", None))
    return min((window for window in windows if isinstance(window, int)), default=None)


def _layer_types(config: PreTrainedConfig) -> list[str]:
    return list(getattr(config.get_text_config(), "layer_types", None) or ())


def _eos_ids(*holders: GenerationConfig | PreTrainedConfig | None) -> frozenset[int]:
    ids: set[int] = set()
    for holder in holders:
        value = getattr(holder, "eos_token_id", None)
        ids.update(value if isinstance(value, list | tuple) else [] if value is None else [value])
    return frozenset(ids)


@contextmanager
def _one_line_errors(source: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the tokenizers library raises nothing more precise
        reason = str(error).strip().partition("\n")[0]
        raise ModelLoadError(f"model {source!r} could not be loaded: {reason}") from error


@contextmanager
def _progress(show: bool) -> Iterator[None]:
    """Show or silence the progress bars of transformers, and put its setting back."""
    shown = transformers_logging.is_progress_bar_enabled()
    if shown and not show:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown and not show:
            transformers_logging.enable_progress_bar()
