"""The base and its guides as they are loaded, guides that come and go included."""

from trimtab.engine.device import check_dtype, find_device
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.guides.build import build_guides, model_runner, page_pool
from trimtab.engine.guides.config import GuideConfig
from trimtab.engine.guides.loaded import Guides
from trimtab.engine.loading import load_causal_lm
from trimtab.engine.memory import MemoryPlan, memory_errors, plan_device
from trimtab.engine.model import Model
from trimtab.engine.plan import BASE
from trimtab.engine.remote.model import remote_model
from trimtab.engine.remote.stats import RemoteStats
from trimtab.engine.results import EngineStats
from trimtab.engine.rewards.far import FarReward
from trimtab.engine.settings import EngineSettings
from trimtab.engine.templates import read_template
from trimtab.engine.vocabulary import Vocabulary


class Stock:
    """Loads in the thread that calls, the engine's. Any thread may read `guides`, which is replaced as a whole."""

    guides: Guides

    def __init__(self, settings: EngineSettings, stats: EngineStats) -> None:
        """Load everything that the settings name; calls to other servers are counted in `stats`.

        Raises ModelLoadError, or GuideError for a guide that cannot serve.
        """
        self._device = find_device(settings.device)
        self.memory: MemoryPlan | None = plan_device(settings, self._device) if self._device.type == "cuda" else None
        """of the GPU, from before anything was loaded there"""
        if self.memory is not None:
            settings = settings.model_copy(update={"pool_tokens": self.memory.tokens})
        self._settings = settings
        self._stats = stats
        with memory_errors(self._device, self.memory):
            self.base = self._load_base()
            self.guides = Guides(self.base, {}, {}, {}, {}, {})
            try:
                self.guides = build_guides(settings.guides, self.base, settings, self._device)
            except BaseException:
                self.close()
                raise

    def add(self, name: str, config: GuideConfig) -> None:
        """Load a guide; whatever is raised, everything is as it was. Raises what loading does, and InvalidRequest."""
        if name == BASE or name in self.guides.by_name or name in self.guides.rewards:
            raise InvalidRequest(f"a guide is named {name!r} already: unload it first, or choose another name")
        try:
            with memory_errors(self._device, self.memory):
                added = build_guides({name: config}, self.base, self._settings, self._device)
        except BaseException:
            self.base.runner.forget(name)
            raise
        self.guides = self.guides.with_(added)

    def remove(self, name: str) -> None:
        """Forget a guide that no live request uses; raises InvalidRequest for a name that is not loaded."""
        if name not in self.guides.by_name:
            loaded = ", ".join(sorted(self.guides.by_name)) or "none"
            raise InvalidRequest(f"no guide is named {name!r}; loaded: {loaded}")
        self.guides = self.guides.without(name)
        self.base.runner.forget(name)
        self.base.editions[name] += 1

    def close(self) -> None:
        """Hang up on other servers."""
        if self.base.remote is not None:
            self.base.remote.close()
        for reward in self.guides.rewards.values():
            if isinstance(reward, FarReward):
                reward.close()

    def _load_base(self) -> Model:
        settings = self._settings
        if settings.remote is not None:
            stats = self._stats.remotes[BASE] = RemoteStats()
            return remote_model(settings, settings.remote, stats)
        loaded = load_causal_lm(
            settings.model, dtype=settings.dtype, device=self._device, trust_remote_code=settings.trust_remote_code
        )
        check_dtype(loaded.dtype, self._device)
        if settings.chat_template is not None:
            loaded.tokenizer.chat_template = read_template(settings.chat_template)
        pool = page_pool(settings, settings.pool_tokens)
        runner = model_runner(loaded.model, pool, settings)
        context_length = min(
            settings.context_length or loaded.context_length, loaded.context_length, pool.total * pool.page_size
        )
        vocabulary, salt = Vocabulary(loaded.tokenizer, runner.vocab_size), loaded.fingerprint.encode()
        return Model(BASE, runner, vocabulary, context_length, loaded.eos_ids, salt)
