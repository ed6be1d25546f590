"""What the comparison of strategies with plain sampling prints, and the place in the docs that it fills."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trimtab.bench.records import Gain

MEASURES = ("reward", "gold")
BEGIN = "<!-- written by benchmarks/guides.py -->"
END = "<!-- end of what benchmarks/guides.py writes -->"


@dataclass(frozen=True, slots=True)
class Row:
    """One strategy, or plain sampling: means over all its answers, gains over plain sampling."""

    strategy: str
    parameters: Mapping[str, object]
    means: Mapping[str, float]
    """by measure"""
    gains: Mapping[str, Gain]
    """by measure; zero of plain sampling itself"""
    kl: float | None
    """nats per answer; None where nothing reports it"""
    logprob: float
    """nats per token under the base"""
    distinct: float
    """distinct-2 of all answers"""
    tokens: float
    """per answer"""
    time: float | None
    """per token, over plain sampling's; None if it was not taken"""

    @property
    def gold_per_reward(self) -> float | None:
        """Gold gained per reward gained; None where no reward is gained for certain."""
        reward = self.gains["reward"]
        return self.gains["gold"].mean / reward.mean if reward.low > 0.0 else None


def lines(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Return the rows as text by column; plain sampling comes first, with its means where others have gains."""
    return [_line(row, plain=index == 0) for index, row in enumerate(rows)]


def fill(
    path: Path,
    table: Sequence[Mapping[str, str]],
    conditions: Mapping[str, object],
    *,
    begin: str = BEGIN,
    end: str = END,
) -> None:
    """Write the table and how it was made between the markers of a Markdown file; exits if they are not there."""
    text = path.read_text() if path.exists() else ""
    before, opened, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        sys.exit(f"{path} has no place for the table: put the lines {begin} and {end} where it should stand")
    told = ", ".join(f"{name.replace('_', ' ')} {_plainly(value)}" for name, value in conditions.items())
    cells = [list(table[0]), ["---"] * len(table[0]), *(list(line.values()) for line in table)]
    markdown = "\n".join("| " + " | ".join(row) + " |" for row in cells)
    path.write_text(f"{before}{begin}\nConditions: {told}.\n\n{markdown}\n{end}{after}")


def _line(row: Row, *, plain: bool) -> dict[str, str]:
    line = {"strategy": row.strategy, "with": ", ".join(f"{key} {value}" for key, value in row.parameters.items())}
    for measure in MEASURES:
        gain = row.gains[measure]
        line[measure] = f"{row.means[measure]:.2f}" if plain else _interval(gain)
        line[f"{measure} up"] = "" if plain else f"{gain.improved:.0%}"
    return line | {
        "gold/reward": "" if plain else _number(row.gold_per_reward),
        "KL": _number(row.kl),
        "logprob": _number(row.logprob),
        "distinct-2": _number(row.distinct),
        "tokens": f"{row.tokens:.1f}",
        "time": _number(row.time),
    }


def _interval(gain: Gain) -> str:
    return f"{gain.mean:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _plainly(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
