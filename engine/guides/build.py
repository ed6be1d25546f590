"""From the `guides` of the configuration to loaded guides, and to rewards of whole answers."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import torch
from pydantic import BaseModel
from torch import nn
from transformers import PreTrainedModel

from trimtab.engine.alignment import Translation
from trimtab.engine.errors import ModelLoadError
from trimtab.engine.guides.adapters import load_lora
from trimtab.engine.guides.base import (
    EmbeddingGuide,
    Guide,
    HeadGuide,
    LanguageGuide,
    PreferenceGuide,
    ScorerGuide,
    TextGuide,
    VectorGuide,
)
from trimtab.engine.guides.card import BaseIdentity, Card, identity
from trimtab.engine.guides.config import (
    EmbeddingConfig,
    GuideConfig,
    LanguageConfig,
    ModelGuideConfig,
    PreferenceConfig,
    RemoteRewardConfig,
    RewardModelConfig,
    ValueConfig,
    VectorConfig,
)
from trimtab.engine.guides.embedding import TextEncoder, examine_encoder
from trimtab.engine.guides.folders import (
    ADAPTER,
    CONTROL_VECTOR,
    PREFERENCE_HEAD,
    TEMPLATE,
    VALUE_HEAD,
    locate,
    read_card,
)
from trimtab.engine.guides.heads import LinearHead, ValueHead
from trimtab.engine.guides.loaded import Guides
from trimtab.engine.guides.preference import PreferenceHead
from trimtab.engine.guides.sentences import read_recipe
from trimtab.engine.guides.vectors import load_vectors
from trimtab.engine.loading import LoadedModel, attention_block, load_causal_lm, load_classifier, load_encoder
from trimtab.engine.model import Model
from trimtab.engine.pages import PagePool
from trimtab.engine.plan import PLAIN, Variant
from trimtab.engine.rewards.base import Reward
from trimtab.engine.rewards.causal import CausalReward
from trimtab.engine.rewards.classifier import ClassifierReward, label_signs, labels_of
from trimtab.engine.rewards.contract import Contract, ModelReward, examine
from trimtab.engine.rewards.far import FarReward
from trimtab.engine.rewards.far_contract import examine_far
from trimtab.engine.rewards.program import Program, ProgramReward
from trimtab.engine.runner import READ_ROWS, ModelRunner
from trimtab.engine.settings import CPU_POOL, EngineSettings
from trimtab.engine.sources import resolve
from trimtab.engine.templates import read_template
from trimtab.engine.vocabulary import Vocabulary

log = logging.getLogger(__name__)


def build_guides(
    configs: Mapping[str, GuideConfig], base: Model, settings: EngineSettings, device: torch.device | str
) -> Guides:
    """Load guides beside `base`; adapters and vectors are added to its runner.

    Raises ModelLoadError, which names guide and role, or GuideError if a model cannot serve as that guide.
    """
    rewards: dict[str, Reward] = {}
    try:
        return _built(configs, base, settings, device, rewards)
    except BaseException:
        for reward in rewards.values():
            if isinstance(reward, FarReward):
                reward.close()
        raise


def _built(
    configs: Mapping[str, GuideConfig],
    base: Model,
    settings: EngineSettings,
    device: torch.device | str,
    rewards: dict[str, Reward],
) -> Guides:
    """The guides; `rewards` is filled on the way."""
    served = None if base.remote is not None else identity(settings.model, base.runner.model)
    builder = _Builder(base, served, settings, device)
    guides: dict[str, Guide] = {}
    cards: dict[str, Card] = {}
    contracts: dict[str, Contract] = {}
    for name, config in configs.items():
        try:
            card = builder.card(name, config)
            guide, reward = builder.build(name, config)
            if isinstance(guide, EmbeddingGuide):
                contracts[name] = examine_encoder(guide.encoder)
        except ModelLoadError as error:
            raise ModelLoadError(f"guide {name!r} (role {config.role}): {error}") from error
        guides[name] = guide
        if reward is not None:
            rewards[name] = reward
        if card is not None:
            cards[name] = card
    contracts |= {name: examine(reward) for name, reward in rewards.items() if isinstance(reward, ModelReward)}
    contracts |= {name: examine_far(reward) for name, reward in rewards.items() if isinstance(reward, FarReward)}
    return Guides(base, dict(configs), guides, rewards, cards, contracts)


def brings_model(config: GuideConfig) -> TypeGuard[LanguageConfig | RewardModelConfig | ValueConfig]:
    """Whether a guide runs a model of its own, beside the base."""
    if not isinstance(config, LanguageConfig | RewardModelConfig | ValueConfig):
        return False
    path = locate(config.model)
    return not (path / ADAPTER).is_file() and not (isinstance(config, ValueConfig) and _is_head(path))


def page_pool(settings: EngineSettings, tokens: int | None) -> PagePool:
    """A pool that holds `tokens`, or as many as the settings say."""
    pages = -(-(tokens or settings.pool_tokens or CPU_POOL) // settings.page_size)
    return PagePool(pages + 1, settings.page_size, share=settings.prefix_cache)


def model_runner(decoder: PreTrainedModel, pool: PagePool, settings: EngineSettings) -> ModelRunner:
    """The runner of a model as the settings want it."""
    rows = max(settings.max_rows, READ_ROWS) if settings.graphs else 0
    return ModelRunner(decoder, pool, packed=settings.packed, graph_rows=rows)


def _is_head(path: Path) -> bool:
    return path.suffix == ".safetensors" or (path / VALUE_HEAD).is_file()


@dataclass(frozen=True, eq=False, slots=True)
class _Builder:
    base: Model
    served: BaseIdentity | None
    """None: another server runs it"""
    settings: EngineSettings
    device: torch.device | str

    def card(self, name: str, config: GuideConfig) -> Card | None:
        """The card of a guide, which fits role and base."""
        if isinstance(config, Program | RemoteRewardConfig):
            return None
        card = read_card(locate(config.model), config.role)
        if card is not None and self.served is not None:
            card.check(self.served, name)
        return card

    def build(self, name: str, config: GuideConfig) -> tuple[Guide, Reward | None]:
        if isinstance(config, Program):
            return TextGuide(name, "program"), ProgramReward(name, config)
        if isinstance(config, RemoteRewardConfig):
            return TextGuide(name, config.role), FarReward(name, config)
        path = locate(config.model)
        adapted = (path / ADAPTER).is_file()
        if self.served is None:
            self._refuse_parts(config, path, adapted)
        match config:
            case LanguageConfig():
                return self._adapted_language(name, config, path) if adapted else self._language(name, config), None
            case ValueConfig() if _is_head(path):
                within = path / VALUE_HEAD
                return self._head(name, config, within if within.is_file() else path), None
            case RewardModelConfig() | ValueConfig():
                return self._adapted_scorer(name, config, path) if adapted else self._scorer(name, config)
            case VectorConfig():
                return self._vector(name, path / CONTROL_VECTOR if (path / CONTROL_VECTOR).is_file() else path), None
            case PreferenceConfig():
                within = path / PREFERENCE_HEAD
                return self._preference(name, within if within.is_file() else path), None
            case EmbeddingConfig():
                return self._embedding(name, config), None

    def _refuse_parts(self, config: ModelGuideConfig, path: Path, adapted: bool) -> None:
        """Raise ModelLoadError for a guide that works inside of the base, where another server runs it."""
        head = isinstance(config, ValueConfig) and _is_head(path)
        if adapted or head or isinstance(config, VectorConfig | PreferenceConfig):
            what = "an adapter of the base" if adapted else "a part of the base's own forward"
            raise ModelLoadError(
                f"{config.model} is {what}, and engine.remote has another server run the base: take it out, load the "
                "base here, or have it judge elsewhere with role remote_reward"
            )

    def _adapted_language(self, name: str, config: LanguageConfig, folder: Path) -> LanguageGuide:
        _refuse_options("an adapter runs with the base's settings", config, allowed=())
        low_rank = load_lora(folder, self.base.runner.model)
        self.base.runner.terms.add_adapter(name, low_rank)
        return LanguageGuide(
            name,
            self.base,
            Variant(adapter=name, scales=low_rank.even),
            self._translation(self.base),
            own_vocabulary=self._own_vocabulary(folder),
            attributes=low_rank.attributes,
        )

    def _language(self, name: str, config: LanguageConfig) -> LanguageGuide:
        loaded = load_causal_lm(
            config.model,
            dtype=config.dtype,
            device=self.device,
            trust_remote_code=self.settings.trust_remote_code,
        )
        context = min(config.context_length or loaded.context_length, loaded.context_length)
        model = self._model(name, loaded, loaded.model, context, config.pool_tokens)
        return LanguageGuide(name, model, translation=self._translation(model))

    def _head(self, name: str, config: ValueConfig, path: Path) -> HeadGuide:
        _refuse_options("a value head reads the base's hidden state", config, allowed=())
        runner = self.base.runner
        head = ValueHead.load(path, runner.hidden_size, runner.vocab_size)
        return HeadGuide(name, head.to(runner.device))

    def _scorer(self, name: str, config: RewardModelConfig | ValueConfig) -> tuple[Guide, Reward]:
        """A decoder with a linear head scores token by token; what cannot be paged scores whole answers."""
        loaded = self._load_classifier(config)
        decoder, score = loaded.model.base_model, getattr(loaded.model, "score", None)  # so transformers calls it
        block = attention_block(loaded.model.config.get_text_config())  # within one, attention is full
        unbroken = block is None or block >= loaded.context_length
        if unbroken and isinstance(score, nn.Linear) and isinstance(decoder, PreTrainedModel):
            signs = label_signs(name, loaded.source, labels_of(loaded.model), config.label)
            head = LinearHead.of(signs, score.weight, score.bias)
            try:
                model = self._model(name, loaded, decoder, loaded.context_length, config.pool_tokens)
            except ModelLoadError as error:
                log.warning("guide %r scores whole answers only: %s", name, error)
                loaded = self._load_classifier(config)  # the attempt has changed its modules
            else:
                return self._scored(name, config, model, head, labels_of(loaded.model), PLAIN)
        reward = ClassifierReward(name, loaded, label=config.label, max_batch_tokens=config.max_batch_tokens)
        return TextGuide(name, config.role), reward

    def _adapted_scorer(self, name: str, config: RewardModelConfig | ValueConfig, folder: Path) -> tuple[Guide, Reward]:
        _refuse_options("an adapter runs with the base's settings", config, allowed=("label", "max_batch_tokens"))
        low_rank = load_lora(folder, self.base.runner.model)
        if low_rank.head is None:
            raise ModelLoadError(
                f"adapter {config.model} has no score head: train it with task type SEQ_CLS, or use it with role lm"
            )
        if low_rank.attributes:
            raise ModelLoadError(f"adapter {config.model} has blocks that a preference scales: use it with role lm")
        self.base.runner.terms.add_adapter(name, low_rank)
        labels = [f"LABEL_{index}" for index in range(len(low_rank.head))]  # transformers' names: PEFT stores none
        head = LinearHead.of(
            label_signs(name, config.model, labels, config.label), low_rank.head.to(self.base.runner.device)
        )
        own = self._own_vocabulary(folder)
        return self._scored(name, config, self.base, head, labels, Variant(adapter=name), own)

    def _scored(
        self,
        name: str,
        config: RewardModelConfig | ValueConfig,
        model: Model,
        head: LinearHead,
        labels: Sequence[str],
        variant: Variant,
        own: Vocabulary | None = None,
    ) -> tuple[Guide, Reward]:
        guide = ScorerGuide(name, model, head, config.role, variant, self._translation(model), own)
        reward = CausalReward(
            name,
            model,
            head,
            labels=labels,
            variant=variant,
            vocabulary=guide.vocabulary,
            max_batch_tokens=config.max_batch_tokens,
        )
        return guide, reward

    def _vector(self, name: str, path: Path) -> VectorGuide:
        runner = self.base.runner
        directions = load_vectors(path, runner.hidden_size, runner.layers)
        runner.terms.add_vector(name, directions)
        return VectorGuide(name, directions)

    def _own_vocabulary(self, folder: Path) -> Vocabulary | None:
        """The base's vocabulary under the chat template of an adapter's folder, if that is another one."""
        file, vocabulary = folder / TEMPLATE, self.base.vocabulary
        if not file.is_file():
            return None
        template = read_template(str(file))
        return None if template == vocabulary.tokenizer.chat_template else vocabulary.with_template(template)

    def _preference(self, name: str, path: Path) -> PreferenceGuide:
        runner = self.base.runner
        return PreferenceGuide(name, PreferenceHead.load(path, runner.hidden_size).to(runner.device))

    def _embedding(self, name: str, config: EmbeddingConfig) -> EmbeddingGuide:
        remote = self.settings.trust_remote_code
        folder = resolve(config.model, remote_code=remote)
        recipe = read_recipe(folder, pooled=config.pooling != "auto")
        loaded = load_encoder(config.model, folder, dtype=config.dtype, device=self.device, trust_remote_code=remote)
        return EmbeddingGuide(name, TextEncoder(name, loaded, config, recipe))

    def _load_classifier(self, config: RewardModelConfig | ValueConfig) -> LoadedModel:
        return load_classifier(
            config.model, dtype=config.dtype, device=self.device, trust_remote_code=self.settings.trust_remote_code
        )

    def _model(
        self, name: str, loaded: LoadedModel, decoder: PreTrainedModel, context: int, pool_tokens: int | None
    ) -> Model:
        """`decoder` behind its own page pool."""
        pool = page_pool(self.settings, pool_tokens)
        return Model(
            name=name,
            runner=model_runner(decoder, pool, self.settings),
            vocabulary=Vocabulary(loaded.tokenizer, loaded.embedding_rows),
            context_length=min(context, pool.total * pool.page_size),
            eos_ids=loaded.eos_ids,
            salt=loaded.fingerprint.encode(),
        )

    def _translation(self, model: Model) -> Translation | None:
        base = self.base
        return Translation.between(
            base.vocabulary,
            model.vocabulary,
            base.runner.vocab_size,
            model.runner.vocab_size,
            base_eos=base.eos_ids,
            guide_eos=model.eos_ids,
        )


def _refuse_options(reason: str, config: BaseModel, *, allowed: tuple[str, ...]) -> None:
    """Raise ModelLoadError for options that would change nothing."""
    if extra := sorted(config.model_fields_set.difference({"role", "model", *allowed})):
        raise ModelLoadError(f"{reason}: take out {', '.join(extra)}")
