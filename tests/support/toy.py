"""A tabular language model behind the runner's interface, and an engine without a thread, for exact tests.

The toy keeps token ids where a real model keeps keys and values. Its logits depend on every stored token of
the row, so a page that is shared, copied, trimmed or evicted wrongly changes an answer.
"""

from array import array
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.engine import Engine
from trimtab.engine.job import Request
from trimtab.engine.pages import PagePool
from trimtab.engine.plan import SteerPlan
from trimtab.engine.results import Delta, EngineStats, Event, Failure, Result
from trimtab.engine.rewards import Pair, Reward
from trimtab.engine.runner import Chunk
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.settings import EngineSettings
from trimtab.engine.vocabulary import TextStream, Vocabulary

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
    """`ModelRunner`'s interface over a function from the prefix to logits, memoised."""

    def __init__(self, logits: Logits, pool: PagePool) -> None:
        self.pool = pool
        self.logits = logits
        self.vocab_size = len(logits([0]))
        self.widths: list[int] = []
        """rows of each decode so far"""
        self.prefilled = 0
        self._store = np.full((pool.total + 1, pool.page_size), -1)
        self._memo: dict[tuple[int, ...], np.ndarray] = {}

    def prefill(self, chunks: Sequence[Chunk]) -> None:
        self._write(chunks)
        self.prefilled += sum(len(tokens) for _, tokens in chunks)

    def decode(self, chunks: Sequence[Chunk]) -> Tensor:
        self._write(chunks)
        self.widths.append(len(chunks))
        rows = []
        for table, _ in chunks:
            prefix = tuple(self._store[table.pages].reshape(-1)[: table.length + 1].tolist())
            if prefix not in self._memo:
                self._memo[prefix] = self.logits(prefix)
            rows.append(self._memo[prefix])
        return torch.from_numpy(np.stack(rows)).float()

    def scrub(self, pages: Sequence[int]) -> None:
        for page in pages:
            self._store[page] = -1
            self.pool.forget(page)

    def _write(self, chunks: Sequence[Chunk]) -> None:
        for source, target in self.pool.copies:
            self._store[target] = self._store[source]
        self.pool.copies.clear()
        for table, tokens in chunks:
            for offset, token in enumerate(tokens, start=table.length):
                page, slot = divmod(offset, self.pool.page_size)
                self._store[table.pages[page], slot] = token


class Toy:
    """An engine over a toy model, ticked by hand."""

    def __init__(
        self,
        logits: Logits,
        *,
        rewards: Mapping[str, Callable[[str], float]] | None = None,
        eos: int | None = None,
        pages: int = 4096,
        page_size: int = 4,
        settings: EngineSettings | None = None,
    ) -> None:
        settings = settings or EngineSettings(max_rows=4096, score_pairs=4096, guides={})
        self.runner = ToyRunner(logits, PagePool(pages, page_size, share=settings.prefix_cache))
        self.vocabulary = Vocabulary(byte_tokenizer())
        self.stats = EngineStats()
        named: dict[str, Reward] = {name: FunctionReward(name, f) for name, f in (rewards or {}).items()}
        self.engine = Engine(self.runner, named, settings, self.stats)  # type: ignore[arg-type]
        self.events: dict[object, list[Event]] = {}
        self._eos = frozenset() if eos is None else frozenset({eos})

    def submit(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams | None = None,
        *,
        n: int = 1,
        decoding: Mapping[str, object] | None = None,
        salt: bytes = b"",
    ) -> object:
        """Queue a request; returns its handle."""
        sampling = sampling or SamplingParams()
        handle = object()
        spec = DecodingSpec.parse(decoding)
        self.events[handle] = []
        self.engine.submit(
            Request(
                handle=handle,
                deliver=self._deliver,
                prompt=array("q", prompt),
                messages=(),
                program=spec.program,
                plan=SteerPlan.compile(sampling, seed=sampling.seed or 0, eos_ids=self._eos),
                text=TextStream(self.vocabulary, stop=sampling.stop),
                choices=n,
                rows=spec.program.rows(n),
                max_tokens=8 if sampling.max_tokens is None else sampling.max_tokens,
                salt=salt,
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
        self.runner.pool.check([])

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
        self._function = function

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        return [self._function(pair.answer) for pair in pairs]
