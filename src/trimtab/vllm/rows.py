"""Which request stands in which row of the batch, and what is known of its tokens."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from trimtab.vllm.interfaces import BatchUpdate
from trimtab.vllm.plans import TokenPlan
from trimtab.vllm.reading import Reading


@dataclass(eq=False, slots=True)
class Row:
    """One request that the plugin works on."""

    plan: TokenPlan
    slot: int = 0
    """V2: where its tokens lie"""
    prompt: int = 0
    """tokens of the prompt"""
    length: int = 0
    """tokens of prompt and answer"""
    tokens: "array[int] | None" = None
    """V1: the same as ids; None: they are on the device alone"""
    output: Sequence[int] = ()
    """V1: vLLM's own list of the answer, which grows"""
    readings: list[Reading] = field(default_factory=list)
    """of the parts of the mixture, in their order"""

    @property
    def generated(self) -> int:
        """Tokens of the answer."""
        return self.length - self.prompt

    def catch_up(self) -> None:
        """V1: take over what vLLM has appended, or taken back; RuntimeError for tokens that are not there yet."""
        assert self.tokens is not None
        if len(self.output) < self.generated:
            del self.tokens[self.prompt + len(self.output) :]
        new = self.output[len(self.tokens) - self.prompt :]
        if any(token < 0 for token in new):
            raise RuntimeError(
                "vLLM has put placeholders where tokens of the answer should be, as it does under asynchronous "
                "scheduling: start it with --no-async-scheduling"
            )
        self.tokens.extend(new)
        self.length = len(self.tokens)

    def free(self) -> None:
        """Give the guides' pages back."""
        for reading in self.readings:
            reading.free()


class Rows:
    """The rows by their place: the batch index under V1, the slot under V2."""

    def __init__(self) -> None:
        self._rows: dict[int, Row] = {}

    def __getitem__(self, place: int) -> Row | None:
        return self._rows.get(place)

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        """Rows with their places, in the order of these."""
        return iter(sorted(self._rows.items(), key=lambda item: item[0]))

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, place: int, row: Row | None) -> None:
        """Let a request stand at `place`, where nobody or another did before; None: one that is none of ours."""
        old = self._rows.pop(place, None)
        if old is not None:
            old.free()
        if row is not None:
            self._rows[place] = row

    def move(self, source: int, target: int, *, swap: bool) -> None:
        """Move the row at `source` to `target`; what stood there goes to `source`, or away."""
        moved, other = self._rows.pop(source, None), self._rows.pop(target, None)
        if moved is not None:
            self._rows[target] = moved
        if swap and other is not None:
            self._rows[source] = other
        elif other is not None:
            other.free()


def follow(rows: Rows, update: BatchUpdate, made: Sequence[Row | None]) -> None:
    """Do what vLLM did to its batch: removals, additions (`made`, one for each), moves, in this order."""
    for place in update.removed:
        rows.put(place, None)
    for (place, *_), row in zip(update.added, made, strict=True):
        rows.put(place, row)
    for source, target, direction in update.moved:
        rows.move(source, target, swap=direction.name == "SWAP")
