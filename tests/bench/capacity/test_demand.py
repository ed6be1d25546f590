"""Costs of strategies: formulas by hand, what was measured, and errors."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from trimtab.bench.capacity.costing import settings
from trimtab.bench.capacity.costs import shipped
from trimtab.bench.capacity.demand import demands, factors, formula
from trimtab.bench.capacity.formulas.ask import Ask
from trimtab.bench.capacity.formulas.parts import PROMPTS
from trimtab.bench.capacity.formulas.search import SEARCHES
from trimtab.bench.capacity.lengths import Lengths
from trimtab.bench.capacity.mix import Mix
from trimtab.bench.capacity.work import BASE, Work, mean
from trimtab.bench.errors import BenchError
from trimtab.decoders.registry import strategies
from trimtab.decoders.spec import DecodingSpec

EQUAL = Ask(100.0, Lengths(mean=40.0), limited=True)
MEASURED = [(number, row) for number, row in enumerate(shipped().rows)]


def work(ask: Ask = EQUAL, **decoding: Any) -> Work:
    return formula(decoding["strategy"], DecodingSpec.parse(decoding), ask)


def test_by_hand() -> None:
    best = work(strategy="best_of_n", n=4, reward="judge")
    assert (best.steps, best.rows, best.width) == (40.0, {BASE: 160.0}, 4.0)
    assert (best.scored, best.passes, best.prefill) == ({"judge": 160.0}, {"judge": 1.0}, {BASE: 100.0})
    blocks = work(strategy="cd_blockwise", k=2, block=10, value="judge")
    assert blocks.scored == {"judge": 2 * (40.0 + 3 * 8.0)}, "each look after the first reads half a page again"
    assert blocks.passes == {"judge": 4.0}
    rejecting = work(strategy="speculative_rejection", n=8, schedule=[10, 20], alpha=0.5, reward="judge")
    assert rejecting.rows == {BASE: 8 * 10.0 + 4 * 10.0 + 2 * 20.0}
    chain = work(strategy="qalign", steps=6, reward="judge")
    assert (chain.steps, chain.width) == (40 + 6 * 20.0, 1.0)


def test_chains_wait_for_the_slowest_of_their_proposals() -> None:
    chains = work(strategy="qalign", steps=4, chains=4, reward="judge")
    assert chains.steps == pytest.approx(40 + 4 * 40 * 4 / 5)
    assert chains.rows == {BASE: 4 * (40 + 4 * 20.0)}
    (told,) = [row for row in shipped().rows if row.decoding.get("chains") == 4]
    assert told.ticks == pytest.approx(chains.steps, rel=0.05)


def test_no_more_simulations_at_once_than_there_are() -> None:
    tree = {"strategy": "ppo_mcts", "value": "judge", "simulations": 4}
    one, four, more = (work(**tree, parallel=side) for side in (1, 4, 16))
    assert (one.steps, four.steps, more.steps) == (160.0, 40.0, 40.0)
    assert one.rows == four.rows == more.rows == {BASE: 160.0}
    assert one.scored == more.scored
    assert more.passes == {"judge": 40.0}


def test_every_community_reads_whoever_its_model_is() -> None:
    told = {"kind": {"system": "Be kind."}, "brief": {"system": "Be brief."}, "other": {"guide": "arm"}}
    mean = work(prompt=[{"method": "pluralism", "mode": "distributional", "communities": told}], strategy="sample")
    assert mean.rows == {BASE: 40.0 + 2 * 40.0, "arm": 40.0}
    assert mean.prefill == {BASE: 100.0 + 2 * 100.0, "arm": 100.0}


def test_who_reads_along_reads_every_row() -> None:
    both = work(strategy="best_of_n", n=3, reward="judge", steer=[{"method": "genarm", "arm": "arm"}])
    assert both.rows == {BASE: 120.0, "arm": 120.0}
    assert both.prefill == {BASE: 100.0, "arm": 100.0}
    scored = work(strategy="args", reward="judge", k=7)
    assert scored.wide == {"judge": 7 * 40.0}
    assert work(strategy="cfg").rows == {BASE: 80.0}


def test_the_longest_of_several_sets_the_steps() -> None:
    spread = Ask(100.0, Lengths(mean=40.0, cv=0.5), limited=False)
    one, four = work(spread, strategy="sample"), work(spread, strategy="best_of_n", n=4, reward="judge")
    assert one.steps == 40.0
    assert 1.4 < four.steps / 40.0 < 1.8  # of four log-normals with that cv
    assert four.rows[BASE] == 160.0, "rows are of all answers, not of the longest"


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0])
def test_what_is_seen_at_a_random_time_is_longer(cv: float) -> None:
    """Answers one after another, looked at now and then: E[A^2] / (2 E[A]) tokens of the one under way are there."""
    law, random = Lengths(mean=200.0, cv=cv), np.random.default_rng(5)
    ends = np.cumsum(law.draw(random, 400_000))
    looks = random.uniform(0.0, ends[-1], 400_000)
    begun = np.concatenate([[0.0], ends])[np.searchsorted(ends, looks)]
    assert law.halfway == pytest.approx(float((looks - begun).mean()), rel=0.02)
    assert law.halfway == pytest.approx(100 * (1 + cv**2))


@pytest.mark.parametrize(("number", "row"), MEASURED)
def test_the_table_is_of_what_formulas_say(number: int, row: Any) -> None:
    said = work(Ask(row.prompt - 1, Lengths(mean=row.answer), limited=True), **row.decoding)
    assert 0.35 < row.ticks / said.steps < 1.6
    assert 0.35 < row.rows / said.sequences < 1.6


def test_prompts_of_the_table_are_those_of_formulas() -> None:
    """But for what asks for texts in between, whose words nobody counts in a formula."""
    for row in shipped().rows:
        said = work(Ask(row.prompt - 1, Lengths(mean=row.answer), limited=True), **row.decoding)
        rest = row.tokens[BASE] - said.prefill.get(BASE, 0.0) - said.rows.get(BASE, 0.0) * row.rows / said.sequences
        if row.strategy not in ("ppo_mcts", "rsd", "gsi", "nudging", "wsd", "urial", "principles", "pluralism"):
            assert abs(rest) < 0.15 * row.tokens[BASE], row.decoding


def test_parameters_scale_what_was_measured() -> None:
    """The table's factors of a strategy hold at other parameters: measured at both."""
    rows = [row for row in shipped().rows if row.strategy == "best_of_n"]
    assert len(rows) == 2
    ratio = [
        row.rows / work(Ask(row.prompt, Lengths(mean=row.answer), True), **row.decoding).rows[BASE] for row in rows
    ]
    assert ratio[0] == pytest.approx(ratio[1], rel=0.05)


