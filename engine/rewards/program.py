"""Rewards in plain Python: length, keywords, regular expressions, JSON validity and word lexicons.

Each class is its own parameters; `kind` is its name in the configuration.
"""

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from trimtab.engine.errors import GuideError
from trimtab.engine.rewards.base import Judgement, Pair
from trimtab.engine.vocabulary import Message

Prompt = Sequence[Message] | str
_WORD: Final = re.compile(r"\w+(?:['’-]\w+)*")  # noqa: RUF001 - the typographic apostrophe is meant


class Program(BaseModel, ABC):
    """Parameters and rule of one program reward."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["program"] = "program"

    @abstractmethod
    def score(self, prompt: Prompt, answer: str) -> float:
        """Return a finite score of `answer`; higher is better."""


class Length(Program):
    """Nearness to a target, -|n - target| / target; or n for longer, -n for shorter."""

    kind: Literal["length"] = "length"
    unit: Literal["words", "characters"] = "words"
    target: int | None = Field(default=None, ge=1)
    direction: Literal["shorter", "longer"] | None = None

    @model_validator(mode="after")
    def _one_aim(self) -> "Length":
        if (self.target is None) == (self.direction is None):
            raise ValueError("length needs exactly one of 'target' and 'direction'")
        return self

    def score(self, prompt: Prompt, answer: str) -> float:
        length = len(answer.split()) if self.unit == "words" else len(answer)
        if self.target is not None:
            return -abs(length - self.target) / self.target
        return float(length if self.direction == "longer" else -length)


class Keywords(Program):
    """Fraction of `words` that occur, minus the fraction of `forbidden` that do; whole words or phrases."""

    kind: Literal["keywords"] = "keywords"
    words: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()
    case_sensitive: bool = False

    @model_validator(mode="after")
    def _some_words(self) -> "Keywords":
        if not self.words and not self.forbidden:
            raise ValueError("keywords needs 'words' or 'forbidden'")
        if not all(word.strip() for word in (*self.words, *self.forbidden)):
            raise ValueError("a keyword may not be empty")
        return self

    def score(self, prompt: Prompt, answer: str) -> float:
        return self._present(self.words, answer) - self._present(self.forbidden, answer)

    def _present(self, words: tuple[str, ...], answer: str) -> float:
        flags = 0 if self.case_sensitive else re.IGNORECASE
        found = sum(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", answer, flags) is not None for word in words)
        return found / len(words) if words else 0.0


class Regex(Program):
    """1 if `pattern` occurs, else 0; or, with mode count, the number of its matches.

    Patterns come from the operator. The limits of length tame patterns of polynomial cost, no others.
    """

    kind: Literal["regex"] = "regex"
    pattern: str = Field(min_length=1, max_length=1000)
    mode: Literal["match", "count"] = "match"
    max_characters: int = Field(default=20_000, ge=1, description="text beyond is not searched")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern

    def score(self, prompt: Prompt, answer: str) -> float:
        text = answer[: self.max_characters]
        if self.mode == "match":
            return float(re.search(self.pattern, text) is not None)
        return float(sum(1 for _ in re.finditer(self.pattern, text)))


class Json(Program):
    """1 for strict JSON, else 0; with `required`, only an object that has all these keys counts."""

    kind: Literal["json"] = "json"
    required: tuple[str, ...] = ()

    def score(self, prompt: Prompt, answer: str) -> float:
        try:
            value = json.loads(answer, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):  # text that is not JSON is what this reward measures
            return 0.0
        if not self.required:
            return 1.0
        return float(isinstance(value, dict) and all(key in value for key in self.required))


class Lexicon(Program):
    """Sum of the weights of the answer's words, case ignored, over the square root of its word count."""

    kind: Literal["lexicon"] = "lexicon"
    weights: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = Field(min_length=1)

    @field_validator("weights")
    @classmethod
    def _single_words(cls, weights: dict[str, float]) -> dict[str, float]:
        for word in weights:
            if _WORD.fullmatch(word) is None:
                raise ValueError(f"{word!r} is not a single word: a lexicon can never find it")
        return {word.lower(): weight for word, weight in weights.items()}

    def score(self, prompt: Prompt, answer: str) -> float:
        words = _WORD.findall(answer.lower())
        return sum(self.weights.get(word, 0.0) for word in words) / math.sqrt(max(1, len(words)))


_Programs = Length | Keywords | Regex | Json | Lexicon
AnyProgram = Annotated[_Programs, Field(discriminator="kind")]
PROGRAMS: Final[Mapping[str, type[Program]]] = MappingProxyType(
    {program.model_fields["kind"].default: program for program in get_args(_Programs)}
)


@dataclass(frozen=True)
class ProgramReward:
    """A program under its name in the configuration."""

    name: str
    program: Program
    labels: tuple[str, ...] = ("LABEL_0",)

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Return the scores of `judge`."""
        return [judgement.score for judgement in self.judge(pairs)]

    def judge(self, pairs: Sequence[Pair]) -> list[Judgement]:
        """Return one judgement per pair, the score its only logit; GuideError if one is not finite."""
        scores = [self.program.score(pair.messages, pair.answer) for pair in pairs]
        if not all(map(math.isfinite, scores)):
            raise GuideError(self.name, "a score is not finite: check the sizes of its weights")
        return [Judgement(score, (score,)) for score in scores]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
