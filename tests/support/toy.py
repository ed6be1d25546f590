"""A tabular language model behind the runner's interface, and an engine without a thread, for exact tests.

The toy keeps token ids where a real model keeps keys and values. Its logits depend on every stored token of
the row, so a page that is shared, copied, trimmed or evicted wrongly changes an answer.
"""

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from trimtab.decoders.floor import Floor
from trimtab.decoders.spec import DecodingSpec
from trimtab.decoders.steer.draft import Draft, PromptView
from trimtab.engine.alignment import Translation
from trimtab.engine.engine import Engine
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.grammar import Grammar, Grammars
from trimtab.engine.guides.base import Guide, HeadGuide, LanguageGuide, PreferenceGuide, ScorerGuide, VectorGuide
from trimtab.engine.guides.heads import ValueHead
from trimtab.engine.guides.preference import PreferenceHead
from trimtab.engine.lm_head import Edit
from trimtab.engine.model import Model
from trimtab.engine.pages import PagePool, PageTable
from trimtab.engine.plan import BASE, LanePlan, SteerPlan, Variant
from trimtab.engine.program import Conversation
from trimtab.engine.request import Opening, Request
from trimtab.engine.results import Delta, EngineStats, Event, Failure, Result
from trimtab.engine.rewards import Judgement, Pair, Reward
from trimtab.engine.runner import Chunk, Decoded
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.settings import EngineSettings
from trimtab.engine.vocabulary import Message, TextStream, Vocabulary

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, ids 0 to 255, then `<eos>` as id 256."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


Logits = Callable[[Sequence[int]], np.ndarray]


def random_table(vocab: int, scale: float = 1.5) -> Logits:
    """Logits drawn once per prefix, from a generator seeded by the prefix."""

    def logits(prefix: Sequence[int]) -> np.ndarray:
        seed = np.random.SeedSequence([len(prefix), *prefix])
        return np.random.default_rng(seed).normal(size=vocab) * scale

    return logits


class ToyRunner:
    """`ModelRunner`'s interface over a function from the prefix to logits, memoised.

    `features` stands in for the last hidden state: a function from the prefix to a vector. Without it the hidden state
    is the logits themselves, so that the LM head, which edits come before, is the identity.
    """

    def __init__(self, logits: Logits, pool: PagePool, features: Logits | None = None) -> None:
        self.pool = pool
        self.logits = logits
        self.features = features or logits
        self.vectors: dict[str, np.ndarray] = {}
        """control vectors, added to the logits"""
        self.adapters: dict[str, list[np.ndarray]] = {}
        """what each block of an adapter adds to the logits"""
        self.vocab_size = len(logits([0]))
        self.device = torch.device("cpu")
        self.widths: list[int] = []
        """rows of each decode so far"""
        self.prefilled = 0
        self._store = np.full((pool.total + 1, pool.page_size), -1)
        self._memo: dict[tuple[int, ...], np.ndarray] = {}

    def prefill(self, chunks: Sequence[Chunk]) -> None:
        self._write(chunks)
        self.prefilled += sum(len(chunk.tokens) for chunk in chunks)

    def read(self, chunks: Sequence[Chunk]) -> Tensor:
        return self.decode(chunks).logits

    def decode(self, chunks: Sequence[Chunk], edits: Sequence[Edit] = ()) -> Decoded:
        self._write(chunks)
        self.widths.append(len(chunks))
        rows, hidden = [], []
        for chunk in chunks:
            shift = sum(coeff * self.vectors[name] for name, coeff in chunk.variant.vectors)
            if chunk.variant.adapter is not None:
                blocks = self.adapters[chunk.variant.adapter]
                shift = shift + sum(s * block for s, block in zip(chunk.variant.scales, blocks, strict=True))
            for count in range(1, len(chunk.tokens) + 1):
                prefix = self._prefix(chunk.table, chunk.table.length + count)
                if prefix not in self._memo:
                    self._memo[prefix] = self.logits(prefix)
                rows.append(self._memo[prefix] + shift)
                hidden.append(rows[-1] if self.features is self.logits else self.features(prefix))
        logits, states = (torch.from_numpy(np.stack(each)).float() for each in (rows, hidden))
        unedited = torch.cat([logits[:0], *(logits[edit.rows] for edit in edits)])
        for edit in edits:
            logits[edit.rows] = edit.apply(states[edit.rows])
        return Decoded(logits, states, unedited)

    def hidden(self, chunks: Sequence[Chunk]) -> Tensor:
        self._write(chunks)
        ends = [self._prefix(chunk.table, chunk.table.length + len(chunk.tokens)) for chunk in chunks]
        return torch.from_numpy(np.stack([self.features(prefix) for prefix in ends])).float()

    def score(self, chunks: Sequence[Chunk], candidates: Sequence[Sequence[int]]) -> Tensor:
        self._write(chunks)
        values = np.zeros((len(chunks), max(map(len, candidates)), len(self.features([0]))))
        for row, (chunk, ids) in enumerate(zip(chunks, candidates, strict=True)):
            end = chunk.table.length + len(chunk.tokens)
            prefix = self._prefix(chunk.table, end)
            for j, token in enumerate(ids):
                self._put(chunk.table, end + j, token)
                values[row, j] = self.features((*prefix, token))
        return torch.from_numpy(values).float()

    def keep(self, moves: Sequence[tuple[PageTable, int, int]]) -> None:
        for table, source, target in moves:
            self._put(table, target, self._prefix(table, source + 1)[source])

    def scrub(self, pages: Sequence[int]) -> None:
        for page in pages:
            self._store[page] = -1
            self.pool.forget(page)

    def _write(self, chunks: Sequence[Chunk]) -> None:
        for source, target in self.pool.copies:
            self._store[target] = self._store[source]
        self.pool.copies.clear()
        for chunk in chunks:
            for offset, token in enumerate(chunk.tokens, start=chunk.table.length):
                self._put(chunk.table, offset, token)

    def _put(self, table: PageTable, offset: int, token: int) -> None:
        page, slot = divmod(offset, self.pool.page_size)
        self._store[table.pages[page], slot] = token

    def _prefix(self, table: PageTable, length: int) -> tuple[int, ...]:
        return tuple(self._store[table.pages].reshape(-1)[:length].tolist())


