"""From a kind of request to its work: the strategy's formula, what steers and prepares it, and what was measured."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import exp, log

from trimtab.bench.capacity.costs import Cost, Table
from trimtab.bench.capacity.formulas.ask import Ask
from trimtab.bench.capacity.formulas.parts import PROMPTS, steered
from trimtab.bench.capacity.formulas.search import SEARCHES
from trimtab.bench.capacity.lengths import Lengths
from trimtab.bench.capacity.mix import Entry, Mix
from trimtab.bench.capacity.naming import unknown
from trimtab.bench.capacity.work import BASE, Work, added
from trimtab.bench.errors import BenchError
from trimtab.decoders.registry import strategies
from trimtab.decoders.spec import DecodingSpec

HOW = "python benchmarks/capacity.py --costs --only {name}"


@dataclass(frozen=True, slots=True)
class Factors:
    """What was measured over what the formula says."""

    steps: float = 1.0
    rows: float = 1.0
    guides: float = 1.0
    measured: int = 0
    """rows of the table that it is the geometric mean of"""


@dataclass(frozen=True, slots=True)
class Demand:
    """The work of one kind of request."""

    entry: Entry
    work: Work
    measured: bool
    """whether its strategy is in the table of costs"""

    @property
    def share(self) -> float:
        return self.entry.share


def demands(mix: Mix, costs: Table) -> tuple[Demand, ...]:
    """The work of each kind; raises BenchError for guides that the mix does not describe."""
    return tuple(_demand(entry, mix, costs) for entry in mix.entries)


def factors(strategy: str, costs: Table) -> Factors:
    """What measuring says of a strategy; 1 where it was not measured."""
    rows = [_compared(row) for row in costs.rows if row.strategy == strategy]

    def middle(values: Iterable[float]) -> float:
        logs = [log(each) for each in values]
        return exp(sum(logs) / len(logs))

    if not rows:
        return Factors()
    steps, written, read = zip(*rows, strict=True)
    return Factors(middle(steps), middle(written), middle(read), len(rows))


def formula(strategy: str, spec: DecodingSpec, ask: Ask) -> Work:
    """What a decoding costs by formula; raises BenchError for a strategy that has none."""
    named = {each.params: name for name, each in strategies().items()}
    search = named[type(spec.search)]
    if search not in SEARCHES:
        raise BenchError(
            f"strategy {search!r} has neither a formula nor a measured cost: measure it with {HOW.format(name=search)}"
        )
    work = replace(SEARCHES[search](spec.search, ask), width=float(spec.search.rows(1)))
    work += Work(prefill={BASE: ask.prompt})
    for part in spec.parts:
        work = steered(work, named[type(part)], part, ask)
    for prompt in spec.prompt_parts:
        name = named[type(prompt)]
        if name not in PROMPTS:
            raise BenchError(f"strategy {name!r} has neither a formula nor a measured cost: {HOW.format(name=name)}")
        work = PROMPTS[name](prompt, ask) + work
    return work


def _demand(entry: Entry, mix: Mix, costs: Table) -> Demand:
    spec = DecodingSpec.parse(entry.decoding)
    read = max(0.0, entry.prompt.mean * (1 - entry.prompt.cached) - 1)
    ask = Ask(read, entry.answer, entry.answer.ends == "limit")
    found = factors(spec.strategy, costs)
    work = formula(spec.strategy, spec, ask).corrected(found.steps, found.rows, found.guides)
    for name in work.models:
        if name != BASE and name not in mix.guides:
            raise BenchError(
                f"requests.{entry.name}: decoding names a guide that `guides` does not describe: "
                f"{unknown('guide', name, mix.guides)}"
            )
    work = work.without(name for name, guide in mix.guides.items() if guide.free)
    work = _shown(work, mix, entry)
    width = min(work.width, float(mix.engine.max_rows))
    return Demand(entry, replace(work, width=width), bool(found.measured))


def _shown(work: Work, mix: Mix, entry: Entry) -> Work:
    """With what judges read before the answers; nobody stands apart who has to keep step with the base."""
    prompts = {}
    for name in work.models:
        guide = mix.guides.get(name)
        if guide is None:
            continue
        if guide.apart and (work.rows.get(name) or work.wide.get(name)):
            raise BenchError(
                f"guides.{name}.apart: {entry.name} has it read every token with the base, so it has to be in the "
                "base's process: leave `apart` out"
            )
        if work.scored.get(name) and not work.prefill.get(name) and guide.reads == "conversation":
            prompts[name] = entry.prompt.mean
    return replace(work, scored=added(work.scored, prompts))


def _compared(row: Cost) -> tuple[float, float, float]:
    """Steps, rows, and what guides read beside their rows and prompts: measured over the formula's."""
    spec = DecodingSpec.parse(row.decoding)
    said = formula(row.strategy, spec, Ask(row.prompt - 1, Lengths(mean=row.answer), limited=True))
    rows = row.rows / said.sequences
    asked = [name for name in row.tokens if name != BASE]  # heads and programs read nothing
    read = sum(row.tokens[name] - said.prefill.get(name, 0.0) - rows * said.rows.get(name, 0.0) for name in asked)
    wanted = sum(said.wide.get(name, 0.0) + said.scored.get(name, 0.0) for name in asked)
    return row.ticks / said.steps, rows, read / wanted if wanted and read > 0 else 1.0
