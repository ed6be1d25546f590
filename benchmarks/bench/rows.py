"""From answers to rows: what each setting gained over plain sampling, and what it cost."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, fsum, isnan, log, nan
from typing import Any

import numpy as np

from trimtab.bench.bootstrap import Floats, interval, paired_gain
from trimtab.bench.estimates import chances, curve_settings, expected, wins
from trimtab.bench.records import BASE, Answer, Conditions, Distance, Interval, Level, Percentiles, Row, Setting
from trimtab.bench.texts import distinct, repetition
from trimtab.decoders.kl import best_of_n_bound

DIGITS = 6
"""significant ones of every measured number in a row"""
DISTINCT = (1, 2, 3)
AT_ONCE = 0.05
"""an answer whose text began within this last share of its time came all at once"""

Asked = tuple[str, int]
"""prompt and seed"""
Cells = dict[tuple[str, int], list[Answer]]
"""answers by setting and concurrency"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a prompt under a seed: N answers, each the one returned with a chance. NaN is not known."""

    asked: Asked
    rewards: Floats
    """(N,)"""
    golds: Floats
    chance: Floats

    @property
    def reward(self) -> float:
        return expected(self.rewards, self.chance)

    @property
    def gold(self) -> float:
        return expected(self.golds, self.chance)


def rows(
    answers: Sequence[Answer],
    settings: Sequence[Setting],
    conditions: Conditions,
    levels: Mapping[str, Level],
    peaks: Mapping[tuple[str, int], float],
) -> list[Row]:
    """One row for each setting and concurrency that was answered, in the order of settings, then of concurrencies.

    levels: by setting. peaks: MiB by setting and concurrency. The rows of a curve come before its setting's own. Every
    measured number is rounded here, so that rows read back from a file are the rows that were written.
    """
    cells: Cells = {}
    for answer in answers:
        cells.setdefault((answer.setting, answer.concurrency), []).append(answer)
    concurrencies = list(dict.fromkeys(concurrency for _, concurrency in cells))
    found: list[Row] = []
    for setting in settings:
        for each in (*curve_settings(setting), setting):
            for concurrency in concurrencies:
                own = cells.get((each.name, concurrency), [])
                if not own:
                    continue
                order = sorted(concurrencies, key=lambda other: other != concurrency)  # this one first
                base = _base(cells, order)
                if each is setting:
                    told = _measured(own, base, conditions.repeats)
                else:
                    told = _estimated(own, _pool(cells, setting.name, order), each.decoding["n"], base)
                if "error" not in told:
                    told["peak_memory_mib"] = peaks.get((each.name, concurrency))
                row = Row(
                    setting=each.name,
                    strategy=each.strategy,
                    level=levels[setting.name],
                    family=each.family or each.name,
                    strength=each.decoding["n"] if each.curve and each.strength is None else each.strength,
                    decoding=each.decoding,
                    concurrency=concurrency,
                    prompts=len({answer.prompt for answer in own}),
                    answers=len(own),
                    conditions=conditions,
                    **told,
                )
                found.append(_rounded_row(row))
    return found


def _base(cells: Cells, order: Sequence[int]) -> dict[Asked, Outcome]:
    """What plain sampling answered, at the first of the concurrencies at which it was asked."""
    found: dict[Asked, Outcome] = {}
    for concurrency in order:
        for answer in cells.get((BASE, concurrency), ()):
            if answer.error is None:
                outcome = _outcome(answer)
                found.setdefault(outcome.asked, outcome)
    return found


def _pool(cells: Cells, setting: str, order: Sequence[int]) -> Sequence[Answer]:
    """The searches of a setting at the first of the concurrencies at which they told what they considered."""
    asked = [cells[setting, each] for each in order if (setting, each) in cells]
    told = [answers for answers in asked if any(answer.considered for answer in answers)]
    return next(iter((*told, *asked)), ())


