"""What one request makes models do: the currency between strategies and machines."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

BASE = "base"
Tokens = Mapping[str, float]
"""by model"""


@dataclass(frozen=True, slots=True)
class Work:
    """One request; sums of works are works done one after the other."""

    steps: float = 0.0
    """decode steps, one after another: tokens of the longest of the answers that grow side by side"""
    sequences: float = 0.0
    """sequences summed over those steps, whoever reads them"""
    rows: Tokens = field(default_factory=dict)
    """tokens that a model reads one per row and step"""
    wide: Tokens = field(default_factory=dict)
    """tokens that a model reads several at a time within the steps: candidates for the next token, drafts of others"""
    scored: Tokens = field(default_factory=dict)
    """tokens read between steps, to judge texts"""
    passes: Tokens = field(default_factory=dict)
    """batches in which they are read"""
    prefill: Tokens = field(default_factory=dict)
    """tokens of prompts that no cache holds"""
    width: float = 1.0
    """rows that the request holds"""

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.steps + other.steps,
            self.sequences + other.sequences,
            added(self.rows, other.rows),
            added(self.wide, other.wide),
            added(self.scored, other.scored),
            added(self.passes, other.passes),
            added(self.prefill, other.prefill),
            max(self.width, other.width),
        )

    @property
    def models(self) -> tuple[str, ...]:
        """Everyone who reads something."""
        return tuple(dict.fromkeys(name for each in (self.rows, self.wide, self.scored, self.prefill) for name in each))

    def tokens(self, model: str) -> float:
        """All that a model reads."""
        return sum(each.get(model, 0.0) for each in (self.rows, self.wide, self.scored, self.prefill))

    def without(self, models: Iterable[str]) -> "Work":
        """The work of the others."""
        gone = set(models)

        def kept(tokens: Tokens) -> Tokens:
            return {name: count for name, count in tokens.items() if name not in gone}

        return replace(
            self,
            rows=kept(self.rows),
            wide=kept(self.wide),
            scored=kept(self.scored),
            passes=kept(self.passes),
            prefill=kept(self.prefill),
        )

    def corrected(self, steps: float, rows: float, guides: float) -> "Work":
        """Times what measuring says of a formula: its steps, its rows, and what guides read beside those."""

        def times(tokens: Tokens) -> Tokens:
            return {name: count * (rows if name == BASE else guides) for name, count in tokens.items()}

        return replace(
            self,
            steps=self.steps * steps,
            sequences=self.sequences * rows,
            rows={name: count * rows for name, count in self.rows.items()},
            wide=times(self.wide),
            scored=times(self.scored),
        )


def added(one: Tokens, other: Tokens, times: float = 1.0) -> Tokens:
    """The sum of two, the second `times` as large."""
    return {name: one.get(name, 0.0) + times * other.get(name, 0.0) for name in dict.fromkeys((*one, *other))}


def mean(shares: Iterable[tuple[float, Work]]) -> Work:
    """The work of a request drawn by share; `width` is the mean over steps, so that of what is under way."""
    parts = [(share, work) for share, work in shares if share > 0]
    total = sum(share for share, _ in parts)
    steps = sum(share * work.steps for share, work in parts) / total

    def weighed(name: str) -> Tokens:
        out: Tokens = {}
        for share, work in parts:
            out = added(out, getattr(work, name), share / total)
        return out

    return Work(
        steps,
        sum(share * work.sequences for share, work in parts) / total,
        weighed("rows"),
        weighed("wide"),
        weighed("scored"),
        weighed("passes"),
        weighed("prefill"),
        sum(share * work.steps * work.width for share, work in parts) / (total * steps),
    )
