"""What every strategy may be combined with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from trimtab.clients.decoding.base import Part, Rule
from trimtab.clients.decoding.objects import Budget


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy(Part):
    """A strategy, the whole `decoding` of a request."""

    name: ClassVar[str]

    steer: Annotated["Sequence[Steer | Mapping[str, Any]] | None", "parts that shape the next token"] = None
    select: Annotated[str | Rule | Mapping[str, Any] | None, "how choices are found among a search's answers"] = None
    budget: Annotated[Budget | Mapping[str, Any] | None, "what the request may spend at most"] = None
    trace: Annotated[Literal["tokens"] | None, "tokens: report what shaped each token"] = None

    def to_dict(self) -> dict[str, Any]:
        """As it goes over the wire."""
        told = {"strategy": self.name, **Part.to_dict(self)}
        if self.steer:
            told["steer"] = [each.to_part() if isinstance(each, Steer) else dict(each) for each in self.steer]
        return told


@dataclass(frozen=True, slots=True, kw_only=True)
class Search(Strategy):
    """A strategy that works on whole answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steer(Strategy):
    """A strategy that shapes the next token: alone, or in the `steer` of another."""

    def to_part(self) -> dict[str, Any]:
        """As it stands in the `steer` of another strategy, which is also what selects, limits and traces."""
        told = self.to_dict()
        if alone := [name for name in ("steer", "select", "budget", "trace") if name in told]:
            raise ValueError(f"{', '.join(alone)} of a part of `steer`: give it to the strategy that the part is for")
        return {"method": told.pop("strategy"), **told}