def _measured(own: Sequence[Answer], base: Mapping[Asked, Outcome], repeats: int) -> dict[str, Any]:
    """The fields of a row whose answers are its own; texts are of those under the seeds that all settings have."""
    failed = _first_error(own)
    if failed is not None:
        return {"error": failed}
    known = [answer.kl for answer in own if answer.kl is not None]
    bound = any(answer.bounded for answer in own)
    return {
        **_quality([_outcome(answer) for answer in own], base),
        "kl": Distance(mean=fsum(known) / len(known), bound=bound) if known else None,
        **_texts([answer for answer in own if answer.seed < repeats]),
        **_costs(own),
    }


def _estimated(own: Sequence[Answer], pool: Sequence[Answer], n: int, base: Mapping[Asked, Outcome]) -> dict[str, Any]:
    """The fields of a row of a curve: its worth from the searches of more answers in `pool`, its costs from its own."""
    failed = _first_error(own) or _first_error(pool, considered=n)
    if failed is not None:
        return {"error": failed}
    outcomes = [_best_of(n, answer) for answer in pool]
    prompts = len({answer.prompt for answer in pool})
    return {
        "estimated": f"order statistics of {pool[0].setting}, {prompts} prompts" if pool else None,
        **_quality(outcomes, base),
        "kl": Distance(mean=best_of_n_bound(n), bound=True),
        **_texts(own),
        **_costs(own),
    }


def _first_error(answers: Iterable[Answer], considered: int = 0) -> str | None:
    """The first error; to have considered fewer answers than this is one."""
    for answer in answers:
        if answer.error is not None:
            return answer.error
        few = len(answer.considered)
        if few < considered:
            return f"{answer.setting} considered {few} answers to {answer.prompt}: no best of {considered} can be told"
    return None


def _outcome(answer: Answer) -> Outcome:
    asked = (answer.prompt, answer.seed)
    return Outcome(asked, np.array([_or_nan(answer.reward)]), np.array([_or_nan(answer.gold)]), np.ones(1))


def _best_of(n: int, answer: Answer) -> Outcome:
    """The best of n of the answers that were considered, drawn at random."""
    rewards = np.array([_or_nan(each.reward) for each in answer.considered])
    golds = np.array([_or_nan(each.gold) for each in answer.considered])
    return Outcome((answer.prompt, answer.seed), rewards, golds, chances(rewards, n))


def _quality(outcomes: Sequence[Outcome], base: Mapping[Asked, Outcome]) -> dict[str, Any]:
    """Means, gains over the mean of plain sampling's answers to the same prompt, and the win rate.

    Gold is over the answers that it could judge; any other measure that one answer is without is left out.
    """
    plain: dict[str, list[Outcome]] = {}
    for (prompt, _), answered in base.items():
        plain.setdefault(prompt, []).append(answered)
    judged = [each for each in outcomes if not isnan(each.gold)]
    found: dict[str, Any] = {"gold_prompts": len({each.asked[0] for each in judged})}
    for measure, each_of in (("reward", outcomes), ("gold", judged)):
        found[measure] = _mean([(each.asked, getattr(each, measure)) for each in each_of])
        paired = [each for each in each_of if each.asked[0] in plain]
        prompts = dict.fromkeys(each.asked[0] for each in paired)
        treated = _by_prompt([(each.asked, getattr(each, measure)) for each in paired])
        against = _by_prompt([(each.asked, getattr(each, measure)) for prompt in prompts for each in plain[prompt]])
        found[f"{measure}_gain"] = None if treated is None or against is None else paired_gain(treated, against)
    won = [
        (each.asked, expected(wins(each.rewards, rival), each.chance))
        for each in outcomes
        for rival in _rivals(each.asked, base)
    ]
    return {**found, "win_rate": _mean(won)}


