"""The report as blocks, in order: what was run, what it says, plots, tables."""

from collections.abc import Sequence

from trimtab.bench.records import Conditions
from trimtab.bench.report import tables
from trimtab.bench.report.blocks import Block, Figure, Heading, Items, Table, Text
from trimtab.bench.report.findings import findings
from trimtab.bench.report.numbers import counted
from trimtab.bench.report.picture import Plot
from trimtab.bench.report.view import View


def document(view: View, plots: Sequence[Plot]) -> list[Block]:
    """All of the report."""
    found: list[Table | None] = [
        tables.rewards(view),
        tables.curve(view),
        tables.speed(view),
        tables.costs(view),
        tables.texts(view),
        tables.loads(view),
        tables.names(view),
        tables.failures(view.failed),
    ]
    return [
        Heading(f"Latency versus reward: {view.conditions.model}", 1),
        Text(_asked(view)),
        Items(tuple(_conditions(view.conditions))),
        Heading("What it says"),
        Items(tuple(findings(view))),
        *(block for plot in plots for block in (Heading(plot.title), Figure(plot))),
        Heading("Tables"),
        *(table for table in found if table is not None),
    ]


def _asked(view: View) -> str:
    told = view.conditions
    settings = len({row.setting for row in view.rows})
    prompts = max(row.prompts for row in view.rows)
    gold = f" and by {told.gold}, which steering never sees," if told.gold else ""
    return (
        f"{counted(settings, 'setting')} answered {counted(prompts, 'prompt')} ({told.prompts}) with the same seeds, "
        f"{counted(view.concurrency, 'request')} at a time, at most {told.max_tokens} tokens at temperature "
        f"{told.temperature:g}. Answers are scored by {told.reward}{gold} and held against those of plain sampling to "
        "the same prompts. Intervals are 95 % paired bootstrap over prompts."
    )


def _conditions(told: Conditions) -> list[str]:
    machine = told.machine
    places = ("cpu",) if told.device == "cpu" else ("gpu", "cpu")
    place = ", ".join(str(machine[name]) for name in places if machine.get(name)) or "unknown hardware"
    numbers = [counted(machine[f"{name}s"], name) for name in ("core", "thread") if machine.get(f"{name}s")]
    versions = [f"{name} {machine[name]}" for name in ("python", "torch", "transformers") if machine.get(name)]
    commit = f", commit {told.commit}" if told.commit else ""
    return [
        f"Machine: {', '.join([place, *numbers])}; {told.dtype} on {told.device}",
        f"Software: {', '.join([f'trimtab {told.version}{commit}', *versions])}",
        f"Prompts: {told.prompts}, digest {told.digest}; {counted(told.repeats, 'answer')} to each, seed {told.seed}",
    ]
