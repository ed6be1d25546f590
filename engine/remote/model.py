"""A base model behind another server, as the engine sees it: a vocabulary, and pages that are not here."""

import sys
from array import array

import torch

from trimtab.engine.loading import load_tokenizer
from trimtab.engine.model import Model
from trimtab.engine.pages import PagePool, PageTable
from trimtab.engine.plan import BASE
from trimtab.engine.remote.base import RemoteBase
from trimtab.engine.remote.settings import RemoteSettings
from trimtab.engine.remote.stats import RemoteStats
from trimtab.engine.runner import ModelRunner
from trimtab.engine.settings import EngineSettings
from trimtab.engine.templates import read_template
from trimtab.engine.vocabulary import Vocabulary


class FarTable(PageTable):
    """Of a sequence whose keys and values are another server's concern: all of it counts as stored."""

    def __init__(self, pool: PagePool) -> None:
        super().__init__(pool)
        self.length = sys.maxsize

    def fork(self) -> "FarTable":
        self.pool.forks += 1
        return FarTable(self.pool)

    def match(self, tokens: "array[int]") -> int:
        return 0

    def reserve(self, length: int) -> None:
        pass

    def stored(self, tokens: "array[int]", length: int) -> None:
        pass

    def pin(self, length: int) -> None:
        pass

    def trim(self, length: int) -> None:
        pass


class FarPool(PagePool):
    """A pool that is never full, because nothing is in it."""

    def __init__(self) -> None:
        super().__init__(1, 1)

    @property
    def available(self) -> int:
        return sys.maxsize

    @property
    def used(self) -> int:
        return 0

    def table(self, salt: bytes = b"") -> FarTable:
        return FarTable(self)

    def pages_for(self, tokens: int) -> int:
        return 0


class FarRunner(ModelRunner):
    """Stands where a model has its runner, without a forward: the engine asks the server instead."""

    def __init__(self, vocab_size: int) -> None:
        self.pool = FarPool()
        self.vocab_size = vocab_size
        self.device = torch.device("cpu")
        self.dtype = torch.float32

    def forget(self, name: str) -> None:
        pass


def remote_model(settings: EngineSettings, remote: RemoteSettings, stats: RemoteStats) -> Model:
    """The base that `remote` serves, with the tokenizer of `settings.model`; raises ModelLoadError."""
    known = load_tokenizer(settings.model, trust_remote_code=settings.trust_remote_code)
    if settings.chat_template is not None:
        known.tokenizer.chat_template = read_template(settings.chat_template)
    vocabulary = Vocabulary(known.tokenizer, known.rows)
    base = RemoteBase(remote, vocabulary, stats)
    lengths = (settings.context_length, base.capabilities.context_length, known.context_length)
    return Model(
        BASE,
        FarRunner(known.rows),
        vocabulary,
        min(length for length in lengths if length is not None),
        known.eos_ids,
        salt=b"",
        remote=base,
    )
