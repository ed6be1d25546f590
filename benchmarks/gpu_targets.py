"""What a run of the GPU benchmark is held against."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]
Sections = Mapping[str, Sequence[Row]]

LARGE = 10_000_000
"""logits of one tensor from which bandwidth counts: B * V"""
COPY_SHARES = {("float32", 2): 0.80, ("float32", 3): 0.80, ("bfloat16", 3): 0.80, ("bfloat16", 2): 0.60}
COPY_SHARES[("bfloat16", 1)] = 0.33  # bound by instructions
"""least share of a copy's bandwidth by dtype and number of tensors read, on cold buffers"""
GRAPH_US, GRAPH_ROWS = 10.0, 8
EAGER_RATIO = 5.0
LIMIT_SHARE = 0.75  # within 25 % of the memory-bound limit
GUIDE_COST = 1.15


class Target(NamedTuple):
    """One claim; `met` is None where the run did not measure it."""

    what: str
    target: str
    value: float | None
    met: bool | None


def targets(sections: Sections) -> list[Target]:
    """All targets, measured or not."""
    return [
        *_checks(sections),
        *_shares(sections),
        *_passes(sections),
        *_decoding(sections),
    ]


def bandwidth(sections: Sections, what: str = "copy") -> float | None:
    """Bytes per second that this run measured."""
    return next((row["GB/s"] * 1e9 for row in sections.get("bandwidth", ()) if row["what"] == what), None)


def with_shares(sections: Sections) -> dict[str, list[Row]]:
    """The same rows; where bytes and time are known also their bandwidth, and its share of this run's copy."""
    copy = bandwidth(sections)
    return {name: [_with_share(row, copy) for row in rows] for name, rows in sections.items()}


def _with_share(row: Row, copy: float | None) -> Row:
    seconds = row["cold us"] * 1e-6 if "cold us" in row else row.get("ms/step", 0.0) / 1e3
    if copy is None or not seconds or "bytes" not in row:
        return row
    rate = row["bytes"] / seconds
    return {**row, "GB/s": rate / 1e9, "share of copy": rate / copy}


def _checks(sections: Sections) -> Iterator[Target]:
    rows = sections.get("correctness", ())
    failed = [sum(row["failed"] + (not row["finished"]) for row in rows)] if rows else []
    yield _judge("failing tests of kernels, and files not finished", "0", failed, 0, most=True)
    rows = sections.get("capture", ())
    refused = [sum(not row["captured"] for row in rows)] if rows else []
    yield _judge("operators that synchronise in a capture", "0", refused, 0, most=True)
    rows = [row for row in sections.get("sanitizers", ()) if row["ran"]]
    found = [sum(not row["clean"] for row in rows)] if rows else []
    yield _judge("sanitizers with findings", "0", found, 0, most=True)
    ratios = [row["chi2"] / row["bound"] for row in sections.get("draws", ())]
    yield _judge("chi-square of the draws over df + 10 sqrt(2 df)", "<= 1", ratios, 1, most=True)


def _shares(sections: Sections) -> Iterator[Target]:
    copy = bandwidth(sections)
    for (dtype, tensors), least in COPY_SHARES.items():
        rows = [
            row
            for row in sections.get("sampler", ())
            if (row["dtype"], 1 + row["guides"]) == (dtype, tensors) and row["batch"] * row["vocab"] >= LARGE
        ]
        values = [row["bytes"] / (row["cold us"] * 1e-6) / copy for row in rows] if copy else []
        yield _judge(
            f"share of copy bandwidth, {dtype}, {tensors} tensors, cold, worst", f">= {least:g}", values, least
        )


def _passes(sections: Sections) -> Iterator[Target]:
    rows = sections.get("sampler", ())
    small = [row["warm us"] for row in rows if row["batch"] <= GRAPH_ROWS]
    yield _judge(f"us per pass in a graph, B <= {GRAPH_ROWS}, worst", f"<= {GRAPH_US:g}", small, GRAPH_US, most=True)
    rows = [row for row in rows if (row["batch"], row["vocab"], row["guides"]) == (64, 151_936, 1)]
    ratios = [row["eager in a graph us"] / row["cold us"] for row in rows]
    yield _judge(
        "times the eager chain, B = 64, V = 151,936, one guide, worst", f">= {EAGER_RATIO:g}", ratios, EAGER_RATIO
    )


def _decoding(sections: Sections) -> Iterator[Target]:
    found = [*sections.get("decode-1b", ()), *sections.get("decode-8b", ())]
    rows = {(row["model"], row["what"], row.get("batch")): row for row in found}
    read, plain = bandwidth(sections), rows.get(("8B", "plain", 1))
    shares = [plain["bytes"] / read / (plain["ms/step"] / 1e3)] if plain and read else []
    yield _judge("8B, batch 1, share of the memory-bound limit", f">= {LIMIT_SHARE:g}", shares, LIMIT_SHARE)
    for size in ("1B", "8B"):
        plain, guided = (rows.get((size, what, 8)) for what in ("plain", "guided"))
        costs = [guided["ms/step"] / plain["ms/step"]] if plain and guided else []
        what = f"{size} with a 135M guide over plain, batch 8"
        yield _judge(what, f"<= {GUIDE_COST:g}", costs, GUIDE_COST, most=True)


def _judge(what: str, target: str, values: Sequence[float], bound: float, *, most: bool = False) -> Target:
    if not values:
        return Target(what, target, None, None)
    worst = max(values) if most else min(values)
    return Target(what, target, worst, worst <= bound if most else worst >= bound)
