"""What a machine tells of one model: how long a step takes, and how long reading does."""

from typing import Literal, NamedTuple, Protocol

from trimtab.bench.capacity.sizes import Size

Reading = Literal["prompt", "text", "candidates"]
"""what is read several tokens at a time: prompts, texts that are judged, candidates for next tokens"""


class Seconds(NamedTuple):
    """A time, and what sets it."""

    seconds: float
    limit: str
    """weights, cache, arithmetic, host, or measured"""


class Clock(Protocol):
    """One model on one machine."""

    def step(self, rows: float, context: float, adapted: float = 0.0) -> Seconds:
        """One decode step over `rows` sequences of `context` tokens, of which `adapted` run through an adapter."""
        ...

    def read(self, tokens: float, passes: float, kind: Reading = "prompt") -> float:
        """Seconds to read tokens in that many forwards."""
        ...


class Machine(Protocol):
    """A GPU, or a machine that was measured."""

    @property
    def name(self) -> str: ...

    @property
    def memory(self) -> float | None:
        """Bytes for weights and caches; None: not the bound."""
        ...

    @property
    def pool_tokens(self) -> int | None:
        """Tokens whose keys and values fit, where it was measured so; None: as memory allows."""
        ...

    @property
    def request(self) -> float:
        """Seconds of the process for each request: HTTP, tokens of the prompt, admission."""
        ...

    def clock(self, model: str, size: Size) -> Clock:
        """The clock of a model; raises BenchError for one that was not measured on a measured machine."""
        ...
