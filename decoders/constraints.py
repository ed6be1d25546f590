"""Constraints on an answer's text that are checked without a model (for DeAL, Huang et al. 2024, arXiv 2402.06147)."""

import re
from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Phrase = Annotated[str, Field(min_length=1, max_length=100, pattern=r"\S")]
Words = Annotated[int, Field(ge=0, le=100_000)]


class Constraint(BaseModel):
    """Phrases that are to occur or not, and bounds on the number of words; each phrase and each bound is one condition.

    A phrase occurs as whole words, in upper or lower case. Words are what stands between white space.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    keywords: tuple[Phrase, ...] = Field((), strict=False, max_length=32, description="phrases that are to occur")
    forbidden: tuple[Phrase, ...] = Field((), strict=False, max_length=32, description="phrases that are not to occur")
    min_words: Words | None = Field(None, description="words at least")
    max_words: Words | None = Field(None, description="words at most")

    @model_validator(mode="after")
    def _asks_for_something_possible(self) -> Self:
        if not (self.keywords or self.forbidden) and self.min_words is None and self.max_words is None:
            raise ValueError("a constraint needs keywords, forbidden, min_words or max_words")
        if self.min_words is not None and self.max_words is not None and self.min_words > self.max_words:
            raise ValueError(f"min_words={self.min_words} is more than max_words={self.max_words}: lower one")
        return self

    def satisfied(self, text: str) -> float:
        """Share of the conditions that hold, from 0 to 1."""
        held = list(self._conditions(text))
        return sum(held) / len(held)

    def _conditions(self, text: str) -> Iterator[bool]:
        folded, words = text.casefold(), len(text.split())
        for phrase in self.keywords:
            yield _occurs(phrase, folded)
        for phrase in self.forbidden:
            yield not _occurs(phrase, folded)
        if self.min_words is not None:
            yield words >= self.min_words
        if self.max_words is not None:
            yield words <= self.max_words


def _occurs(phrase: str, folded: str) -> bool:
    """Whether a phrase stands in a case-folded text with no letter or digit of a longer word at its ends."""
    literal = re.escape(phrase.strip().casefold())
    return re.search(rf"(?<!\w){literal}(?!\w)", folded) is not None
