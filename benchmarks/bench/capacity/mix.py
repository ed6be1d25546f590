"""`mix.yaml`: what requests come, on which model, with which guides."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from trimtab.bench.capacity.lengths import Lengths
from trimtab.bench.capacity.naming import reasons
from trimtab.bench.capacity.simulation.settings import Fleet
from trimtab.bench.capacity.sizes import Size
from trimtab.bench.capacity.work import BASE
from trimtab.bench.errors import BenchError
from trimtab.bench.records import Record
from trimtab.decoders.registry import strategies
from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.settings import EngineSettings

_ENGINE = EngineSettings.model_fields
Kind = Literal["model", "adapter", "head", "vector", "program"]


class PlannedGuide(Record):
    """A guide beside the base, or on GPUs of its own."""

    kind: Kind = "model"
    """adapter: rows of the base's own forward; head, vector and program cost next to nothing"""
    model: str | Size | None = None
    """of kind model: a known name, a folder, a hub id, demo, or a size"""
    apart: bool = False
    """on GPUs of its own, asked over the network; it can judge whole texts there, and nothing else"""
    reads: Literal["conversation", "answer"] = "conversation"
    """what a judge is shown: its chat template may leave the question out"""

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> "PlannedGuide":
        if (self.kind == "model") != (self.model is not None):
            raise ValueError("kind model needs `model`, and no other kind takes one")
        if self.apart and self.kind != "model":
            raise ValueError(f"a guide of kind {self.kind} lives in the base's process: leave `apart` out")
        return self

    @property
    def free(self) -> bool:
        return self.kind in ("head", "vector", "program")


class Prompts(Lengths):
    """Of prompts."""

    cached: float = Field(0.0, ge=0.0, lt=1.0)
    """share of their tokens that the cache of prefixes holds: system messages, earlier turns"""


class Answers(Lengths):
    """Of answers, as the model would write them by plain sampling."""

    ends: Literal["model", "limit"] = "model"
    """limit: at the request's max_tokens, which all answers reach, so that those of one request are equally long"""


class Entry(Record):
    """One kind of request."""

    name: str = ""
    share: float = Field(gt=0.0, allow_inf_nan=False)
    """only ratios count"""
    decoding: dict[str, Any] = Field(default_factory=dict)
    """as in a request; empty: plain sampling"""
    prompt: Prompts
    answer: Answers

    @field_validator("decoding")
    @classmethod
    def _is_a_decoding(cls, decoding: dict[str, Any]) -> dict[str, Any]:
        try:
            DecodingSpec.parse(decoding)
        except InvalidRequest as error:
            raise ValueError(f"{error} ({len(strategies())} strategies: trimtab strategies)") from None
        return decoding


class Engine(Record):
    """Settings of the engine that bound how much runs at a time."""

    max_rows: int = Field(_ENGINE["max_rows"].default, ge=1)
    pool_tokens: int | None = Field(None, ge=32)
    """None: as many as fit into the memory of a GPU"""
    prefill_tokens: int = Field(_ENGINE["prefill_tokens"].default, ge=1)
    """of prompts that one forward reads"""
    memory_fraction: float = Field(_ENGINE["memory_fraction"].default, gt=0.0, le=1.0)


class Mix(Record):
    """The whole file."""

    model: str | Size
    guides: dict[str, PlannedGuide] = Field(default_factory=dict)
    requests: tuple[Entry, ...] = Field(min_length=1)
    engine: Engine = Engine()
    fleet: Fleet = Fleet()

    @field_validator("guides")
    @classmethod
    def _free_names(cls, guides: dict[str, PlannedGuide]) -> dict[str, PlannedGuide]:
        if BASE in guides:
            raise ValueError(f"{BASE!r} is the base model's own name: call the guide something else")
        return guides

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The requests, each with a name of its own and shares that add up to 1."""
        total = sum(each.share for each in self.requests)
        named = []
        for number, each in enumerate(self.requests, 1):
            name = each.name or f"{number} {each.decoding.get('strategy', 'sample')}"
            named.append(each.model_copy(update={"name": name, "share": each.share / total}))
        return tuple(named)


def read_mix(path: Path) -> Mix:
    """The mix of a file; raises BenchError with a line for each field that is wrong."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"--mix {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise BenchError(f"--mix {path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise BenchError(f"--mix {path} must be an object with the keys {', '.join(Mix.model_fields)}")
    return checked(values, str(path))


def checked(values: dict[str, Any], where: str) -> Mix:
    """The mix of an object; raises BenchError."""
    try:
        return Mix.model_validate(values)
    except ValidationError as error:
        raise BenchError("\n".join(reasons(error, Mix, where))) from None
