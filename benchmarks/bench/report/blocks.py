"""What a report is made of; each format writes them in its own way."""

from dataclasses import dataclass

from trimtab.bench.report.picture import Plot


@dataclass(frozen=True)
class Heading:
    """Of the document (level 1) or of a section (2)."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the line."""

    caption: str
    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    strong: frozenset[int] = frozenset()
    """numbers of the lines whose name stands out"""
    words: frozenset[int] = frozenset()
    """numbers of the columns after the first that are read, not compared"""
    note: str = ""
    """how to read it"""


@dataclass(frozen=True)
class Figure:
    """A plot, or why there is none."""

    plot: Plot


Block = Heading | Text | Items | Table | Figure
