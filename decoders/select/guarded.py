"""What an operator demands of the answers, whatever rule selects them: thresholds below which nothing is returned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from trimtab.decoders.select.rule import Entry, Rule


class Guard(BaseModel):
    """A least reward, raw and by one guide, of everything that is returned."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    reward: str = Field(min_length=1, description="name of the guide that judges")
    at_least: float = Field(allow_inf_nan=False, description="tau: the least raw reward of an answer")
    refusal: str = Field("I cannot help with that.", min_length=1, max_length=2000, description="what is said instead")

    def passes(self, scores: Mapping[str, float]) -> bool:
        """Whether an answer of these raw rewards, by guide, may be returned; one that is missing or NaN may not."""
        return scores.get(self.reward, float("nan")) >= self.at_least


@dataclass(frozen=True, slots=True)
class Watch:
    """What the operator wants of a search's end; a search under one shows nothing before it is over."""

    guards: tuple[Guard, ...] = ()
    least: int = 0
    """answers, for each choice, among which a search that was ended early must have chosen; fewer: it refuses"""

    @property
    def guides(self) -> tuple[str, ...]:
        """Names of the guides that judge, each once."""
        return tuple(dict.fromkeys(guard.reward for guard in self.guards))

    @property
    def refusal(self) -> str:
        """What is said where nothing may be returned and no guard has spoken."""
        return self.guards[0].refusal if self.guards else Guard.model_fields["refusal"].default

    def failed(self, scores: Mapping[str, float]) -> Guard | None:
        """The first guard that an answer of these raw rewards does not pass."""
        return next((guard for guard in self.guards if not guard.passes(scores)), None)


class Guarded:
    """A rule that sees no answer which a guard would keep back; with nothing left it selects nothing."""

    def __init__(self, then: Rule, watch: Watch) -> None:
        self._then = then
        self._watch = watch

    def order(
        self, pool: Sequence[Entry], judged: Sequence[Mapping[str, float]], count: int, random: np.random.Generator
    ) -> list[int]:
        """Indices of the entries that the rule selects among those that pass; `judged` are their raw rewards."""
        passing = self._passing(judged)
        chosen = self._then.order([pool[index] for index in passing], count, random) if passing else []
        return [passing[index] for index in chosen]

    def report(self, pool: Sequence[Entry], judged: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """What the rule tells of the entries that pass."""
        passing = self._passing(judged)
        return self._then.report([pool[index] for index in passing]) if passing else {}

    def _passing(self, judged: Sequence[Mapping[str, float]]) -> list[int]:
        return [index for index, scores in enumerate(judged) if self._watch.failed(scores) is None]
