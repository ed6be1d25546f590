"""One question under several strategies, side by side."""

from collections.abc import Iterator
from dataclasses import dataclass

from trimtab.clients.errors import ClientError
from trimtab.clients.results import Answer

COLUMNS = ("strategy", "reward", "KL", "tokens", "spent", "seconds", "finish", "text")


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one strategy: an answer or an error."""

    name: str
    answer: Answer | None
    error: ClientError | None = None

    @property
    def text(self) -> str | None:
        return None if self.answer is None else self.answer.text

    @property
    def reward(self) -> float | None:
        """Of the chosen candidate, as its own strategy measures it; None where none did."""
        return None if self.answer is None else self.answer.decoding.reward()

    @property
    def kl(self) -> float | None:
        """From the base, in nats; None where nothing steered the tokens, or it was not computed."""
        return None if self.answer is None else self.answer.decoding.kl()

    @property
    def tokens(self) -> int | None:
        """Delivered."""
        return None if self.answer is None else self.answer.usage.completion_tokens

    @property
    def model_tokens(self) -> int | None:
        """Processed by all models together."""
        return None if self.answer is None else self.answer.decoding.model_tokens

    @property
    def seconds(self) -> float | None:
        """From the request's arrival at the server; the strategies ran at the same time."""
        return None if self.answer is None else self.answer.decoding.seconds

    @property
    def finish_reason(self) -> str | None:
        return None if self.answer is None else self.answer.finish_reason

    def cells(self) -> tuple[str, ...]:
        """As a table shows it, in the order of COLUMNS; of the text, or the error, the first line."""
        told = f"error: {self.error}" if self.text is None else self.text
        return (
            self.name,
            _number(self.reward, ".3g"),
            _number(self.kl, ".2f"),
            _number(self.tokens, "d"),
            _number(self.model_tokens, "d"),
            _number(self.seconds, ".2f"),
            self.finish_reason or "-",
            next(iter(told.strip().splitlines()), ""),
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """The rows in the order that the strategies were given in; printed, a table."""

    rows: tuple[Row, ...]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, name: str) -> Row:
        """The row of the strategy that was given this name."""
        return {row.name: row for row in self.rows}[name]

    def __str__(self) -> str:
        """A table in plain text; long texts are cut."""
        table = [COLUMNS, *(row.cells() for row in self.rows)]
        widths = [max(len(cells[column]) for cells in table) for column in range(len(COLUMNS))]
        lines = []
        for cells in table:
            *others, text = cells
            shown = [
                cell.ljust(width) if column in (0, 6) else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(others, widths, strict=False))
            ]
            lines.append("  ".join((*shown, text if len(text) <= 60 else text[:57] + "...")).rstrip())
        return "\n".join(lines)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
