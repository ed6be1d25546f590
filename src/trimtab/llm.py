"""The engine as a Python object: for scripts and notebooks, and what the server is built on."""

import gc
import secrets
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch

from trimtab.compiling import Compiler, query_of
from trimtab.decoders.attributes import Attribute, default_attributes
from trimtab.decoders.floor import Floor
from trimtab.decoders.params import require_reward
from trimtab.decoders.preference import Personal
from trimtab.decoders.prompt.framing import Embedded, Framing
from trimtab.decoders.registry import strategies
from trimtab.decoders.spec import DecodingSpec
from trimtab.decoders.steer.roles import Roles
from trimtab.embedding import EMBEDDED_AT_ONCE, Embedding
from trimtab.engine.device import bound_caches
from trimtab.engine.engine import Engine
from trimtab.engine.errors import GuideInUse, InvalidRequest, Overloaded
from trimtab.engine.grammar import Grammar, Grammars
from trimtab.engine.guides.base import EmbeddingGuide, Guide
from trimtab.engine.guides.card import Card
from trimtab.engine.guides.config import GuideConfig
from trimtab.engine.guides.embedding import Vectors
from trimtab.engine.guides.loaded import Guides
from trimtab.engine.model import Model
from trimtab.engine.rating import Rating
from trimtab.engine.request import Request
from trimtab.engine.results import Deliver, EngineStats, Result
from trimtab.engine.rewards import Judgement, Pair, Reward
from trimtab.engine.rewards.contract import Contract
from trimtab.engine.sampling import MAX_LOGPROBS, SamplingParams
from trimtab.engine.settings import EngineSettings
from trimtab.engine.sources import short_name
from trimtab.engine.vocabulary import Message
from trimtab.engine.worker import Worker
from trimtab.offline import run_all
from trimtab.remote import check_remote
from trimtab.requests import GenerationRequest, PreparedRequest
from trimtab.room import answer_room
from trimtab.stock import Stock

if TYPE_CHECKING:
    from trimtab.decoders.library import Library, Norms


