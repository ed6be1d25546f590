"""Training data: JSON Lines of preferences, of ratings, or of prompts alone.

    {"prompt": "...", "chosen": "...", "rejected": "..."}
    {"text": "...", "score": 0.5}   or   {"prompt": "...", "answer": "...", "score": 0.5}
    {"prompt": "..."}

A prompt is a string or a list of messages, {"role": ..., "content": ...}.
"""

import hashlib
import json
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from trimtab.engine.rewards import Pair
from trimtab.engine.vocabulary import Message
from trimtab.training.errors import DataError

E = TypeVar("E")
R = TypeVar("R", bound=BaseModel)


class _Turn(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str


def _turns(given: Any) -> Any:
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


Prompt = Annotated[tuple[_Turn, ...], BeforeValidator(_turns), Field(min_length=1)]
Text = Annotated[str, Field(min_length=1)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Prompt

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation that is answered."""
        return _messages(self.prompt)


class Preference(_Record):
    """Two answers to a prompt, of which one is better."""

    chosen: Text
    rejected: Text

    @model_validator(mode="after")
    def _different(self) -> "Preference":
        if self.chosen == self.rejected:
            raise ValueError("chosen and rejected are the same text")
        return self


class Rating(BaseModel):
    """A text, or an answer to a prompt, with the score that it should get."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: Text | None = None
    prompt: Prompt | None = None
    answer: Text | None = None
    score: Annotated[float, Field(strict=True, allow_inf_nan=False)]

    @model_validator(mode="after")
    def _one_form(self) -> "Rating":
        if (self.text is None) == (self.answer is None) or (self.prompt is None) != (self.answer is None):
            raise ValueError("a rating has a text, or a prompt and an answer")
        return self

    @property
    def pair(self) -> Pair:
        """What a reward reads; a text alone answers no message."""
        return Pair(_messages(self.prompt or ()), self.text or self.answer or "")


class Prompted(_Record):
    """A prompt alone: answers are sampled."""


def read(path: Path, record: type[R]) -> list[R]:
    """Return the records of a file; DataError names the file, the first bad line and what is wrong with it."""
    return read_any(path, (record,))


def read_any(path: Path, records: Sequence[type[R]]) -> list[R]:
    """Return the records of a file, all of the one kind among `records` that its first line has."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    found: list[R] = []
    kind: type[R] | None = None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            given = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} line {number}: not JSON ({error}): write one object on each line") from None
        if not isinstance(given, dict):
            raise DataError(f"{path} line {number}: {type(given).__name__} instead of an object")
        kind = kind or _kind_of(given, records)
        try:
            found.append(kind.model_validate(given))
        except ValidationError as error:
            raise DataError(f"{path} line {number}: {_reason(error, kind)}") from None
    if not found:
        raise DataError(f"{path} holds no examples: it needs lines like {_shapes(records)}")
    return found


def check_scores(path: Path, scores: Sequence[float]) -> None:
    """Raise DataError if there is nothing to tell apart."""
    if min(scores) == max(scores):
        raise DataError(f"{path}: all {len(scores)} scores are {scores[0]:g}: add examples of other scores")


def split(
    examples: Sequence[E], fraction: float, seed: int, key: Callable[[E], Hashable]
) -> tuple[list[int], list[int]]:
    """Return the indices to train on and those held out; examples of one key stay together.

    Raises DataError when either part would be empty.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(key(example), []).append(index)
    members = list(groups.values())
    order = torch.randperm(len(members), generator=torch.Generator().manual_seed(seed)).tolist()
    wanted = max(1, round(fraction * len(examples))) if fraction else 0
    held: list[int] = []
    for group in order:
        if len(held) >= wanted:
            break
        held += members[group]
    out = set(held)
    kept = [index for index in range(len(examples)) if index not in out]
    if not kept:
        raise DataError(f"{len(examples)} examples are too few to hold out {wanted} of them: add more")
    return kept, sorted(held)


def numbered(indices: Iterable[int]) -> str:
    """Name examples as a person counts them, from 1."""
    return "examples " + ", ".join(str(index + 1) for index in indices)


def digest(path: Path) -> str:
    """Return 16 hex digits of a file's content, or of a folder's files with their names."""
    if path.is_dir():
        told = b"".join(file.name.encode() + file.read_bytes() for file in sorted(path.iterdir()) if file.is_file())
    else:
        told = path.read_bytes()
    return hashlib.sha256(told).hexdigest()[:16]


def _messages(turns: Sequence[_Turn]) -> tuple[Message, ...]:
    return tuple(Message(role=turn.role, content=turn.content) for turn in turns)


def _kind_of(given: dict[str, Any], records: Sequence[type[R]]) -> type[R]:
    """The kind whose required keys the first line has, the fullest match first."""
    return max(records, key=lambda record: len(given.keys() & record.model_fields.keys()) - _missing(given, record))


def _missing(given: dict[str, Any], record: type[BaseModel]) -> int:
    return sum(field.is_required() and name not in given for name, field in record.model_fields.items())


def _reason(error: ValidationError, kind: type[BaseModel]) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"unknown key {where!r}: the keys are {', '.join(kind.model_fields)}"
    if first["type"] == "missing":
        return f"{where!r} is missing: a line looks like {_shapes([kind])}"
    return f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}"


def _shapes(records: Sequence[type[BaseModel]]) -> str:
    shapes = {
        Preference: '{"prompt": ..., "chosen": ..., "rejected": ...}',
        Rating: '{"text": ..., "score": ...}',
        Prompted: '{"prompt": ...}',
    }
    return " or ".join(shapes[record] for record in records)
