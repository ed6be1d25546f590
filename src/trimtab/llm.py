"""The engine as a Python object: for scripts and notebooks, and what the server is built on."""

import secrets
from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

import torch
from tqdm import tqdm

from trimtab.decoders.params import require_reward
from trimtab.decoders.registry import strategies
from trimtab.decoders.search.sample import Sample
from trimtab.decoders.spec import DecodingSpec
from trimtab.decoders.steer.draft import Draft
from trimtab.engine.device import check_dtype, find_device
from trimtab.engine.engine import Engine
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.guides.base import Guide, HeadGuide, LanguageGuide, ScorerGuide
from trimtab.engine.guides.build import build_guides, model_runner, page_pool
from trimtab.engine.guides.card import Card
from trimtab.engine.guides.prompts import guide_prompt
from trimtab.engine.job import Opener, Opening, Request
from trimtab.engine.loading import load_causal_lm
from trimtab.engine.memory import MemoryPlan, memory_errors, plan_device
from trimtab.engine.model import Model
from trimtab.engine.plan import BASE, LanePlan, SteerPlan
from trimtab.engine.rating import Rating
from trimtab.engine.results import Deliver, EngineStats, Event, Failure, Result
from trimtab.engine.rewards import Judgement, Pair, Reward
from trimtab.engine.rewards.contract import Contract
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.settings import EngineSettings
from trimtab.engine.sources import short_name
from trimtab.engine.templates import read_template
from trimtab.engine.vocabulary import Message, TextStream, Vocabulary
from trimtab.engine.worker import Worker
from trimtab.prompts import Prompts
from trimtab.room import answer_room


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One request before it is validated; exactly one of `prompt` and `messages` is given."""

    prompt: str | Sequence[int] | None = None
    messages: tuple[Message, ...] | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    n: int = 1
    """choices to return"""
    decoding: Mapping[str, Any] | None = None
    """strategy and parameters, as over the wire; absent: plain sampling"""
    cache_salt: str = ""
    """requests share cached prefixes only with requests of the same salt"""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    progress: bool = False
    """tell of the search's progress, as events"""
    add_special_tokens: bool = True
    """for text prompts: let the tokenizer add what it puts before a text (BOS)"""


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request that can run: tokenised, every limit checked, the seed drawn."""

    request: GenerationRequest
    prompt_ids: "array[int]"
    spec: DecodingSpec
    plan: SteerPlan
    max_tokens: int
    rows: int
    opener: Opener
    """of other conversations that the search may hold"""

    @property
    def strategy(self) -> str:
        return self.spec.strategy

    @property
    def searches(self) -> bool:
        """Whether the program considers more answers than it returns."""
        return not isinstance(self.spec.search, Sample)

    @property
    def decoding(self) -> dict[str, Any]:
        """The resolved `decoding` object, as it is echoed in the response."""
        return self.spec.dump()


class LLM:
    """A frozen language model with its guides, decoding any number of requests in shared batches.

    Loading raises ModelLoadError. Use it as a context manager, or `close()` it, to stop its thread.
    """

    def __init__(self, model: str | None = None, *, settings: EngineSettings | None = None) -> None:
        settings = settings or EngineSettings()
        self.settings = settings if model is None else settings.with_model(model)
        self.model_name = short_name(self.settings.model)
        self.stats = EngineStats()
        self.memory: MemoryPlan | None = None
        """of the GPU; filled before anything is loaded there"""
        self._worker = Worker(self._build, max_waiting=settings.max_waiting)

    def _build(self) -> Engine:
        """Load everything; runs in the engine's thread."""
        settings = self.settings
        strategies()  # a strategy that cannot be imported shows now, not at the first request
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        device = find_device(settings.device)
        self.memory = plan_device(settings, device) if device.type == "cuda" else None
        if self.memory is not None:
            settings = settings.model_copy(update={"pool_tokens": self.memory.tokens})
        with memory_errors(device, self.memory):
            self._load(settings, device)
        return Engine(self.models, self.guides, self.rewards, settings, self.stats)

    def _load(self, settings: EngineSettings, device: torch.device) -> None:
        """Load the base and its guides, with page pools of as many tokens as `settings` say."""
        loaded = load_causal_lm(
            settings.model, dtype=settings.dtype, device=device, trust_remote_code=settings.trust_remote_code
        )
        check_dtype(loaded.dtype, device)
        if settings.chat_template is not None:
            loaded.tokenizer.chat_template = read_template(settings.chat_template)
        pool = page_pool(settings, settings.pool_tokens)
        runner = model_runner(loaded.model, pool, settings)
        self.vocabulary = Vocabulary(loaded.tokenizer, runner.vocab_size)
        self.context_length = min(
            settings.context_length or loaded.context_length, loaded.context_length, pool.total * pool.page_size
        )
        salt = loaded.fingerprint.encode()
        self._base = Model(BASE, runner, self.vocabulary, self.context_length, loaded.eos_ids, salt)
        guides = build_guides(settings.guides, self._base, settings, device)
        self.guides: Mapping[str, Guide] = guides.by_name
        self.rewards: Mapping[str, Reward] = guides.rewards
        self.cards: Mapping[str, Card] = guides.cards
        self.contracts: Mapping[str, Contract] = guides.contracts
        self._translations = {
            name: guide.translation
            for name, guide in self.guides.items()
            if isinstance(guide, LanguageGuide | ScorerGuide)
        }
        self.models = {BASE: self._base} | {
            name: guide.model
            for name, guide in self.guides.items()
            if isinstance(guide, LanguageGuide | ScorerGuide) and guide.model is not self._base
        }

    @property
    def failed(self) -> Exception | None:
        """Why the engine stopped for good, if it did."""
        return self._worker.failed

    def prepare(self, request: GenerationRequest) -> PreparedRequest:
        """Tokenise and validate; raises InvalidRequest that names the field. Works in the caller's thread."""
        spec = DecodingSpec.parse(request.decoding)
        spec.check(choices=request.n, rewards=self._judges)
        if request.sampling.logprobs is not None and spec.search.others_write:
            raise InvalidRequest(
                f"logprobs are those of the base, and under {spec.strategy!r} another model may write: leave them out",
                param="logprobs",
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
        prompts, plan = self._compile(request, spec, sampling, seed)
        if plan.gate is not None and not self.vocabulary.exact:
            raise InvalidRequest(
                f"{spec.strategy} carries text between two vocabularies, and the base's does not spell bytes exactly",
                param="decoding.strategy",
            )
        field = "prompt" if request.messages is None else "messages"
        max_tokens = answer_room(self.models, len(prompts.base), plan, field=field)
        opener = partial(self._open, request, spec, sampling, seed, max_tokens)
        return PreparedRequest(request, prompts.base, spec, plan, max_tokens, rows, opener)

    def submit(self, prepared: PreparedRequest, handle: object, deliver: Deliver) -> None:
        """Start a request; `deliver` gets its events from the engine's thread. Raises Overloaded."""
        request, sampling = prepared.request, prepared.plan.sampling
        messages = request.messages
        if messages is None:
            text = request.prompt if isinstance(request.prompt, str) else self.vocabulary.decode(prepared.prompt_ids)
            messages = (Message(role="user", content=text),)
        self._worker.submit(
            Request(
                handle=handle,
                deliver=deliver,
                prompt=prepared.prompt_ids,
                messages=messages,
                program=prepared.spec.program,
                plan=prepared.plan,
                text=_text(self.vocabulary, sampling),
                choices=request.n,
                rows=prepared.rows,
                max_tokens=prepared.max_tokens,
                budget=prepared.spec.budget,
                progress=request.progress,
                opener=prepared.opener,
                translations=self._translations,
                salt=request.cache_salt.encode(),
            )
        )

    def judge(self, reward: str, pairs: Sequence[Pair]) -> "Future[list[Judgement]]":
        """Queue answers for a reward guide; the future may be cancelled. Works in any thread, and waits for nothing.

        It fails with GuideError if the reward does, and with InvalidRequest if its chat template refuses a
        conversation. Raises InvalidRequest for a guide that is no reward, and Overloaded.
        """
        require_reward(reward, self.rewards, path="reward")
        rating = Rating(reward, tuple(pairs))
        if rating.pairs:
            self._worker.submit(rating)
        else:
            rating.take(())
        return rating.future

    def score(self, reward: str, pairs: Sequence[Pair]) -> list[float]:
        """Score answers and wait; raises what `judge` does. Never call it from the engine's thread."""
        future = self.judge(reward, pairs)
        try:
            return [judgement.score for judgement in future.result()]
        except BaseException:
            future.cancel()
            raise

    def cancel(self, handle: object) -> None:
        """Give a request up; its rows and pages are free one tick later. Any thread, any time."""
        self._worker.cancel(handle)

    def drain(self) -> None:
        """Refuse new requests with Overloaded; those submitted go on."""
        self._worker.drain()

    def close(self) -> None:
        """Stop the engine's thread; requests still running end with Cancelled."""
        self._worker.close()

    def generate(
        self,
        prompts: Iterable[str | Sequence[int]],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        n: int = 1,
        decoding: Mapping[str, Any] | None = None,
        progress: bool = True,
    ) -> list[Result]:
        """Continue each prompt (text or token ids); one result per prompt, in order. `sampling` may be one for each."""
        texts = list(prompts)
        requests = [
            GenerationRequest(prompt=each, sampling=own, n=n, decoding=decoding)
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
        progress: bool = True,
    ) -> list[Result]:
        """Answer each conversation under the model's chat template; otherwise as `generate`."""
        talks = [tuple(each) for each in conversations]
        requests = [
            GenerationRequest(messages=each, sampling=own, n=n, decoding=decoding)
            for each, own in zip(talks, _one_each(sampling, len(talks)), strict=True)
        ]
        return self._run(requests, progress)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _judges(self) -> Collection[str]:
        """What can score answers: rewards, and value heads of one value."""
        heads = (name for name, guide in self.guides.items() if isinstance(guide, HeadGuide) and guide.head.width == 1)
        return [*self.rewards, *heads]

    def _compile(
        self, request: GenerationRequest, spec: DecodingSpec, sampling: SamplingParams, seed: int
    ) -> tuple[Prompts, SteerPlan]:
        """What the models read, and the plan that steers by it."""
        prompts = Prompts(request, self._base, self.guides)
        draft = Draft(self.guides, prompts, self._base.runner.vocab_size)
        spec.steer(draft)
        plan = draft.compile(
            sampling, seed=seed, eos_ids=self._base.eos_ids, trace=spec.trace == "tokens", measured=spec.measured
        )
        return prompts, plan

    def _open(
        self,
        request: GenerationRequest,
        spec: DecodingSpec,
        sampling: SamplingParams,
        seed: int,
        max_tokens: int,
        messages: Sequence[Message],
        model: str,
    ) -> Opening:
        """Another conversation of a request, for the base as the request steers it, or for a guide alone."""
        if model == BASE:
            other = replace(request, prompt=None, messages=tuple(messages), continue_final_message=False)
            prompts, plan = self._compile(other, spec, sampling, seed)
            room = answer_room(self.models, len(prompts.base), _longest(plan), field="decoding")
            limit = len(prompts.base) + min(max_tokens, room)
            return Opening(prompts.base, plan, _text(self.vocabulary, sampling), limit)
        guide = self.guides[model]
        assert isinstance(guide, LanguageGuide)  # admission
        prompt = array("q", guide_prompt(model, guide.vocabulary, messages))
        own = sampling.model_copy(update={"logit_bias": {}, "stop_token_ids": (), "logprobs": None})
        limit = min(len(prompt) + max_tokens, guide.model.context_length)
        if limit <= len(prompt):
            raise InvalidRequest(
                f"guide {model!r} holds {limit} tokens and its conversation has {len(prompt)}: shorten the prompt or "
                "the answer",
                param="decoding",
            )
        plan = SteerPlan(own, seed, guide.model.eos_ids, guide.variant)
        lane = LanePlan(model, guide.model.name, prompt, guide.variant)
        return Opening(prompt, plan, _text(guide.vocabulary, own), limit, lane)

    def _run(self, requests: list[GenerationRequest], progress: bool) -> list[Result]:
        """Run all requests at once and wait; the first failure cancels the rest and is raised."""
        ready = [self.prepare(request) for request in requests]
        events: SimpleQueue[tuple[object, Event]] = SimpleQueue()
        handles = [object() for _ in ready]
        results: dict[object, Result] = {}

        def deliver(batch: list[tuple[object, Event]]) -> None:
            for item in batch:
                events.put(item)

        waiting = iter(zip(ready, handles, strict=True))
        try:
            with tqdm(total=len(ready), unit="request", disable=not progress) as bar:
                with self._worker.together():  # so that the batches do not depend on timing
                    for prepared, handle in islice(waiting, self.settings.max_waiting):
                        self.submit(prepared, handle, deliver)
                while len(results) < len(ready):
                    handle, event = events.get()
                    if isinstance(event, Failure):
                        raise event.error
                    if isinstance(event, Result):
                        results[handle] = event
                        bar.update()
                        for prepared, following in waiting:
                            self.submit(prepared, following, deliver)
                            break
        except BaseException:
            for handle in handles:
                self.cancel(handle)
            raise
        return [results[handle] for handle in handles]


def _text(vocabulary: Vocabulary, sampling: SamplingParams) -> TextStream:
    """The text of an answer, with what stops it."""
    return TextStream(
        vocabulary,
        stop=sampling.stop,
        include_stop=sampling.include_stop_str_in_output,
        skip_special=sampling.skip_special_tokens,
    )


def _one_each(sampling: SamplingParams | Sequence[SamplingParams] | None, count: int) -> Sequence[SamplingParams]:
    if not isinstance(sampling, Sequence):
        return [sampling or SamplingParams()] * count
    if len(sampling) != count:
        raise InvalidRequest(f"{len(sampling)} sampling parameters for {count} prompts: give one for each, or one")
    return sampling


def _longest(plan: SteerPlan) -> SteerPlan:
    """The plan of an answer as long as there is room for."""
    return replace(plan, sampling=plan.sampling.model_copy(update={"max_tokens": None}))
