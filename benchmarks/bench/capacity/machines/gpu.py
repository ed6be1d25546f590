"""A roofline: a step lasts as long as its bytes or its arithmetic, whichever is longer, and what the host adds.

Derived from data sheets with the efficiencies below; no GPU was measured. Replace it by a calibration of your own.
"""

from dataclasses import dataclass
from functools import cache
from importlib import resources

import yaml
from pydantic import Field

from trimtab.bench.capacity.machines.clock import Reading, Seconds
from trimtab.bench.capacity.sizes import Size
from trimtab.bench.records import Record

BANDWIDTH = 0.7
"""share of the data sheet's bandwidth that a decode step reaches: an assumption, in the middle of what is commonly
reported of batched decoding (0.6 to 0.85)"""
ARITHMETIC = 0.5
"""share of the data sheet's dense FLOP/s that reading long prompts reaches: likewise (0.4 to 0.65)"""
STEP = 2.0e-3
"""seconds of the host for each step, whatever is in it: the tick of the engine's Python beside replayed graphs; an
assumption"""
ROW = 4.0e-5
"""seconds of the host for each row of a step: stop checks, text, stream; an assumption"""
LAYER = 1.0e-5
"""seconds for each layer of a forward, launches and short kernels that reach no bandwidth; an assumption"""
ADAPTED = 0.15
"""what an adapter's low-rank products add to a row that is bound by arithmetic; an assumption"""
REQUEST = 3.0e-3
"""seconds of the process for each request; an assumption"""


class Sheet(Record):
    """What the maker says of a GPU."""

    memory: float = Field(gt=0)
    """GB, 1e9 bytes"""
    bandwidth: float = Field(gt=0)
    """GB/s"""
    tflops: float = Field(gt=0)
    """dense, bfloat16"""


@cache
def sheets() -> dict[str, Sheet]:
    """The GPUs that come with trimtab, by name."""
    text = (resources.files("trimtab.bench") / "data" / "gpus.yaml").read_text(encoding="utf-8")
    return {name: Sheet.model_validate(each) for name, each in yaml.safe_load(text).items()}


@dataclass(frozen=True, slots=True)
class Roofline:
    """The clock of one model on one GPU."""

    sheet: Sheet
    size: Size

    def step(self, rows: float, context: float, adapted: float = 0.0) -> Seconds:
        bandwidth = self.sheet.bandwidth * 1e9 * BANDWIDTH
        weights = self.size.weights / bandwidth
        cache = rows * context * self.size.kv / bandwidth
        arithmetic = 2 * self.size.parameters * (rows + ADAPTED * adapted) / (self.sheet.tflops * 1e12 * ARITHMETIC)
        host = STEP + ROW * rows + LAYER * self.size.layers
        slowest = max((weights, "weights"), (cache, "cache"), (arithmetic, "arithmetic"), (host, "host"))
        return Seconds(max(weights + cache, arithmetic) + host, slowest[1])

    def read(self, tokens: float, passes: float, kind: Reading = "prompt") -> float:
        bandwidth, flops = self.sheet.bandwidth * 1e9 * BANDWIDTH, self.sheet.tflops * 1e12 * ARITHMETIC
        if not tokens:
            return 0.0
        weights = passes * self.size.weights / bandwidth
        arithmetic = 2 * self.size.parameters * tokens / flops
        return max(weights, arithmetic) + passes * (STEP + LAYER * self.size.layers)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A machine."""

    name: str
    sheet: Sheet
    pool_tokens: int | None = None
    request: float = REQUEST

    @property
    def memory(self) -> float:
        """Bytes."""
        return self.sheet.memory * 1e9

    def clock(self, model: str, size: Size) -> Roofline:
        """The roofline of any model."""
        return Roofline(self.sheet, size)
