"""What formulas are told of a request, and what they share."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from trimtab.bench.capacity.lengths import Lengths
from trimtab.bench.capacity.work import BASE, Work
from trimtab.decoders.rewards import Expression

AGAIN = 8.0
"""tokens of an answer that are read once more at each look: half a page, since only full pages are kept"""


@dataclass(frozen=True, slots=True)
class Ask:
    """Lengths of a request, tokens."""

    prompt: float
    """that are read before the first step: all that no cache holds, but for the last one"""
    answer: Lengths
    limited: bool
    """every answer ends at the request's limit, so that answers that grow side by side end together"""

    @property
    def length(self) -> float:
        """Of an answer, mean."""
        return self.answer.mean

    def longest(self, count: float) -> float:
        """Of so many answers side by side, mean."""
        return self.length if self.limited else self.answer.longest(count)


Formula = Callable[[Any, Ask], Work]
"""from a strategy's parameters"""


def written(answers: float, steps: float, *, model: str = BASE, tokens: float) -> Work:
    """So many answers of so many tokens side by side."""
    return Work(steps=steps, sequences=answers * tokens, rows={model: answers * tokens})


def judged(judges: Expression | str | None, tokens: float, passes: float = 1.0) -> Work:
    """Texts read by every guide of a reward."""
    names: Iterable[str] = () if judges is None else (judges,) if isinstance(judges, str) else judges.guides
    names = tuple(names)
    return Work(scored=dict.fromkeys(names, tokens), passes=dict.fromkeys(names, passes))


def staged(judges: Expression | str | None, answers: float, length: float, block: float) -> Work:
    """Answers that are judged after each block: what was read before is found again, but for the page begun."""
    looks = max(1.0, length / block)
    return judged(judges, answers * (length + AGAIN * (looks - 1)), looks)


def read(names: Iterable[str | None], tokens: float, passes: float) -> Work:
    """Tokens of answers that language models read in one go, to say how likely they are."""
    models = tuple(name for name in names if name is not None)
    return Work(scored=dict.fromkeys(models, tokens), passes=dict.fromkeys(models, passes))