def seen(prompt: Sequence[int], view: PromptView) -> Sequence[int]:
    """A prompt of which the first token is the system message; token 0 stands for no text at all."""
    if view.empty:
        return [0]
    system = [len(view.system)] if view.system is not None else [] if view.drop_system else prompt[:1]
    return [*system, *prompt[1:]]


class ToyHead:
    """Reads the first number of a toy's features."""

    def __call__(self, hidden: Tensor) -> Tensor:
        return hidden[..., 0]


class Toy:
    """An engine over a toy model and toy guides, ticked by hand."""

    def __init__(
        self,
        logits: Logits,
        *,
        features: Logits | None = None,
        rewards: Mapping[str, Callable[[str], float]] | None = None,
        eos: int | None = None,
        pages: int = 4096,
        page_size: int = 4,
        settings: EngineSettings | None = None,
    ) -> None:
        self.settings = settings or EngineSettings(max_rows=4096, score_pairs=4096, guides={})
        self.vocabulary = Vocabulary(byte_tokenizer())
        self.grammars = Grammars()
        self._pages = pages, page_size
        self._eos = frozenset() if eos is None else frozenset({eos})
        self.base = self._model(BASE, logits, features)
        self.runner = self.base.runner
        self.stats = EngineStats()
        self.guides: dict[str, Guide] = {}
        named: dict[str, Reward] = {name: FunctionReward(name, f) for name, f in (rewards or {}).items()}
        self.models = {BASE: self.base}
        self.engine = Engine(self.models, self.guides, named, self.settings, self.stats)
        self.events: dict[object, list[Event]] = {}

    def add_lm(self, name: str, logits: Logits) -> ToyRunner:
        """A language-model guide of the same vocabulary."""
        self.models[name] = model = self._model(name, logits)
        self.guides[name] = LanguageGuide(name, model, translation=self._identity())
        return model.runner

    def add_scorer(self, name: str, value: Callable[[Sequence[int]], float]) -> ToyRunner:
        """A guide that gives every prefix, prompt included, a value."""
        size = self.runner.vocab_size
        model = self._model(name, lambda prefix: np.zeros(size), lambda prefix: np.array([value(prefix)]))
        self.models[name] = model
        self.guides[name] = ScorerGuide(name, model, ToyHead(), "reward", translation=self._identity())
        return model.runner

    def add_head(self, name: str, head: ValueHead | None = None) -> None:
        """A value head on the base's features; without `head` they are the values of all tokens themselves."""
        size = self.runner.vocab_size
        self.guides[name] = HeadGuide(name, head or ValueHead([torch.eye(size)], [torch.zeros(size)]))

    def add_preference(self, name: str, head: PreferenceHead) -> None:
        """Weights of rewards by the base's features at the end of the prompt."""
        self.guides[name] = PreferenceGuide(name, head)

    def add_vector(self, name: str, direction: np.ndarray) -> None:
        """A control vector (V,), added to the base's logits."""
        self.runner.vectors[name] = direction
        self.guides[name] = VectorGuide(name, {0: torch.from_numpy(direction)})

    def add_adapter(self, name: str, general: np.ndarray, blocks: Mapping[str, np.ndarray]) -> None:
        """An adapter with a block for each attribute, all (V,), added to the base's logits."""
        self.runner.adapters[name] = [general, *blocks.values()]
        even = Variant(adapter=name, scales=(1.0, *(1 / len(blocks) for _ in blocks)))
        self.guides[name] = LanguageGuide(name, self.base, even, self._identity(), attributes=tuple(blocks))

    def plan(self, prompt: Sequence[int], sampling: SamplingParams, spec: DecodingSpec) -> SteerPlan:
        """The request's plan; every guide reads the prompt as `seen` through its view."""
        draft = Draft(self.guides, lambda name, view: array("q", seen(prompt, view)), self.runner.vocab_size)
        spec.steer(draft)
        return draft.compile(
            sampling,
            seed=sampling.seed or 0,
            eos_ids=self._eos,
            trace=spec.traces_tokens,
            measured=spec.measured,
        )

    def _identity(self) -> Translation:
        size = self.runner.vocab_size
        return Translation(np.arange(size), size)

    def _model(self, name: str, logits: Logits, features: Logits | None = None) -> Model:
        pool = PagePool(*self._pages, share=self.settings.prefix_cache)
        runner = ToyRunner(logits, pool, features)
        return Model(name, runner, self.vocabulary, 10_000, self._eos, name.encode())  # type: ignore[arg-type]

    def submit(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams | None = None,
        *,
        n: int = 1,
        decoding: Mapping[str, object] | None = None,
        salt: bytes = b"",
        pinned: int = 0,
        messages: tuple[Message, ...] = (),
        progress: bool = False,
        priority: int = 0,
        prompt_logprobs: int | None = None,
        grammar: Grammar | None = None,
        floor: Floor | None = None,
        random_stream: int = 0,
    ) -> object:
        """Queue a request; returns its handle."""
        sampling = sampling or SamplingParams()
        handle = object()
        spec = DecodingSpec.parse(decoding)
        if floor is not None:
            spec, _ = floor.apply(spec, choices=n)
        max_tokens = 8 if sampling.max_tokens is None else sampling.max_tokens
        program = spec.program
        rows = program.rows(n)
        self.events[handle] = []

        def opener(conversation: Conversation) -> Opening:
            """Another conversation, spelled by the bytes of its messages under the toys' template."""
            model, messages = conversation.model, conversation.messages
            text = "".join(f"<{message['role']}>{message['content']}\n" for message in messages) + "<assistant>"
            other = array("q", self.vocabulary.encode(text))
            stream = TextStream(self.vocabulary, stop=() if conversation.helper else sampling.stop)
            longest = self.models[model].context_length
            limit = longest if conversation.helper else len(other) + max_tokens
            if len(other) >= longest:
                raise InvalidRequest("too long")
            if model == BASE:
                return Opening(other, self.plan(other, sampling, spec), stream, limit)
            plan = SteerPlan(sampling, sampling.seed or 0, self._eos)
            return Opening(other, plan, stream, limit, LanePlan(model, model, other))

        self.engine.submit(
            Request(
                handle=handle,
                deliver=self._deliver,
                prompt=array("q", prompt),
                messages=messages,
                program=replace(program, told=tuple({} for _ in spec.prompt_parts)) if spec.prompt_parts else program,
                plan=self.plan(prompt, sampling, spec),
                text=TextStream(self.vocabulary, stop=sampling.stop),
                choices=n,
                rows=min(rows, spec.budget.max_rows or rows),
                max_tokens=max_tokens,
                budget=spec.budget,
                progress=progress,
                opener=opener,
                salt=salt,
                pinned=pinned,
                strategy=spec.strategy,
                priority=priority,
                prompt_logprobs=prompt_logprobs,
                random_stream=random_stream,
                discreet=spec.watch is not None,
                tree=spec.traces_search,
                grammar=None if grammar is None else partial(self.grammars.start, grammar),
            )
        )
        return handle

    def finish(self) -> None:
        """Tick until no request is left; every page must be free then."""
        for _ in range(100_000):
            if self.engine.idle:
                break
            self.engine.tick()
        assert self.engine.idle, "a request never ended"
        for model in self.models.values():
            model.runner.pool.check([])

    def end(self, handle: object) -> Result | Failure:
        """The last event of a request."""
        last = self.events[handle][-1]
        assert isinstance(last, Result | Failure)
        return last

    def result(self, handle: object) -> Result:
        last = self.end(handle)
        assert isinstance(last, Result), last
        return last

    def deltas(self, handle: object) -> list[Delta]:
        return [event for event in self.events[handle] if isinstance(event, Delta)]

    def run(self, *arguments: object, **options: object) -> Result:
        """Submit one request and run everything to the end."""
        handle = self.submit(*arguments, **options)  # type: ignore[arg-type]
        self.finish()
        return self.result(handle)

    def _deliver(self, batch: list[tuple[object, Event]]) -> None:
        for handle, event in batch:
            self.events[handle].append(event)


class FunctionReward:
    """A reward that is a function of the answer's text."""

    def __init__(self, name: str, function: Callable[[str], float]) -> None:
        self.name = name
        self.labels = ("LABEL_0",)
        self._function = function

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        return [judgement.score for judgement in self.judge(pairs)]

    def judge(self, pairs: Sequence[Pair]) -> list[Judgement]:
        scores = [self._function(pair.answer) for pair in pairs]
        return [Judgement(score, (score,)) for score in scores]
