"""What every strategy may be combined with, and the one that combines with nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal

from trimtab.clients.decoding.base import Part, Rule
from trimtab.clients.decoding.objects import Budget, Preference


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy(Part):
    """A strategy, the whole `decoding` of a request."""

    name: ClassVar[str]

    preference: Annotated[
        str | Preference | Mapping[str, Any] | None, "what the person who asks would like; fills in what is left out"
    ] = None
    prompt: Annotated["Sequence[PromptPart | Mapping[str, Any]] | None", "parts that change what the models read"] = (
        None
    )
    steer: Annotated["Sequence[Steer | Mapping[str, Any]] | None", "parts that shape the next token"] = None
    select: Annotated[str | Rule | Mapping[str, Any] | None, "how choices are found among a search's answers"] = None
    budget: Annotated[Budget | Mapping[str, Any] | None, "what the request may spend at most"] = None
    trace: Annotated[
        Literal["tokens", "search", "both"] | None,
        "tokens: what shaped each token; search: what the search wrote; or both",
    ] = None

    def to_dict(self) -> dict[str, Any]:
        """As it goes over the wire."""
        told = {"strategy": self.name, **Part.to_dict(self)}
        for key, parts in (("prompt", self.prompt), ("steer", self.steer)):
            if parts:
                told[key] = [each.to_part() if isinstance(each, Listed) else dict(each) for each in parts]
        return told


@dataclass(frozen=True, slots=True, kw_only=True)
class Auto(Part):
    """The setting of the server's profile that fits the budget, the whole `decoding` of a request."""

    name: ClassVar[str] = "auto"

    budget: Annotated[Budget | Mapping[str, Any], "deadline_ms, reward_at_least or max_model_tokens to choose by"]
    trace: Annotated[
        Literal["tokens", "search", "both"] | None,
        "tokens: what shaped each token; search: what the search wrote; or both",
    ] = None

    def to_dict(self) -> dict[str, Any]:
        """As it goes over the wire."""
        return {"strategy": self.name, **Part.to_dict(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Search(Strategy):
    """A strategy that works on whole answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed(Strategy):
    """A strategy that may stand alone, or in a list of another."""

    def to_part(self) -> dict[str, Any]:
        """As it stands in the list of another strategy, which is also what selects, limits and traces."""
        told = self.to_dict()
        shared = {each.name for each in fields(Strategy)} - type(self).__annotations__.keys()
        if alone := [name for name in told if name in shared]:
            raise ValueError(f"{', '.join(alone)} of a part: give it to the strategy that the part is for")
        return {"method": told.pop("strategy"), **told}


@dataclass(frozen=True, slots=True, kw_only=True)
class Steer(Listed):
    """A strategy that shapes the next token: alone, or in the `steer` of another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptPart(Listed):
    """A strategy that changes what the models read: alone, or in the `prompt` of another."""
