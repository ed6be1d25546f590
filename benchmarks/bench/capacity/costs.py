"""The table of measured costs that comes with trimtab: what strategies made their models read."""

from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from trimtab.bench.capacity.naming import reasons
from trimtab.bench.errors import BenchError
from trimtab.bench.records import Record


class Cost(Record):
    """One decoding, asked of an idle server; per request."""

    decoding: dict[str, Any]
    prompt: float
    """tokens as the request has them, before parts of the strategy change it"""
    answer: int
    """tokens; answers never ended early"""
    ticks: float
    """decode steps, one after another"""
    rows: float
    """sequences summed over those steps"""
    tokens: dict[str, float]
    """read by each model: prompt, drafts, candidates and scored texts"""
    forwards: dict[str, float]
    """in which each model took part: one for each row of a decode step, one for each batch of a reward"""
    requests: int

    @property
    def strategy(self) -> str:
        return str(self.decoding.get("strategy", "sample"))


class Table(Record):
    """`data/costs.yaml`."""

    measured: Mapping[str, Any]
    """version, commit, model and guides; counts do not depend on the machine"""
    rows: tuple[Cost, ...]


@cache
def shipped() -> Table:
    """The table that comes with trimtab."""
    text = (resources.files("trimtab.bench") / "data" / "costs.yaml").read_text(encoding="utf-8")
    return Table.model_validate(yaml.safe_load(text))


def read_costs(path: Path) -> Table:
    """The table of a file; raises BenchError."""
    try:
        return Table.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise BenchError("\n".join(reasons(error, Table, f"--costs {path}"))) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BenchError(f"--costs {path} cannot be read: {' '.join(str(error).split())}") from None


def preferring(own: Table) -> Table:
    """A table of one's own, and the shipped one for the strategies that it lacks."""
    measured = {row.strategy for row in own.rows}
    return Table(
        measured=own.measured, rows=(*own.rows, *(row for row in shipped().rows if row.strategy not in measured))
    )
