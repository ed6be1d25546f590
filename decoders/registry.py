"""Every decoding strategy by name; feeds validation, the CLI, /v1/strategies and the docs."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar

from trimtab.decoders import prompt, search, steer
from trimtab.decoders.params import Params
from trimtab.decoders.prompt.base import PromptPart
from trimtab.decoders.steer.base import Steer

P = TypeVar("P", bound=Params)


@dataclass(frozen=True, slots=True)
class Strategy:
    """One strategy: its parameters (whose class is its program) and what to tell people about it."""

    name: str
    params: type[Params]
    summary: str
    paper: str | None
    cost: str
    needs: tuple[str, ...]
    """roles of the guides that it cannot do without"""

    @property
    def kind(self) -> Literal["search", "steer", "prompt"]:
        """Whether it works on whole answers, on the next token, or on what the models read."""
        if issubclass(self.params, PromptPart):
            return "prompt"
        return "steer" if issubclass(self.params, Steer) else "search"

    @property
    def temperature(self) -> float | None:
        """Temperature of the paper's decoding, for requests that set none."""
        return self.params.temperature

    def describe(self) -> dict[str, Any]:
        """As JSON, with the JSON Schema of the parameters."""
        return {
            "name": self.name,
            "kind": self.kind,
            "summary": self.summary,
            "paper": self.paper,
            "cost": self.cost,
            "needs": list(self.needs),
            "temperature": self.temperature,
            "schema": self._schema(),
        }

    def _schema(self) -> dict[str, Any]:
        """JSON Schema of the parameters; what a preference may fill in is not required."""
        schema = self.params.model_json_schema()
        required = [name for name in schema.pop("required", ()) if name not in self.params.preferable]
        return {**schema, "required": required} if required else schema


_REGISTERED: dict[str, Strategy] = {}


def strategy(
    name: str, *, cost: str, paper: str | None = None, needs: tuple[str, ...] = ()
) -> Callable[[type[P]], type[P]]:
    """Register a parameter class, which is also the program, under the strategy's name."""

    def register(params: type[P]) -> type[P]:
        summary = (params.__doc__ or "").strip().splitlines()[0]
        _REGISTERED[name] = Strategy(name, params, summary, paper, cost, needs)
        return params

    return register


@cache
def strategies() -> Mapping[str, Strategy]:
    """All strategies, by name; importing the files of their folders registers them."""
    for folder in (prompt, search, steer):
        for module in pkgutil.iter_modules(folder.__path__):
            importlib.import_module(f"{folder.__name__}.{module.name}")
    return dict(sorted(_REGISTERED.items()))


def markdown_table() -> str:
    """The strategies as the table of docs/strategies.md."""
    lines = ["| strategy | kind | what it does | cost | needs | parameters | paper |", "|---|---|---|---|---|---|---|"]
    for each in strategies().values():
        fields = ", ".join(
            f"`{name}`" if field.is_required() else f"`{name}` = {field.default!r}"
            for name, field in each.params.model_fields.items()
        )
        row = (f"`{each.name}`", each.kind, each.summary, each.cost, ", ".join(each.needs), fields, each.paper or "")
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"