class LLM:
    """A frozen language model with its guides, decoding any number of requests in shared batches.

    Loading raises ModelLoadError. Use it as a context manager, or `close()` it, to stop its thread.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        settings: EngineSettings | None = None,
        library: "Library | None" = None,
        attributes: Mapping[str, Attribute] | None = None,
    ) -> None:
        """`library` holds norms and profiles; the caller closes it.

        `attributes` are what preferences weigh; absent: `default_attributes`.
        """
        settings = settings or EngineSettings()
        self.library = library
        self.settings = settings if model is None else settings.with_model(model)
        self.attributes = default_attributes(self.settings.model) if attributes is None else attributes
        self.model_name = short_name(self.settings.model)
        self.stats = EngineStats()
        self._grammars = Grammars()
        self._worker = Worker(self._build)

    def _build(self) -> Engine:
        """Load everything; runs in the engine's thread."""
        strategies()  # a strategy that cannot be imported shows now, not at the first request
        bound_caches()
        if self.settings.threads is not None:
            torch.set_num_threads(self.settings.threads)
        self._stock = Stock(self.settings, self.stats)
        self._base, self.memory = self._stock.base, self._stock.memory
        self.vocabulary, self.context_length = self._base.vocabulary, self._base.context_length
        return Engine(
            self.models, self.guides, self.rewards, self.settings, self.stats, wake=lambda: self._worker.wake()
        )

    @property
    def loaded(self) -> Guides:
        """The base and its guides as they are now."""
        return self._stock.guides

    @property
    def guides(self) -> Mapping[str, Guide]:
        """What is loaded, by name. As the four that follow it is replaced, not changed, when a guide comes or goes."""
        return self.loaded.by_name

    @property
    def rewards(self) -> Mapping[str, Reward]:
        """What scores whole answers."""
        return self.loaded.rewards

    @property
    def cards(self) -> Mapping[str, Card]:
        """Of the guides whose folder has one."""
        return self.loaded.cards

    @property
    def contracts(self) -> Mapping[str, Contract]:
        """Of the rewards that are models, and of embedding models."""
        return self.loaded.contracts

    @property
    def models(self) -> Mapping[str, Model]:
        """The base, and what guides have brought."""
        return self.loaded.models

    @property
    def failed(self) -> Exception | None:
        """Why the engine stopped for good, if it did."""
        return self._worker.failed

    def prepare(self, request: GenerationRequest) -> PreparedRequest:
        """Tokenise and validate; raises InvalidRequest that names the field. Works in the caller's thread."""
        loaded = self.loaded  # one view, whatever comes and goes meanwhile
        spec = DecodingSpec.parse(request.decoding, self.personal(request.tenant, loaded))
        if request.floor is not None:
            own = None if request.trusted else request.decoding
            request.floor.check_conversation(request.messages or (), request.tools, own, self.vocabulary)
            spec, _ = request.floor.apply(spec, choices=request.n, trusted=request.trusted)
        spec.check(choices=request.n, rewards=loaded.judges)
        for name in () if spec.watch is None else spec.watch.guides:
            require_reward(name, loaded.judges, path="floor.guard")
        if request.sampling.logprobs is not None and spec.search.others_write:
            raise InvalidRequest(
                f"logprobs are those of the base, and under {spec.strategy!r} another model may write: leave them out",
                param="logprobs",
            )
        if request.prompt_logprobs is not None and not 0 <= request.prompt_logprobs <= MAX_LOGPROBS:
            raise InvalidRequest(
                f"prompt_logprobs must be between 0 and {MAX_LOGPROBS}, not {request.prompt_logprobs}",
                param="prompt_logprobs",
            )
        if request.prompt_logprobs is not None and (spec.prompt_parts or spec.inferred is not None):
            raise InvalidRequest(
                "log-probabilities of the prompt are of the prompt as it is sent: leave them out, or the prompt parts",
                param="prompt_logprobs",
            )
        rows = spec.program.rows(request.n)
        if rows > self.settings.max_candidates:
            raise InvalidRequest(
                f"the request works on {rows} answers at once and this server takes at most "
                f"{self.settings.max_candidates} (setting engine.max_candidates): ask for fewer",
                param="n" if rows == request.n else f"decoding.{spec.params.rows_field}",
            )
        rows = min(rows, self.settings.max_rows, spec.budget.max_rows or rows)
        sampling = request.sampling
        if spec.temperature is not None and "temperature" not in sampling.model_fields_set:
            sampling = sampling.model_copy(update={"temperature": spec.temperature})
        size = self._base.runner.vocab_size
        for name, ids in (("logit_bias", sampling.logit_bias), ("stop_token_ids", sampling.stop_token_ids)):
            if max(ids, default=0) >= size:
                raise InvalidRequest(f"{name}: token id {max(ids)} is outside the vocabulary of {size}", param=name)
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        compiler = Compiler(loaded, request, spec, sampling, seed, self._framing(request, spec, loaded))
        prompt, plan, named = compiler.first()
        if request.grammar is not None:
            self._grammars.start(request.grammar, self.vocabulary)
        if plan.gate is not None and not self.vocabulary.exact:
            raise InvalidRequest(
                f"{spec.strategy} carries text between two vocabularies, and the base's does not spell bytes exactly",
                param="decoding.strategy",
            )
        if self._base.remote is not None:
            check_remote(request, spec, plan, self._base.remote.capabilities)
        field = "prompt" if request.messages is None else "messages"
        max_tokens = answer_room(loaded.models, len(prompt), plan, field=field)
        if spec.inferred is not None:
            prompt, plan, _ = compiler.unsteered()
        needs = {name: loaded.by_name.get(name, loaded.rewards.get(name)) for name in named}
        return PreparedRequest(request, prompt, spec, plan, max_tokens, rows, compiler, needs)

    def _framing(self, request: GenerationRequest, spec: DecodingSpec, loaded: Guides) -> Framing:
        """What the prompt parts of a request put around its conversations."""
        framing = Framing(
            query_of(request, self.vocabulary) if spec.prompt_parts else "",
            self.vocabulary,
            library=self.library,
            tenant=request.tenant,
            attributes=self.attributes,
            embed=partial(self.embed_query, loaded=loaded),
        )
        spec.frame(framing)
        return framing

    def embed_query(self, guide: str, text: str, path: str, loaded: Guides | None = None) -> Embedded:
        """The vector of a query by a guide of `loaded` (None: as it is now), and before it those of some norms.

        Waits for the engine's thread. Raises what `embed` does, naming the path for a guide that embeds nothing.
        """
        embedder = self._embedder(guide, path, loaded)
        if self.library is not None:
            self._embed_norms(embedder, self.library.norms, EMBEDDED_AT_ONCE)
        return Embedded(self._embed(embedder, [text], query=True).result()[0], embedder.encoder.digest)

    def embed_norms(self, guide: str, norms: "Norms", path: str) -> int:
        """Make the vectors of all norms that have none by a guide; returns how many. Waits and raises as the former."""
        return self._embed_norms(self._embedder(guide, path), norms, None)

    def _embed_norms(self, guide: EmbeddingGuide, norms: "Norms", most: int | None) -> int:
        return norms.embed_missing(guide.encoder.digest, lambda texts: self._embed(guide, texts).result(), most)

    def personal(self, tenant: str | None, loaded: Guides | None = None) -> Personal:
        """What preferences of a tenant's requests may refer to, with the guides of `loaded` (None: as they are now)."""
        profile = None if self.library is None else partial(self.library.profiles.get, tenant)
        return Personal(self.attributes, (loaded or self.loaded).by_name, profile)

    def check(self, decoding: Mapping[str, Any]) -> None:
        """Raise InvalidRequest unless requests that decode like this can run here."""
        if self.vocabulary.tokenizer.chat_template:
            request = GenerationRequest(messages=(Message(role="user", content="a"),), decoding=decoding)
        else:
            request = GenerationRequest(prompt="a", decoding=decoding)
        self.prepare(request)

    def check_floor(self, floor: Floor) -> None:
        """Raise InvalidRequest unless the guides here can do what a floor wants of them."""
        floor.check(self.guides, self.loaded.judges, self._base.runner.vocab_size)

    def submit(self, prepared: PreparedRequest, handle: object, deliver: Deliver) -> None:
        """Start a request; `deliver` gets its events from the engine's thread. Raises Overloaded."""
        request, compiler = prepared.request, prepared.compiler
        messages = request.messages
        if messages is None:
            messages = (Message(role="user", content=query_of(request, self.vocabulary)),)
        self._worker.submit(
            Request(
                handle=handle,
                deliver=deliver,
                prompt=prepared.prompt_ids,
                messages=messages,
                program=compiler.program(prepared.max_tokens),
                plan=prepared.plan,
                text=compiler.text(),
                choices=request.n,
                rows=prepared.rows,
                max_tokens=prepared.max_tokens,
                budget=prepared.spec.budget,
                progress=request.progress,
                opener=partial(compiler.open, prepared.max_tokens),
                pinned=compiler.pinned,
                grammar=None if request.grammar is None else partial(self._grammars.start, request.grammar),
                translations=self.loaded.translations,
                salt=request.cache_salt.encode(),
                prompt_logprobs=request.prompt_logprobs,
                random_stream=request.random_stream,
                strategy=prepared.strategy,
                priority=request.priority,
                guides=prepared.needs,
                discreet=prepared.spec.watch is not None,
                tree=prepared.spec.traces_search,
            )
        )

    def fits(self, prepared: PreparedRequest) -> bool:
        """Whether the queue has room for a request now."""
        return self._worker.fits(prepared.load)

    def judge(self, reward: str, pairs: Sequence[Pair], *, priority: int = 0) -> "Future[list[Judgement]]":
        """Queue answers for a reward guide; the future may be cancelled. Works in any thread, and waits for nothing.

        It fails with GuideError if the reward does, and with InvalidRequest if its chat template refuses a
        conversation. Raises InvalidRequest for a guide that is no reward, and Overloaded.
        """
        return self.rate(reward, pairs, priority=priority).future

    def rate(self, reward: str, pairs: Sequence[Pair], *, priority: int = 0) -> Rating:
        """Do what `judge` does, and return what tells of its progress beside the future."""
        require_reward(reward, self.rewards, path="reward")
        rating = Rating(reward, tuple(pairs), priority)
        if rating.pairs:
            self._worker.submit(rating)
        else:
            rating.take(())
        return rating

    def score(self, reward: str, pairs: Sequence[Pair]) -> list[float]:
        """Score answers and wait; raises what `judge` does. Never call it from the engine's thread."""
        future = self.judge(reward, pairs)
        try:
            return [judgement.score for judgement in future.result()]
        except BaseException:
            future.cancel()
            raise

    def embed(self, guide: str, texts: Sequence[str], *, query: bool = False) -> "Future[Vectors]":
        """Queue texts for an embedding guide: unit vectors (N, D), computed in parts between the engine's ticks.

        The future may be cancelled; it fails with GuideError if the guide does. Raises InvalidRequest for a guide that
        embeds nothing and a text that it cannot read, and Overloaded. Works in any thread.
        """
        return self._embed(self._embedder(guide, "guide"), texts, query=query)

    def _embedder(self, name: str, path: str, loaded: Guides | None = None) -> EmbeddingGuide:
        return Roles((loaded or self.loaded).by_name, self._base.runner.vocab_size).embedding(name, path)

    def _embed(self, guide: EmbeddingGuide, texts: Sequence[str], *, query: bool = False) -> "Future[Vectors]":
        return Embedding(
            guide,
            texts,
            query=query,
            budget=self.settings.prefill_tokens,
            worker=self._worker,
            stats=self.stats,
            loaded=lambda asked: self.guides.get(asked.name) is asked,
        ).future

    def cancel(self, handle: object) -> None:
        """Give a request up; its rows and pages are free one tick later. Any thread, any time."""
        self._worker.cancel(handle)

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits."""
        return self._worker.idle

    def drain(self) -> None:
        """Refuse new requests with Overloaded; those submitted go on."""
        self._worker.drain()

    def interrupt_all(self) -> None:
        """End all requests soon: searches with the best that they have, the others with Draining. Any thread, any time.

        An engine that has stopped has ended them already.
        """
        with suppress(Overloaded):
            self._worker.ask(self._worker.engine.interrupt_all)

    def load_guide(self, name: str, config: GuideConfig) -> "Future[None]":
        """Load one more guide. Runs in the engine's thread, so that nothing is decoded while it lasts.

        The future fails with what loading raises, or InvalidRequest if the name is taken, and then everything is as it
        was. Raises Overloaded when the engine is stopping.
        """

        def load() -> None:
            self._stock.add(name, config)
            self._adopt(name)

        return self._worker.ask(load)

    def unload_guide(self, name: str) -> "Future[None]":
        """Forget a guide and free its memory. Runs in the engine's thread.

        The future fails with GuideInUse while requests use the guide, and with InvalidRequest if there is none of the
        name. Raises Overloaded when the engine is stopping.
        """

        def unload() -> None:
            if users := self._worker.engine.uses(name):
                raise GuideInUse(name, users)
            self._stock.remove(name)
            self._adopt(name)

        return self._worker.ask(unload)

    def _adopt(self, name: str) -> None:
        """Let the engine run what is loaded now; `name` came or went."""
        engine, loaded = self._worker.engine, self.loaded
        self.settings = self.settings.model_copy(update={"guides": dict(loaded.configs)})
        engine.adopt(loaded.models, loaded.by_name, loaded.rewards)
        engine.circuits.forget(name)
        gc.collect()  # modules and hooks refer to each other

    def close(self) -> None:
        """Stop the engine's thread; requests still running end with Cancelled."""
        self._worker.close()
        self._stock.close()

    def generate(
        self,
        prompts: Iterable[str | Sequence[int]],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        n: int = 1,
        decoding: Mapping[str, Any] | None = None,
        grammar: Grammar | None = None,
        progress: bool = True,
    ) -> list[Result]:
        """Continue each prompt (text or token ids); one result per prompt, in order. `sampling` may be one for each."""
        texts = list(prompts)
        requests = [
            GenerationRequest(prompt=each, sampling=own, n=n, decoding=decoding, grammar=grammar)
            for each, own in zip(texts, _one_each(sampling, len(texts)), strict=True)
        ]
        return self._run(requests, progress)

    def chat(
        self,
        conversations: Iterable[Sequence[Message]],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        n: int = 1,
        decoding: Mapping[str, Any] | None = None,
        grammar: Grammar | None = None,
        progress: bool = True,
    ) -> list[Result]:
        """Answer each conversation under the model's chat template; otherwise as `generate`."""
        talks = [tuple(each) for each in conversations]
        requests = [
            GenerationRequest(messages=each, sampling=own, n=n, decoding=decoding, grammar=grammar)
            for each, own in zip(talks, _one_each(sampling, len(talks)), strict=True)
        ]
        return self._run(requests, progress)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, requests: list[GenerationRequest], progress: bool) -> list[Result]:
        """Run all requests at once and wait; the first failure cancels the rest and is raised."""
        return run_all(self, [self.prepare(each) for each in requests], self._worker.together(), progress=progress)


def _one_each(sampling: SamplingParams | Sequence[SamplingParams] | None, count: int) -> Sequence[SamplingParams]:
    if not isinstance(sampling, Sequence):
        return [sampling or SamplingParams()] * count
    if len(sampling) != count:
        raise InvalidRequest(f"{len(sampling)} sampling parameters for {count} prompts: give one for each, or one")
    return sampling