def _rivals(asked: Asked, base: Mapping[Asked, Outcome]) -> list[float]:
    """The rewards of plain sampling that an answer is held against: to the same prompt under all other seeds.

    Under the same seed plain sampling's answer is a search's own first draw, which n/(n+1) says nothing of: that is for
    an independent draw. It is the rival only where there is no other.
    """
    prompt, seed = asked
    others = [each.reward for (other, drawn), each in base.items() if other == prompt and drawn != seed]
    return others or ([base[asked].reward] if asked in base else [])


def _mean(values: Sequence[tuple[Asked, float]]) -> Interval | None:
    means = _by_prompt(values)
    return None if means is None else interval(means)


def _by_prompt(values: Sequence[tuple[Asked, float]]) -> Floats | None:
    """The mean over seeds of each prompt, (P, 1); None if there is nothing, or a value that is not known."""
    prompts: dict[str, list[float]] = {}
    for (prompt, _), value in values:
        prompts.setdefault(prompt, []).append(value)
    if not values or any(isnan(value) for _, value in values):
        return None
    return np.array([[fsum(each) / len(each)] for each in prompts.values()])


def _texts(answers: Sequence[Answer]) -> dict[str, Any]:
    texts = [answer.text for answer in answers]
    branching = [log(answer.branching) for answer in answers if answer.branching is not None]
    return {
        "distinct": {n: distinct(texts, n) for n in DISTINCT},
        "repetition": fsum(map(repetition, texts)) / len(texts),
        "branching": exp(fsum(branching) / len(branching)) if branching else None,
    }


def _costs(answers: Sequence[Answer]) -> dict[str, Any]:
    """Times and tokens of answers that all came."""
    count, delivered, elapsed = len(answers), sum(answer.delivered for answer in answers), _elapsed(answers)
    return {
        "ttft_ms": _percentiles([answer.ttft for answer in answers if answer.ttft is not None]),
        "per_token_ms": _percentiles([_per_token(answer) for answer in answers if answer.delivered]),
        "e2e_ms": _percentiles([answer.e2e for answer in answers]),
        "tokens_per_second": delivered / elapsed if elapsed else None,
        "requests_per_second": count / elapsed if elapsed else None,
        "delivered": delivered / count,
        "truncated": sum(answer.finish_reason == "length" for answer in answers) / count,
        "spent": _each([answer.spent for answer in answers]),
        "forwards": _each([answer.forwards for answer in answers]),
    }


def _elapsed(answers: Sequence[Answer]) -> float:
    """Seconds in which at least one request was under way."""
    total, until = 0.0, 0.0
    for start, end in sorted((answer.sent, answer.sent + answer.e2e) for answer in answers):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def _per_token(answer: Answer) -> float:
    """Seconds: of text that came bit by bit, without the wait for the first."""
    streamed = answer.e2e - (answer.e2e if answer.ttft is None else answer.ttft)
    if answer.delivered < 2 or streamed <= AT_ONCE * answer.e2e:
        return answer.e2e / answer.delivered
    return streamed / (answer.delivered - 1)


def _percentiles(seconds: Sequence[float]) -> Percentiles | None:
    if not seconds:
        return None
    p50, p95, p99 = (float(each) * 1e3 for each in np.percentile(seconds, (50, 95, 99)))
    return Percentiles(p50=p50, p95=p95, p99=p99)


def _each(counts: Sequence[Mapping[str, int]]) -> dict[str, float]:
    """The mean by model, of which an answer that does not name it used none; in the order of names."""
    models = sorted({model for each in counts for model in each})
    return {model: sum(each.get(model, 0) for each in counts) / len(counts) for model in models}


def _or_nan(value: float | None) -> float:
    return nan if value is None else value


def _rounded_row(row: Row) -> Row:
    """The row with what was measured, not what was asked for, to DIGITS significant digits."""
    told = row.model_dump()
    measured = told.keys() - {"strength", "decoding", "conditions"}
    return Row.model_validate(told | {name: _rounded(told[name]) for name in measured})


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
