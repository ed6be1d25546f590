"""A reward guide by itself: what a deployment of one loads."""

from collections.abc import Sequence
from typing import Protocol

import torch

from trimtab.engine.device import bound_caches
from trimtab.engine.guides.build import brings_model
from trimtab.engine.guides.config import RewardModelConfig
from trimtab.engine.loading import load_classifier
from trimtab.engine.rewards import Judgement, Pair
from trimtab.engine.rewards.classifier import ClassifierReward
from trimtab.engine.settings import EngineSettings
from trimtab.llm import LLM


class Judge(Protocol):
    """Whatever judges the answers."""

    labels: Sequence[str]

    def judge(self, pairs: Sequence[Pair]) -> list[Judgement]:
        """Return one judgement per pair, in one thread at a time."""
        ...

    def check(self) -> None:
        """Raise if it never will again."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


def load_judge(name: str, settings: EngineSettings) -> Judge:
    """Load one guide. Only an adapter needs the base model, in whose forward it runs; raises ModelLoadError."""
    config = settings.guides[name]
    if brings_model(config) and isinstance(config, RewardModelConfig):
        return _Classifier(name, config, settings)
    return _Adapter(name, settings)


class _Classifier:
    """A model of its own."""

    def __init__(self, name: str, config: RewardModelConfig, settings: EngineSettings) -> None:
        bound_caches()
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        device = settings.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded = load_classifier(
            config.model, dtype=config.dtype, device=device, trust_remote_code=settings.trust_remote_code
        )
        self._reward = ClassifierReward(name, loaded, label=config.label, max_batch_tokens=config.max_batch_tokens)
        self.labels: Sequence[str] = self._reward.labels

    def judge(self, pairs: Sequence[Pair]) -> list[Judgement]:
        return self._reward.judge(pairs)

    def check(self) -> None:
        """It has no thread that could stop; that its device fails shows in calls alone."""

    def close(self) -> None:
        """It holds nothing but memory."""


class _Adapter:
    """A guide that runs in the base's forward: the base with it alone."""

    def __init__(self, name: str, settings: EngineSettings) -> None:
        self._name = name
        self._llm = LLM(settings=settings.model_copy(update={"guides": {name: settings.guides[name]}}))
        self.labels: Sequence[str] = self._llm.rewards[name].labels

    def judge(self, pairs: Sequence[Pair]) -> list[Judgement]:
        return self._llm.judge(self._name, pairs).result()

    def check(self) -> None:
        if self._llm.failed is not None:
            raise RuntimeError(f"the engine has stopped: {type(self._llm.failed).__name__}")

    def close(self) -> None:
        self._llm.close()
