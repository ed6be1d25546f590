"""Blocks as Markdown."""

import re
from collections.abc import Sequence

from trimtab.bench.report.blocks import Block, Figure, Heading, Items, Table, Text

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~&$])")


def markdown(blocks: Sequence[Block]) -> str:
    """The whole document."""
    return "\n\n".join(_block(block) for block in blocks) + "\n"


def _block(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_plain(text)}"
        case Text(text):
            return _plain(text)
        case Items(items):
            return "\n".join(f"- {_plain(item)}" for item in items)
        case Table():
            return _table(block)
        case Figure(plot):
            if plot.drawing is None:
                return f"No plot: {_plain(plot.missing)}."
            return f"![{_plain(plot.title)}]({plot.name}.svg)\n\n{_plain(plot.reading)}"


def _table(table: Table) -> str:
    rule = [":---" if column in {0, *table.words} else "---:" for column in range(len(table.head))]
    lines = [
        [f"**{_plain(name)}**" if place in table.strong else _plain(name), *map(_plain, cells)]
        for place, (name, *cells) in enumerate(table.lines)
    ]
    rows = [[_plain(name) for name in table.head], rule, *lines]
    note = f"\n\n{_plain(table.note)}" if table.note else ""
    return f"**{_plain(table.caption)}**\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows) + note


def _plain(text: str) -> str:
    """The text as it is, on one line, whatever Markdown would make of it."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
