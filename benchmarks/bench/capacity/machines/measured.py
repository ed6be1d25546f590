"""A machine by what was measured on it: a file of `benchmarks/capacity.py --calibrate`."""

import json
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator

from trimtab.bench.capacity.machines.clock import Machine, Reading, Seconds
from trimtab.bench.capacity.machines.gpu import Gpu, sheets
from trimtab.bench.capacity.naming import reasons, unknown
from trimtab.bench.capacity.sizes import Size
from trimtab.bench.errors import BenchError
from trimtab.bench.records import Record

CPU = "cpu"
"""name of the calibration that comes with trimtab"""


class Calibrated(Record):
    """One model: t(rows, context) = steps(rows) + row_context * rows * context, and reading. Seconds."""

    steps: tuple[tuple[float, float], ...] = Field(min_length=2)
    """rows, and seconds of a step over that many without their context; in between, and beyond, straight lines"""
    row_context: float = Field(ge=0.0)
    """of a row, for each token of its context"""
    adapted: float = Field(ge=0.0)
    """of a row that runs through an adapter of the base, on top"""
    token: float = Field(ge=0.0)
    """of a token that is read with others: prompts"""
    scored: float = Field(ge=0.0)
    """of a token that an adapter reads with others: rewards"""
    candidate: float = Field(ge=0.0)
    """of a candidate for the next token that an adapter scores"""
    reading: float = Field(ge=0.0)
    """of a forward that reads, whatever is in it"""

    @field_validator("steps")
    @classmethod
    def _rising(cls, steps: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        if any(after[0] <= before[0] for before, after in pairwise(steps)):
            raise ValueError("the numbers of rows have to rise")
        return steps


class FittedRun(Record):
    """One run that the numbers were found from, and what they say of it; seconds."""

    name: str
    seconds: float
    fitted: float


class Calibration(Record):
    """The file."""

    name: str
    machine: Mapping[str, Any]
    """hardware, versions, commit, dtype and threads"""
    models: dict[str, Calibrated]
    """by the name that a mix calls them"""
    request: float = Field(ge=0.0)
    """of a request: HTTP, tokens, admission"""
    pool_tokens: int | None = None
    runs: tuple[FittedRun, ...] = ()


@dataclass(frozen=True, slots=True)
class Measured:
    """The clock of one model."""

    told: Calibrated

    def step(self, rows: float, context: float, adapted: float = 0.0) -> Seconds:
        knots = self.told.steps
        at = min(max(1, bisect_right(knots, (rows, float("inf")))), len(knots) - 1)
        (low, before), (high, after) = knots[at - 1], knots[at]
        line = before + (after - before) * (rows - low) / (high - low)
        line = max(line, knots[0][1] * min(1.0, rows / low))
        extra = self.told.row_context * rows * context + self.told.adapted * adapted
        return Seconds(line + extra, "measured")

    def read(self, tokens: float, passes: float, kind: Reading = "prompt") -> float:
        each = {"prompt": self.told.token, "text": self.told.scored, "candidates": self.told.candidate}[kind]
        return each * tokens + self.told.reading * passes if tokens else 0.0


@dataclass(frozen=True, slots=True)
class Workstation:
    """A machine."""

    calibration: Calibration
    memory: None = None

    @property
    def name(self) -> str:
        return self.calibration.name

    @property
    def pool_tokens(self) -> int | None:
        return self.calibration.pool_tokens

    @property
    def request(self) -> float:
        return self.calibration.request

    def clock(self, model: str, size: Size) -> Measured:
        """What was measured of a model; raises BenchError if nothing was."""
        if model not in self.calibration.models:
            raise BenchError(
                f"--gpu {self.name} was measured with other models: "
                f"{unknown('model', model, self.calibration.models)}; "
                "measure yours with python benchmarks/capacity.py --calibrate"
            )
        return Measured(self.calibration.models[model])


def machine_of(gpu: str) -> Machine:
    """A GPU of a data sheet by name, `cpu`, or a file; raises BenchError."""
    if gpu.lower() in sheets():
        return Gpu(gpu.lower(), sheets()[gpu.lower()])
    if gpu == CPU:
        return Workstation(_shipped())
    path = Path(gpu)
    if not path.is_file():
        names = unknown("machine", gpu, [*sheets(), CPU])
        raise BenchError(f"--gpu: {names}; or a file that python benchmarks/capacity.py --calibrate FILE wrote")
    try:
        text = path.read_text(encoding="utf-8")
        return Workstation(
            Calibration.model_validate(yaml.safe_load(text) if path.suffix != ".json" else json.loads(text))
        )
    except ValidationError as error:
        raise BenchError("\n".join(reasons(error, Calibration, f"--gpu {gpu}"))) from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BenchError(f"--gpu {gpu} cannot be read: {' '.join(str(error).split())}") from None


@cache
def _shipped() -> Calibration:
    text = (resources.files("trimtab.bench") / "data" / "cpu.yaml").read_text(encoding="utf-8")
    return Calibration.model_validate(yaml.safe_load(text))
