"""`trimtab strategies` and /v1/strategies: the registry, `auto`, rules of selection and budgets, as people are told."""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from trimtab.decoders.preference import Preference
from trimtab.decoders.registry import markdown_table, strategies
from trimtab.decoders.select import AnyRule, Rule
from trimtab.engine.budget import Budget
from trimtab.server import auto


@cache  # a tenth of a second of schemas, which stand as long as the process
def described() -> list[dict[str, Any]]:
    """Every strategy with the JSON Schema of its parameters; read only."""
    return [strategy.describe() for strategy in strategies().values()]


def listed(available: bool) -> list[dict[str, Any]]:
    """The same, and `auto`, which the server resolves; `available`: it has a profile."""
    return [*described(), auto.described(available)]


@cache
def described_rules() -> list[dict[str, Any]]:
    """Every rule that `select` may name, with the JSON Schema of its parameters; read only."""
    return [
        {"name": _name(rule), "summary": _summary(rule), "schema": rule.model_json_schema()} for rule in _rules(AnyRule)
    ]


def budget_schema() -> dict[str, Any]:
    """JSON Schema of `budget`."""
    return Budget.model_json_schema()


def preference_schema() -> dict[str, Any]:
    """JSON Schema of `preference`."""
    return Preference.model_json_schema()


def markdown() -> str:
    """The table of the docs."""
    fields = ", ".join(f"`{name}`" for name in auto.Auto.model_fields)
    row = (f"`{auto.AUTO}`", auto.AUTO, auto.SUMMARY, auto.COST, "", fields, "")
    return f"{markdown_table()}| {' | '.join(row)} |\n"


def as_json() -> str:
    """The strategies as /v1/strategies lists them, indented."""
    return json.dumps(listed(available=False), indent=2)


def print_tables() -> None:
    """One row per strategy, rule and budget, fitted to the terminal."""
    table = Table("strategy", "kind", "what it does", "parameters", "cost", "paper")
    for each in strategies().values():
        parameters = ", ".join(each.params.model_fields)
        table.add_row(each.name, each.kind, each.summary, parameters, each.cost, each.paper or "")
    table.add_row(auto.AUTO, auto.AUTO, auto.SUMMARY, ", ".join(auto.Auto.model_fields), auto.COST, "")
    selection = Table("select", "what it returns", "parameters")
    for rule in _rules(AnyRule):
        selection.add_row(_name(rule), _summary(rule), ", ".join(name for name in rule.model_fields if name != "rule"))
    limits = Table("budget", "limit")
    for name, field in Budget.model_fields.items():
        limits.add_row(name, field.description)
    Console().print(table, selection, limits, sep="\n")


def _rules(union: Any) -> Iterator[type[Rule]]:
    """The members of a union, however it is nested and annotated."""
    if isinstance(union, type):
        yield union
    for member in get_args(union):
        yield from _rules(member)


def _name(rule: type[Rule]) -> str:
    return str(rule.model_fields["rule"].default)


def _summary(rule: type[Rule]) -> str:
    return (rule.__doc__ or "").strip().splitlines()[0]
