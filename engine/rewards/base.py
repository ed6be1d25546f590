"""What a reward is: a named scorer of whole answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from trimtab.engine.vocabulary import Message


@dataclass(frozen=True, slots=True)
class Pair:
    """A conversation and one answer to it; the messages end with the turn that is answered."""

    messages: tuple[Message, ...]
    answer: str


class Reward(Protocol):
    """A scorer of whole answers; higher is better, and a score does not depend on the rest of the batch."""

    @property
    def name(self) -> str: ...

    @property
    def tokens_read(self) -> int:
        """Tokens that its model has processed since it was loaded; 0 of a program."""
        ...

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Return one finite score per pair; GuideError if a score is not finite."""
        ...


def batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Yield indices in batches of rising length, each within `max_tokens` once padded, or of one row."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > max_tokens:  # the new row is the longest
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
