"""Which guides there are, known without their weights: what a request is checked against at admission.

vLLM validates requests in the process that takes them, where no model is. Names and vocabularies are enough there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from trimtab.engine.alignment import Translation
from trimtab.engine.errors import ModelLoadError
from trimtab.engine.guides.base import LanguageGuide
from trimtab.engine.guides.build import brings_model
from trimtab.engine.guides.config import GuideConfig, LanguageConfig
from trimtab.engine.model import Model
from trimtab.engine.settings import EngineSettings
from trimtab.engine.sources import resolve
from trimtab.engine.vocabulary import Vocabulary

if TYPE_CHECKING:
    from trimtab.engine.runner import ModelRunner

_HERE = "trimtab's own server, or one whose remote base is this vLLM, runs it"


@dataclass(frozen=True, eq=False, slots=True)
class Words:
    """The tokens of a model, without the model."""

    vocabulary: Vocabulary
    rows: int
    """of its logits"""
    eos_ids: frozenset[int]


@dataclass(frozen=True, eq=False, slots=True)
class Catalogue:
    """The base and the guides of the configuration."""

    base: Words
    configs: Mapping[str, LanguageConfig]
    """of the guides that vLLM's workers run"""
    guides: Mapping[str, LanguageGuide]
    """the same as admission knows them: their models have no runner"""
    refused: Mapping[str, str]
    """why the others do not run here, by name"""

    @classmethod
    def of(cls, settings: EngineSettings) -> "Catalogue":
        """Read the tokenizers of the base and of the guides; raises ModelLoadError that names the guide."""
        base = read_words(settings.model, settings.trust_remote_code)
        configs: dict[str, LanguageConfig] = {}
        guides: dict[str, LanguageGuide] = {}
        refused: dict[str, str] = {}
        for name, config in settings.guides.items():
            if not brings_model(config) or not isinstance(config, LanguageConfig):
                refused[name] = _reason(config)
                continue
            try:
                words = read_words(config.model, settings.trust_remote_code)
            except ModelLoadError as error:
                raise ModelLoadError(f"guide {name!r} (role {config.role}): {error}") from error
            translation = Translation.between(
                base.vocabulary,
                words.vocabulary,
                base.rows,
                words.rows,
                base_eos=base.eos_ids,
                guide_eos=words.eos_ids,
            )
            if translation is None:
                refused[name] = (
                    "its tokens are not those of the served model, and token by token only logits of the same tokens "
                    f"can be mixed: use a guide of the model's family; {_HERE} under nudging and wsd, by text"
                )
                continue
            runner = cast("ModelRunner", None)  # plans need names and vocabularies alone
            model = Model(name, runner, words.vocabulary, 0, words.eos_ids, b"")
            configs[name], guides[name] = config, LanguageGuide(name, model, translation=translation)
        return cls(base, configs, guides, refused)


def read_words(source: str, trust_remote_code: bool) -> Words:
    """The tokens of the model at `source`; its weights are not read. Raises ModelLoadError."""
    folder = resolve(source, remote_code=trust_remote_code, weights=False)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # the tokenizers library raises nothing more precise
        reason = str(error).strip().partition("\n")[0]
        raise ModelLoadError(f"the tokenizer of {source!r} could not be loaded: {reason}") from error
    text = config.get_text_config()
    holders: list[object] = [config, text]
    if (folder / "generation_config.json").is_file():
        holders.append(GenerationConfig.from_pretrained(folder))
    eos_ids: set[int] = set()
    for holder in holders:
        value = getattr(holder, "eos_token_id", None)
        eos_ids.update(value if isinstance(value, list | tuple) else [] if value is None else [value])
    return Words(Vocabulary(tokenizer, text.vocab_size), text.vocab_size, frozenset(eos_ids))


def _reason(config: GuideConfig) -> str:
    if isinstance(config, LanguageConfig):
        return f"it is an adapter of the base, whose forwards are vLLM's: merge it into a model of its own; {_HERE}"
    return f"it has the role {config.role!r}, and workers of vLLM run language models (role 'lm') alone; {_HERE}"
