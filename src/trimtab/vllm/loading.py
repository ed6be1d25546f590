"""Guides as a worker of vLLM runs them: weights, pages and vocabulary, loaded once when the worker starts."""

from array import array
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import AutoTokenizer

from trimtab.engine.alignment import Translation
from trimtab.engine.errors import ModelLoadError
from trimtab.engine.guides.build import page_pool
from trimtab.engine.guides.config import LanguageConfig
from trimtab.engine.loading import load_causal_lm
from trimtab.engine.model import Model
from trimtab.engine.runner import ModelRunner
from trimtab.engine.settings import EngineSettings
from trimtab.vllm.catalogue import Catalogue
from trimtab.vllm.guide import RunningGuide
from trimtab.vllm.settings import CONFIG


def load_guides(
    catalogue: Catalogue, settings: EngineSettings, device: torch.device, longest: int
) -> Mapping[str, RunningGuide]:
    """Load the guides of the catalogue; requests have at most `longest` tokens.

    Raises ModelLoadError that names the guide.
    """
    guides: dict[str, RunningGuide] = {}
    for name, config in catalogue.configs.items():
        try:
            guides[name] = _load(name, config, catalogue, settings, device, longest)
        except ModelLoadError as error:
            raise ModelLoadError(f"guide {name!r} (role {config.role}): {error}") from error
    return guides


def check_base(catalogue: Catalogue, tokenizer: str, *, trust_remote_code: bool) -> None:
    """Raise ModelLoadError unless the configuration is about the tokens of the model that vLLM serves."""
    served = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=trust_remote_code)
    if dict(catalogue.base.vocabulary.tokens) != served.get_vocab():
        raise ModelLoadError(
            f"the tokenizer of engine.model in {CONFIG} is not that of the model that vLLM serves: name the same model"
        )


def _load(
    name: str,
    config: LanguageConfig,
    catalogue: Catalogue,
    settings: EngineSettings,
    device: torch.device,
    longest: int,
) -> RunningGuide:
    words, translation = catalogue.guides[name], catalogue.guides[name].translation
    assert translation is not None  # others are not in the catalogue
    loaded = load_causal_lm(
        config.model, dtype=config.dtype, device=device, trust_remote_code=settings.trust_remote_code
    )
    _refuse_dynamic(loaded.model)
    pool = page_pool(settings, config.pool_tokens)
    reads = min(config.context_length or loaded.context_length, loaded.context_length)
    holds = pool.total * pool.page_size
    if longest > min(reads, holds):
        fix = "raise its pool_tokens" if reads >= longest else "take a guide with a longer context"
        raise ModelLoadError(
            f"it reads {min(reads, holds)} tokens and vLLM serves requests of up to {longest}: {fix}, or start vLLM "
            f"with --max-model-len {min(reads, holds)}"
        )
    runner = ModelRunner(loaded.model, pool, packed=settings.packed)
    model = Model(name, runner, words.model.vocabulary, reads, loaded.eos_ids, loaded.fingerprint.encode())
    translation.logits(torch.empty((0, runner.vocab_size), device=device))  # what it gathers by is copied now, once
    return RunningGuide(model, translation, _ids(translation, catalogue.base.rows, loaded.eos_ids, device))


def _refuse_dynamic(model: torch.nn.Module) -> None:
    """Raise ModelLoadError for rotary embeddings that read the positions of every forward on the host."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", "")  # one for all layers, or one for each kind of them
        if any("dynamic" in str(kind) for kind in (kinds.values() if isinstance(kinds, dict) else (kinds,))):
            raise ModelLoadError(
                "its rope_type is 'dynamic': the frequencies wait for the device at every step and depend on the "
                "longest row of the batch: take a guide with fixed ones ('default', 'linear', 'yarn' or 'llama3')"
            )


def _ids(translation: Translation, rows: int, eos_ids: frozenset[int], device: torch.device) -> Tensor | None:
    """The guide's ids of the base's tokens; one without counterpart reads as the end of a text."""
    own = translation.tokens(array("q", range(rows)))
    end = min(eos_ids, default=0)
    ids = torch.tensor([token if token >= 0 else end for token in own])
    return None if torch.equal(ids, torch.arange(rows)) else ids.to(device)
