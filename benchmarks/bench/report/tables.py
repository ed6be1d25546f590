"""The tables of a report."""

import json
from collections.abc import Mapping, Sequence

from trimtab.bench.records import BASE, Gain, Interval, Percentiles, Row
from trimtab.bench.report.blocks import Table
from trimtab.bench.report.numbers import MINUS, MISSING, between, digits, fixed, percent, signed, times
from trimtab.bench.report.view import View, drawn
from trimtab.decoders.kl import win_rate_bound

AT_MOST = "\N{LESS-THAN OR EQUAL TO}"


def rewards(view: View) -> Table:
    """What each setting gains, and how long it takes."""
    gold = f"gold ({view.conditions.gold})" if view.conditions.gold else "gold"
    head = (
        *(
            "setting",
            "level",
            "prompts",
            "reward",
            "gain [95 %]",
            "better on",
            f"{gold} gain [95 %]",
            "win rate",
            "KL, nats",
        ),
        *("p50 ms", "p95 ms"),
    )
    lines = tuple(
        (
            row.setting,
            row.level,
            str(row.prompts),
            _mean(row.reward, view.decimals),
            _gain(_over(row, row.reward_gain), view.decimals),
            percent(gain.improved if (gain := _over(row, row.reward_gain)) else None),
            _gain(_over(row, row.gold_gain), view.gold_decimals),
            MISSING if row.win_rate is None else percent(row.win_rate.mean),
            _kl(row),
            _p50(row.e2e_ms),
            MISSING if row.e2e_ms is None else digits(row.e2e_ms.p95),
        )
        for row in view.main
    )
    strong = frozenset(place for place, row in enumerate(view.main) if row.setting in view.front)
    note = (
        "Fastest first. Gain: over plain sampling, paired. Better on: prompts whose reward rose. "
        f"{AT_MOST}: an upper bound. Latency is from sending to the end."
    )
    judged = sorted({row.gold_prompts for row in view.main if row.gold and row.gold_prompts < row.prompts})
    if judged:
        note += f" Gold is over the prompts that it can judge: {', '.join(map(str, judged))}."
    return Table("Reward and latency; the Pareto front in bold", head, lines, strong, frozenset({1}), note)


def speed(view: View) -> Table:
    """How fast answers come."""
    head = (
        *("setting", "first text, p50 ms", "p95 ms", "ms/token, p50", "tokens/s", "requests/s", "delivered", "spent"),
        "peak MiB",
    )
    lines = tuple(
        (
            row.setting,
            _p50(row.ttft_ms),
            MISSING if row.ttft_ms is None else digits(row.ttft_ms.p95),
            _p50(row.per_token_ms),
            digits(row.tokens_per_second),
            digits(row.requests_per_second),
            digits(row.delivered),
            digits(_spent(row)),
            fixed(row.peak_memory_mib, 0),
        )
        for row in view.main
    )
    note = (
        "A setting that shows its answer only at the end has its first text then. Delivered: tokens of an answer. "
        "Spent: tokens that all models processed for it. Peak: largest resident memory of the server meanwhile."
    )
    return Table("Speed and memory", head, lines, note=note)


def costs(view: View) -> Table:
    """What each setting takes of each model."""
    head = (
        *("setting", "tokens", "over base", "tokens by model"),
        *("forwards", "over base", "forwards by model"),
    )
    plain, passes = (None, None) if view.base is None else (_spent(view.base), _forwards(view.base))
    lines = tuple(
        (
            row.setting,
            digits(_spent(row)),
            times(_spent(row), plain),
            _by_model(row.spent),
            digits(_forwards(row)),
            times(_forwards(row), passes),
            _by_model(row.forwards),
        )
        for row in view.main
    )
    note = (
        "Per answer, prompts, drafts and scores included; over base: the ratio to plain sampling. A forward of a small "
        "model counts as one of the base."
    )
    return Table("What an answer costs", head, lines, words=frozenset({3, 6}), note=note)


