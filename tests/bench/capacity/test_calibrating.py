"""The fit finds the machine that it is shown, and the mixes of a check are what they say."""

import random
from collections import Counter

import pytest

from trimtab.bench.capacity.calibrating import OTHERS, PROMPT, WIDE, fitted, runs
from trimtab.bench.capacity.checking import CHECKS, Check, jobs, mix_of, predicted, throughput
from trimtab.bench.capacity.machines.measured import Measured, machine_of
from trimtab.bench.capacity.probe import Asked, Told
from trimtab.bench.capacity.site import site_of
from trimtab.decoders.spec import DecodingSpec

KNOTS = (1, 2, 4, 8, 16)
TRUE = dict(zip(OTHERS, (0.004, 2e-5, 0.004, 3e-4, 5e-4, 6e-4, 0.02), strict=True))
STEPS = {"rows 1": 0.03, "rows 2": 0.005, "rows 4": 0.008, "rows 8": 0.02, "rows 16": 0.04}


def amounts() -> list[dict[str, float]]:
    planned = runs(KNOTS, arm="arm", reward="judge")
    return [run.amounts(KNOTS, WIDE if run.asked.prompt == WIDE else PROMPT) for run in planned]


def test_the_fit_finds_the_machine() -> None:
    does = amounts()
    truth = {**STEPS, **TRUE}
    found = fitted(does, [sum(truth[name] * count for name, count in each.items()) for each in does])
    assert found == pytest.approx(truth, rel=1e-6)


def test_noise_gives_no_negative_times() -> None:
    does, chance = amounts(), random.Random(3)
    truth = {**STEPS, **TRUE}
    seconds = [sum(truth[n] * c for n, c in each.items()) * chance.uniform(0.8, 1.2) for each in does]
    found = fitted(does, seconds)
    assert all(value >= 0 for value in found.values())
    again = [sum(found[n] * c for n, c in each.items()) for each in does]
    assert sum(abs(a / b - 1) for a, b in zip(again, seconds, strict=True)) / len(does) < 0.2


def test_runs_are_reckoned_as_steps_are() -> None:
    """The share of each knot in a run is the line that the clock draws."""
    clock = machine_of("cpu").clock("demo", None)  # type: ignore[arg-type]
    assert isinstance(clock, Measured)
    knots = clock.told.steps
    low, high = knots[0], knots[1]
    between = (low[0] + high[0]) / 2
    assert clock.step(between, 0.0).seconds == pytest.approx((low[1] + high[1]) / 2)
    beyond = 2 * knots[-1][0] - knots[-2][0]
    assert clock.step(beyond, 0.0).seconds == pytest.approx(2 * knots[-1][1] - knots[-2][1])


@pytest.mark.parametrize("check", CHECKS, ids=lambda each: each.name)
def test_checks_ask_what_they_predict(check: Check) -> None:
    mix = mix_of(check, "demo")
    asked = jobs(mix, 200, seed=1)
    counts = Counter(each.label for each in asked)
    for entry in mix.entries:
        mine = [each for each in asked if each.label == entry.name]
        assert counts[entry.name] == pytest.approx(200 * entry.share, abs=1)
        assert sum(each.answer for each in mine) / len(mine) == pytest.approx(entry.answer.mean, rel=0.03)
        assert sum(each.prompt for each in mine) / len(mine) == pytest.approx(entry.prompt.mean, rel=0.03)
    assert len({each.seed for each in asked}) == len(asked)
    site = site_of(mix, machine_of("cpu"))
    assert site.process.slots >= check.concurrency, "nothing waits that is measured as under way"
    assert predicted(site, check.concurrency) > predicted(site, 1) > 0


def test_no_calibrating_run_is_a_mix() -> None:
    planned = runs(KNOTS, arm="positivity-arm", reward="positivity")
    calibrating = [DecodingSpec.parse(run.asked.decoding) for run in planned if run.asked.decoding]
    for check in CHECKS:
        assert not [each for each in check.requests if DecodingSpec.parse(each.get("decoding")) in calibrating]


def test_throughput_by_hand() -> None:
    asked = Asked({}, 1, 1, 0)
    told = [Told(asked, float(i), i + 1.0, {}, {}, 1) for i in range(10)]
    assert throughput(told) == pytest.approx(1.0)
    assert throughput([*told, *told]) == pytest.approx(2.0)
