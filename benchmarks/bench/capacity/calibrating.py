"""Fits the clock of a machine to short runs through its server: a few equal requests at a time, all at once.

What such a run does is known beforehand, and its time is a sum over what it does: steps of so many rows, tokens read,
forwards, requests. Seconds of each are found by least squares over all runs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from math import ceil
from statistics import median
from typing import Any

import numpy as np

from trimtab.bench.capacity.machines.measured import Calibrated, Calibration, FittedRun
from trimtab.bench.capacity.probe import Asked, Probe
from trimtab.bench.errors import BenchError

SHORT, LONG = 6, 30
"""tokens of answers"""
PROMPT, WIDE = 40, 240
"""tokens of prompts"""
PREFILL = 512
"""tokens of prompts that one forward reads: the engine's default"""
CANDIDATES = 10
OTHERS = ("request", "row_context", "adapted", "token", "scored", "candidate", "reading")
"""unknowns beside the steps"""


@dataclass(frozen=True, slots=True)
class Run:
    """So many equal requests at once."""

    name: str
    count: int
    asked: Asked
    arm: bool = False
    """an adapter reads along"""
    judged: bool = False
    scorer: int = 0
    """candidates of each token that a guide scores"""

    def amounts(self, knots: Sequence[int], prompt: float) -> dict[str, float]:
        """What the run does of each unknown; `prompt` is the tokens that its prompts really had."""
        steps, count, lanes = float(self.asked.answer), self.count, 1 + self.arm + bool(self.scorer)
        rows = count * (1 + self.arm)
        read = count * (prompt - 1) * lanes
        did = {f"rows {knot}": steps * share for knot, share in _parts(knots, rows)}
        did |= {
            "request": float(count),
            "row_context": steps * rows * (prompt + steps / 2),
            "adapted": steps * count * self.arm,
            "token": read,
            "scored": count * steps * self.judged,
            "candidate": steps * count * self.scorer,
            "reading": ceil(count * prompt / PREFILL) * lanes + self.judged + steps * bool(self.scorer),
        }
        return did


def runs(knots: Sequence[int], *, arm: str, reward: str) -> list[Run]:
    """The runs that tell all unknowns apart."""
    half = knots[len(knots) // 2]
    found = [Run(f"{n} x {a}", n, Asked({}, PROMPT, a, 0)) for n in knots for a in (SHORT, LONG)]
    for n, a in ((1, LONG), (half, SHORT), (half, LONG)):
        found.append(Run(f"{n} x {a} behind {WIDE}", n, Asked({}, WIDE, a, 0)))
        found.append(
            Run(f"{n} x {a} with an arm", n, Asked({"strategy": "genarm", "arm": arm}, PROMPT, a, 0), arm=True)
        )
        best = {"strategy": "best_of_n", "n": 1, "reward": reward}
        found.append(Run(f"{n} x {a} judged", n, Asked(best, PROMPT, a, 0), judged=True))
    args = {"strategy": "args", "reward": reward, "k": CANDIDATES}
    for n, a in ((1, LONG), (half // 2, LONG)):
        found.append(Run(f"{n} x {a} with candidates", n, Asked(args, PROMPT, a, 0), scorer=CANDIDATES))
    return found


def calibrate(
    probe: Probe,
    planned: Sequence[Run],
    knots: Sequence[int],
    *,
    rounds: int,
    name: str,
    model: str,
    machine: Mapping[str, Any],
    pool_tokens: int | None,
    say: Callable[[str], None],
) -> Calibration:
    """Measure a server that does nothing else; the median of the rounds counts. Raises BenchError if that fails."""
    times: dict[str, list[float]] = {run.name: [] for run in planned}
    prompts: dict[str, float] = {}
    seed = 0
    for turn in range(rounds):
        for run in planned:
            jobs = [replace(run.asked, seed=seed + i, label=run.name) for i in range(run.count)]
            seed += run.count
            told = probe.closed(jobs, run.count)
            times[run.name].append(max(each.ended for each in told) - min(each.began for each in told))
            prompts[run.name] = sum(each.prompt for each in told) / run.count
        say(f"calibration, round {turn + 1} of {rounds}")
    amounts = [run.amounts(knots, prompts[run.name]) for run in planned]
    found = fitted(amounts, [median(times[run.name]) for run in planned])
    steps = accumulate(found[f"rows {knot}"] for knot in knots)
    clock = Calibrated(
        steps=tuple(zip(map(float, knots), steps, strict=True)),
        **{each: found[each] for each in OTHERS if each != "request"},
    )
    if not clock.steps[0][1]:
        raise BenchError("a step took no time that could be told from the rest: the machine is too busy to be measured")
    told_again = [sum(found[each] * amount for each, amount in did.items()) for did in amounts]
    return Calibration(
        name=name,
        machine=machine,
        models={model: clock},
        request=found["request"],
        pool_tokens=pool_tokens,
        runs=tuple(
            FittedRun(name=run.name, seconds=median(times[run.name]), fitted=again)
            for run, again in zip(planned, told_again, strict=True)
        ),
    )


def fitted(amounts: Sequence[Mapping[str, float]], seconds: Sequence[float]) -> dict[str, float]:
    """The seconds of one of each, none below 0, by least squares of relative errors."""
    names = list(amounts[0])
    matrix = np.array([[each[name] for name in names] for each in amounts]) / np.array(seconds)[:, None]
    free = [column for column in range(len(names)) if matrix[:, column].any()]
    while True:
        scale = np.abs(matrix[:, free]).max(axis=0)
        solved = np.linalg.lstsq(matrix[:, free] / scale, np.ones(len(seconds)), rcond=None)[0] / scale
        if (solved >= 0).all():
            break
        free.pop(int(np.argmin(solved * scale)))
    found = dict.fromkeys(names, 0.0)
    return found | {names[column]: float(value) for column, value in zip(free, solved, strict=True)}


def _parts(knots: Sequence[int], rows: float) -> list[tuple[int, float]]:
    """How much of what each knot adds to the one before is in a step over so many rows.

    What is added is never below 0, so that more rows never take less; in between lie the lines of `Measured.step`.
    """
    parts = [(knots[0], 1.0)]
    for low, high in pairwise(knots):
        part = (rows - low) / (high - low)
        parts.append((high, max(0.0, part if high == knots[-1] else min(1.0, part))))
    return parts
