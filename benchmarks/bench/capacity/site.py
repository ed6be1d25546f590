"""From a mix to the stations that serve it: one process with the base, and guides that stand apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trimtab.bench.capacity.costs import Table, shipped
from trimtab.bench.capacity.demand import Demand, demands
from trimtab.bench.capacity.machines.clock import Machine
from trimtab.bench.capacity.mix import Mix
from trimtab.bench.capacity.sizes import Size, size_of
from trimtab.bench.capacity.station import Member, Process
from trimtab.bench.capacity.work import BASE, mean
from trimtab.bench.errors import BenchError

SPARE = 1e9
"""bytes of a GPU for activations and libraries"""


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one GPU of the base's process, bytes."""

    total: float | None
    weights: float
    token: float
    """keys and values of one token of the base"""
    room: float
    """tokens of the base whose keys and values fit"""
    request: float
    """the same that a request holds while it is under way, mean; what guides keep beside counts by its bytes"""


@dataclass(frozen=True, slots=True)
class Judge:
    """A guide on GPUs of its own, which judges texts."""

    name: str
    seconds: float
    """of a request of the mix, mean over those that do not ask it too"""
    kinds: tuple[float, ...]
    """the same of each kind of request, in the order of the demands"""


@dataclass(frozen=True)
class Site:
    """One replica of everything."""

    process: Process
    judges: tuple[Judge, ...]
    demands: tuple[Demand, ...]
    memory: Memory
    narrow: str
    """what bounds the requests under way: rows or memory"""


def site_of(mix: Mix, machine: Machine, costs: Table | None = None) -> Site:
    """What one replica on a machine can do; raises BenchError where the models do not fit.

    `costs` is the table of measured costs; None: the one that comes with trimtab.
    """
    found = demands(mix, costs or shipped())
    sizes = {BASE: size_of(mix.model, "model")}
    for name, guide in mix.guides.items():
        if guide.model is not None:
            sizes[name] = size_of(guide.model, f"guides.{name}.model")
    called = {BASE: mix.model} | {name: guide.model for name, guide in mix.guides.items()}
    apart = {name for name, guide in mix.guides.items() if guide.apart}
    used = {name for each in found for name in each.work.models}
    members = {}
    for name in (BASE, *(each for each in mix.guides if each in used - apart)):
        adapter = name != BASE and mix.guides[name].kind == "adapter"
        model = called[BASE] if adapter else called[name]
        clock = machine.clock(model if isinstance(model, str) else "a size", sizes[BASE if adapter else name])
        members[name] = Member(name, clock, adapter)
    memory = _memory(mix, machine, found, {name: sizes[name] for name in members if name in sizes}, members)
    work = mean((each.share, each.work) for each in found)
    rows = _slots(mix, found, work.width)
    slots = max(1.0, min(rows, memory.room / memory.request))
    process = Process(members, work.without(apart), _context(found), machine.request, slots, mix.engine.prefill_tokens)
    judges = []
    for name in sorted(apart & used):
        _check_judge(name, sizes[name], mix, machine)
        clock = machine.clock(str(called[name]) if isinstance(called[name], str) else "a size", sizes[name])
        kinds = tuple(
            clock.read(each.work.scored.get(name, 0.0), each.work.passes.get(name, 0.0), "text") for each in found
        )
        seconds = sum(each.share * spent for each, spent in zip(found, kinds, strict=True))
        judges.append(Judge(name, seconds, kinds))
    return Site(process, tuple(judges), found, memory, "rows" if rows <= memory.room / memory.request else "memory")


def _check_judge(name: str, size: Size, mix: Mix, machine: Machine) -> None:
    """Raise BenchError for a guide that does not fit on a GPU of its own."""
    if machine.memory is not None and size.weights > machine.memory * mix.engine.memory_fraction - SPARE:
        raise BenchError(
            f"guides.{name}: {size.weights / 1e9:.1f} GB of weights do not fit into {mix.engine.memory_fraction:g} of "
            f"the {machine.memory / 1e9:g} GB of --gpu {machine.name}: take a larger GPU, or a smaller model or dtype"
        )


def _slots(mix: Mix, found: Sequence[Demand], width: float) -> float:
    """Requests that hold rows at once: the next in line waits until all of its rows are free."""
    head = sum(each.share * each.work.width for each in found)
    return (mix.engine.max_rows - (head - 1) / 2) / width


def _context(found: Sequence[Demand]) -> float:
    """Tokens behind a row of the base, mean over all rows."""
    rows = [(each.share * each.work.rows.get(BASE, 0.0), each.entry) for each in found]
    total = sum(count for count, _ in rows)
    return sum(count * (entry.prompt.mean + entry.answer.halfway) for count, entry in rows) / total if total else 0.0


def _memory(
    mix: Mix, machine: Machine, found: Sequence[Demand], sizes: Mapping[str, Size], members: Mapping[str, Member]
) -> Memory:
    """What a replica needs; an adapter's rows keep keys and values of the base's size."""
    weights = sum(each.weights for each in sizes.values())
    token = sizes[BASE].kv
    held = []
    for each in found:
        lanes = {name for name in (*each.work.rows, *each.work.wide) if name in members} | {BASE}
        beside = sum(sizes[BASE if name not in sizes else name].kv for name in lanes) / token
        held.append(beside * (each.entry.prompt.mean + each.work.width * each.entry.answer.halfway))
    steps = [each.share * each.work.steps for each in found]
    request = sum(a * b for a, b in zip(steps, held, strict=True)) / sum(steps)
    pool = mix.engine.pool_tokens or machine.pool_tokens
    if machine.memory is None:
        return Memory(None, weights, token, float("inf") if pool is None else pool, request)
    left = machine.memory * mix.engine.memory_fraction - weights - SPARE
    if left < token * request:
        raise BenchError(
            f"model: {weights / 1e9:.1f} GB of weights and one request's {token * request / 1e9:.2f} GB of keys "
            f"and values do not fit into {mix.engine.memory_fraction:g} of the {machine.memory / 1e9:g} GB of --gpu "
            f"{machine.name}: take a larger GPU, a smaller dtype, or put guides `apart`"
        )
    return Memory(machine.memory, weights, token, left / token if pool is None else min(pool, left / token), request)