def texts(view: View) -> Table:
    """How varied the answers are."""
    head = (
        "setting",
        "answers",
        "distinct-1",
        "distinct-2",
        "distinct-3",
        "repetition",
        "branching factor",
        "at the limit",
    )
    lines = tuple(
        (
            row.setting,
            str(row.answers),
            *(fixed(row.distinct.get(n), 2) for n in (1, 2, 3)),
            percent(row.repetition),
            digits(row.branching),
            percent(row.truncated),
        )
        for row in view.main
    )
    note = (
        "Distinct-n: different sequences of n words over all, of all answers together; it falls as answers grow in "
        "number and length. Repetition: share of an answer's sequences of four words that stood in it before. "
        "Branching factor: of the steered distributions. At the limit: answers that ended at the token limit. "
        "Of estimates the texts are from their own, fewer answers."
    )
    return Table("How varied the texts are", head, lines, note=note)


def curve(view: View) -> Table | None:
    """Best-of-n by n; None where it was not measured."""
    if not view.curve:
        return None
    head = ("n", "reward", "gain [95 %]", "win rate", "n/(n+1)", "KL, nats", "p50 ms", "spent", "found by")
    lines = []
    for point in view.curve:
        row, n = point.row, drawn(point.row) or 1
        won = MISSING if row.win_rate is None else percent(row.win_rate.mean)
        gain = _gain(_over(row, row.reward_gain), view.decimals)
        reward = fixed(point.reward, view.decimals)
        bound = percent(win_rate_bound(n))
        by = row.estimated or ("plain sampling" if row.setting == BASE else "its own answers")
        lines.append((str(n), reward, gain, won, bound, _kl(row), digits(point.latency), digits(_spent(row)), by))
    note = f"n/(n+1): the win rate of a reward without ties. {AT_MOST}: an upper bound, log n {MINUS} (n{MINUS}1)/n."
    return Table("Best of n; n = 1 is plain sampling", head, tuple(lines), words=frozenset({8}), note=note)


def loads(view: View) -> Table | None:
    """Latency and throughput at each concurrency; None where there is only one."""
    counts = list(dict.fromkeys(row.concurrency for row in view.rows))
    if len(counts) < 2:
        return None
    cells = {(row.setting, row.concurrency): row for row in view.rows if row.error is None}
    names = list(dict.fromkeys(row.setting for row in view.rows if row.error is None))
    head = ("setting", *(f"{what} at {count}" for count in counts for what in ("p50 ms", "tokens/s")))
    lines = tuple((name, *(cell for count in counts for cell in _load(cells.get((name, count))))) for name in names)
    return Table("Latency and throughput by the number of requests at a time", head, lines)


def names(view: View) -> Table:
    """What each setting asks for."""
    first = {row.setting: row for row in reversed(view.rows)}
    ordered = [first[name] for name in dict.fromkeys(row.setting for row in view.rows)]
    lines = tuple((row.setting, json.dumps(row.decoding, ensure_ascii=False)) for row in ordered)
    return Table("What the settings ask for", ("setting", "decoding"), lines, words=frozenset({1}))


def failures(rows: Sequence[Row]) -> Table | None:
    """What failed; None if nothing did."""
    if not rows:
        return None
    lines = tuple((row.setting, str(row.concurrency), row.error or "") for row in rows)
    return Table(
        "Settings that failed", ("setting", "requests at a time", "what was said"), lines, words=frozenset({2})
    )


def _load(row: Row | None) -> tuple[str, str]:
    return (MISSING, MISSING) if row is None else (_p50(row.e2e_ms), digits(row.tokens_per_second))


def _mean(value: Interval | None, places: int) -> str:
    return MISSING if value is None else fixed(value.mean, places)


def _over(row: Row, gain: Gain | None) -> Gain | None:
    """A gain over plain sampling; None of plain sampling itself."""
    return None if row.setting == BASE else gain


def _gain(gain: Gain | None, places: int) -> str:
    return MISSING if gain is None else f"{signed(gain.mean, places)} {between(gain.low, gain.high, places)}"


def _kl(row: Row) -> str:
    return MISSING if row.kl is None else f"{f'{AT_MOST} ' if row.kl.bound else ''}{digits(row.kl.mean)}"


def _spent(row: Row) -> float | None:
    return row.spent_total if row.spent else None


def _forwards(row: Row) -> float | None:
    return sum(row.forwards.values()) if row.forwards else None


def _by_model(costs: Mapping[str, float]) -> str:
    return ", ".join(f"{model} {digits(cost)}" for model, cost in costs.items()) or MISSING


def _p50(value: Percentiles | None) -> str:
    return MISSING if value is None else digits(value.p50)
