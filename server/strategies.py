"""`trimtab strategies`: the registry as a table, as markdown, as JSON."""

import json

from rich.console import Console
from rich.table import Table

from trimtab.decoders.registry import markdown_table, strategies


def markdown() -> str:
    """The table of the docs."""
    return markdown_table()


def as_json() -> str:
    """What /v1/strategies lists, indented."""
    return json.dumps([strategy.describe() for strategy in strategies().values()], indent=2)


def print_table() -> None:
    """One row per strategy, fitted to the terminal."""
    table = Table("strategy", "kind", "what it does", "parameters", "cost", "paper")
    for each in strategies().values():
        parameters = ", ".join(each.params.model_fields)
        table.add_row(each.name, each.kind, each.summary, parameters, each.cost, each.paper or "")
    Console().print(table)
