"""From the rows of a run to the file that strategy `auto` chooses from."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from trimtab.bench.errors import BenchError
from trimtab.bench.records import Row
from trimtab.server.frontier import FORMAT, Frontier, Latency, Mean, Measured, Prompts


def write_profile(rows: Sequence[Row], path: Path) -> None:
    """Write the profile of a run to `path`, whole or not at all.

    Raises BenchError for rows of different conditions, and where no setting has a reward and a latency.
    """
    profile = profile_of(rows)
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(profile.model_dump_json(indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise BenchError(f"cannot write the profile {path}: {error.strerror or error}") from None


def profile_of(rows: Sequence[Row]) -> Frontier:
    """The settings of which no row has an error, under the conditions that all rows share."""
    if not rows:
        raise BenchError("there are no rows to make a profile of: run the benchmark first")
    conditions = rows[0].conditions
    for row in rows:
        if row.conditions != conditions:
            name = next(
                name
                for name in type(conditions).model_fields
                if getattr(row.conditions, name) != getattr(conditions, name)
            )
            raise BenchError(
                f"a profile is of one run, and the rows of {rows[0].setting!r} and {row.setting!r} differ in {name}: "
                f"{getattr(conditions, name)!r} and {getattr(row.conditions, name)!r}"
            )
    by_setting: dict[str, list[Row]] = {}
    for row in rows:
        by_setting.setdefault(row.setting, []).append(row)
    settings = [measured for each in by_setting.values() for measured in _measured(each)]
    if not settings:
        raise BenchError(
            f"no setting has both a mean {conditions.reward} and a latency without errors: a profile needs one at least"
        )
    return Frontier(
        format=FORMAT,
        model=conditions.model,
        dtype=conditions.dtype,
        device=conditions.device,
        hardware=dict(conditions.machine),
        version=conditions.version,
        commit=conditions.commit,
        reward=conditions.reward,
        gold=conditions.gold,
        max_tokens=conditions.max_tokens,
        temperature=conditions.temperature,
        prompts=Prompts(name=conditions.prompts, count=max(row.prompts for row in rows)),
        settings=tuple(settings),
    )


def _measured(rows: Sequence[Row]) -> Iterable[Measured]:
    """One setting over its concurrencies; nothing if it failed at one of them, or lacks reward or latency.

    The reward, and what goes with it, is of the row with most prompts.
    """
    rewarded = [row for row in rows if row.reward is not None]
    timed = [(row, row.e2e_ms) for row in rows if row.e2e_ms is not None]
    if any(row.error is not None for row in rows) or not rewarded or not timed:
        return
    row = max(rewarded, key=lambda each: each.prompts)
    assert row.reward is not None
    yield Measured(
        name=row.setting,
        decoding=row.decoding,
        reward=Mean(mean=row.reward.mean, low=row.reward.low, high=row.reward.high),
        gold=None if row.gold is None else row.gold.mean,
        spent=row.spent_total,
        latency=tuple(
            Latency(concurrency=each.concurrency, answers=each.answers, p50_ms=ms.p50, p95_ms=ms.p95)
            for each, ms in timed
        ),
    )