def test_every_strategy_has_a_cost() -> None:
    known = strategies()
    searches = {name for name, each in known.items() if each.kind == "search"}
    prompts = {name for name, each in known.items() if each.kind == "prompt"}
    assert (set(SEARCHES), set(PROMPTS)) == (searches, prompts)
    measured = {row.strategy for row in shipped().rows}
    assert measured == {each["strategy"] for each in settings()}, "python benchmarks/capacity.py --costs"
    assert set(known) - measured == {"norms", "value"}, "what needs a library, or a part beside it"
    assert factors("norms", shipped()).measured == 0


def test_a_strategy_without_a_formula_says_how_to_measure_it(
    monkeypatch: pytest.MonkeyPatch, mix: Callable[..., Mix]
) -> None:
    monkeypatch.setattr("trimtab.bench.capacity.demand.SEARCHES", {})
    with pytest.raises(BenchError, match=r"strategy 'sample' .*capacity\.py --costs --only sample"):
        demands(mix(), shipped())


def test_what_was_measured_corrects_the_formula(mix: Callable[..., Mix]) -> None:
    entry = {"share": 1, "prompt": {"mean": 101}, "answer": {"mean": 40, "ends": "limit"}}
    decoding = {"strategy": "ts_llm", "value": "judge", "simulations": 4, "width": 3, "step_tokens": 12}
    (found,) = demands(mix(requests=[{**entry, "decoding": decoding}]), shipped())
    said, known = work(**decoding), factors("ts_llm", shipped())
    assert known.measured == 1
    assert found.work.steps == pytest.approx(said.steps * known.steps)
    assert found.work.rows[BASE] == pytest.approx(said.rows[BASE] * known.rows)
    assert found.work.steps != said.steps


def test_guides_that_are_not_described_are_named(mix: Callable[..., Mix]) -> None:
    entry = {"share": 1, "prompt": {"mean": 10}, "answer": {"mean": 10}}
    wrong = {**entry, "decoding": {"strategy": "best_of_n", "n": 2, "reward": "jugde"}}
    with pytest.raises(BenchError, match=r"unknown guide 'jugde'; do you mean 'judge'\?"):
        demands(mix(requests=[wrong]), shipped())
    apart = {"arm": {"model": "llama-3.2-1b", "apart": True}}
    steering = {**entry, "decoding": {"strategy": "genarm", "arm": "arm"}}
    with pytest.raises(BenchError, match=r"guides\.arm\.apart: .*leave `apart` out"):
        demands(mix(requests=[steering], guides=apart), shipped())


def test_judges_that_are_shown_the_question_read_it(mix: Callable[..., Mix]) -> None:
    entry = {"share": 1, "prompt": {"mean": 100}, "answer": {"mean": 20, "ends": "limit"}}
    asked = {**entry, "decoding": {"strategy": "best_of_n", "n": 2, "reward": "judge"}}
    (blind,) = demands(mix(requests=[asked]), shipped())
    (seeing,) = demands(mix(requests=[asked], guides={"judge": {"kind": "adapter"}}), shipped())
    assert seeing.work.scored["judge"] - blind.work.scored["judge"] == pytest.approx(100)
    (free,) = demands(mix(requests=[asked], guides={"judge": {"kind": "program"}}), shipped())
    assert not free.work.scored


def test_the_mean_request() -> None:
    one, other = Work(steps=10, rows={BASE: 10.0}, width=1), Work(steps=30, rows={BASE: 90.0}, width=3)
    both = mean([(1.0, one), (1.0, other)])
    assert (both.steps, both.rows[BASE]) == (20, 50)
    assert both.width == (10 * 1 + 30 * 3) / 40, "of what is under way: longer ones are seen more"
