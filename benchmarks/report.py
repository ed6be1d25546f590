"""What every benchmark prints: a table for people, then one JSON line for programs."""

import json
from collections.abc import Mapping, Sequence

from trimtab.bench.checks import source_commit
from trimtab.engine.machine import machine as hardware


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows of equal keys, aligned."""
    cells = [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def print_json(name: str, rows: Sequence[Mapping[str, object]], **conditions: object) -> None:
    """Print the run as one JSON line with the machine and the commit it was measured on."""
    run = {"benchmark": name, **machine(), **conditions, "rows": list(rows)}
    print(json.dumps(run, default=str))


def machine() -> dict[str, object]:
    """Hardware, versions and commit."""
    return {**hardware(), "commit": source_commit()}


def _text(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
