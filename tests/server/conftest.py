"""A tiny random model behind a real uvicorn, and engines that misbehave in ways the real one cannot be made to."""

import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest
import torch
from openai import OpenAI
from running import Running, wait_until
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trimtab.compiling import Compiler
from trimtab.decoders.library import Library
from trimtab.decoders.preference import Personal
from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.errors import Overloaded
from trimtab.engine.plan import SteerPlan
from trimtab.engine.results import (
    Candidate,
    Choice,
    Deliver,
    Delta,
    EngineStats,
    Event,
    Failure,
    Progress,
    Result,
    Usage,
)
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.settings import EngineSettings
from trimtab.engine.vocabulary import Vocabulary
from trimtab.llm import LLM
from trimtab.requests import GenerationRequest, PreparedRequest
from trimtab.server.settings import ServerSettings, Settings

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if not (loop.last and continue_final_message) %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, five special tokens, a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", chat_template=TEMPLATE)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with a byte vocabulary, as a transformers folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llm(model_folder: Path) -> Iterator[LLM]:
    """The real engine on the tiny model, with an empty store of norms and profiles."""
    settings = EngineSettings(model=str(model_folder), dtype="float32", device="cpu", threads=1, pool_tokens=4096)
    with closing(Library()) as library, LLM(settings=settings, library=library) as model:
        yield model


class FakeLLM:
    """Follows the interface of LLM; the test plays the engine's thread through `say`, `end` and `fail`."""

    def __init__(self, vocabulary: object) -> None:
        self.settings = EngineSettings(model="fake")
        self.model_name = "fake"
        self.context_length = 512
        self.vocabulary = vocabulary
        self.rewards: dict[str, object] = {}
        self.stats = EngineStats()
        self.failed: Exception | None = None
        self.library = None
        self.refuses: Exception | None = None
        self.submitted: list[tuple[PreparedRequest, object, Deliver]] = []
        self.cancelled: list[object] = []
        self.draining = False

    def prepare(self, request: GenerationRequest) -> PreparedRequest:
        spec = DecodingSpec.parse(request.decoding)
        plan = SteerPlan(SamplingParams(), 7, frozenset(), trace=spec.traces_tokens)
        return PreparedRequest(request, array("q", [1, 2]), spec, plan, 9, request.n, cast(Compiler, None))

    def personal(self, tenant: str | None) -> Personal:
        return Personal()

    def submit(self, prepared: PreparedRequest, handle: object, deliver: Deliver) -> None:
        if self.refuses is not None:
            raise self.refuses
        if self.draining:
            raise Overloaded("the server is shutting down", retry_after=5)
        self.submitted.append((prepared, handle, deliver))

    def cancel(self, handle: object) -> None:
        self.cancelled.append(handle)

    def drain(self) -> None:
        self.draining = True

    def interrupt_all(self) -> None:
        """Nothing that it plays has a best so far."""

    def say(self, text: str, choice: int = 0, request: int = -1) -> None:
        self._deliver(request, Delta(choice, text, (65,), None))

    def end(self, *texts: str, request: int = -1) -> None:
        choices = tuple(Choice(text, (65,), "stop", None, None) for text in texts)
        candidates = tuple(Candidate(text, 1, "stop", None, i) for i, text in enumerate(texts))
        usage = Usage(2, 0, len(texts), {"base": 3}, {"base": 2}, {"total": 1.5}, 0)
        self._deliver(request, Result(choices, candidates, usage, 7, "finished"))

    def progress(self, phase: str, *, request: int = -1, **changes: Any) -> None:
        told = Progress(phase, candidates=4, finished=1, best_reward=0.5, model_tokens=9, milliseconds=1.23456)
        self._deliver(request, replace(told, **changes))

    def fail(self, error: Exception, request: int = -1) -> None:
        self._deliver(request, Failure(error))

    def _deliver(self, request: int, event: Event) -> None:
        """From a thread of its own, as the engine does."""
        _, handle, deliver = self.submitted[request]
        thread = threading.Thread(target=deliver, args=([(handle, event)],))
        thread.start()
        thread.join()


@pytest.fixture(scope="session")
def shared(llm: LLM) -> Iterator[Running]:
    """One server on the tiny model for all tests that only ask it things."""
    running = Running(llm, ServerSettings(max_body_bytes=100_000))
    yield running
    running.stop()


@pytest.fixture
def http(shared: Running) -> Iterator[httpx2.Client]:
    """Plain HTTP to the shared server."""
    with httpx2.Client(base_url=shared.url, timeout=30) as client:
        yield client


@pytest.fixture
def openai(shared: Running) -> Iterator[OpenAI]:
    """OpenAI's client, which validates every response strictly."""
    with OpenAI(
        base_url=shared.url + "/v1",
        api_key="none",
        max_retries=0,
        timeout=30,
        _strict_response_validation=True,
    ) as client:
        yield client


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    """Start a server of one's own: `start(llm, ServerSettings(...))`, or with whole `Settings` and their source."""
    yield from _starting()


@pytest.fixture(scope="module")
def start_shared() -> Iterator[Callable[..., Running]]:
    """The same for a server that all tests of a module ask."""
    yield from _starting()


def _starting() -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(
        llm: LLM, given: ServerSettings | Settings | None = None, source: Callable[[], Settings] | None = None
    ) -> Running:
        started.append(Running(llm, given or ServerSettings(), source))
        return started[-1]

    yield start
    for running in started:
        running.stop()


@pytest.fixture
def fake() -> FakeLLM:
    """An engine that does what the test tells it to."""
    return FakeLLM(Vocabulary(tiny_tokenizer()))


@pytest.fixture(name="wait_until")
def wait_until_fixture() -> Callable[..., None]:
    """Poll until a condition holds."""
    return wait_until
