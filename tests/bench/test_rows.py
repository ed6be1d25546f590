"""Rows from answers: every number against one worked out by hand, and what stays out of a row."""

from collections.abc import Sequence
from itertools import product
from math import exp, log
from typing import Any

import numpy as np
import pytest
from reported import CONDITIONS as GIVEN

from trimtab.bench.bootstrap import interval, paired_gain
from trimtab.bench.records import BASE, Answer, Considered, Row, Setting
from trimtab.bench.rows import rows

CONDITIONS = GIVEN.model_copy(update={"machine": {"cpu": "one", "share": 0.123456789}})
PLAIN = Setting(name=BASE)
ARGS = Setting(name="args", decoding={"strategy": "args", "w": 0.123456789}, family="args", strength=0.123456789)
BEST = Setting(name="best", decoding={"strategy": "best_of_n", "n": 4}, curve=(1, 2))
LEVELS: Any = {BASE: "base", "args": "token", "best": "answer"}


def answer(setting: str, prompt: str, **fields: Any) -> Answer:
    defaults = {"concurrency": 8, "seed": 0, "part": 1, "sent": 100.0, "e2e": 1.0, "reward": 0.0, "gold": 0.0}
    return Answer.model_validate({**defaults, "setting": setting, "prompt": prompt, **fields})


def found(answers: Sequence[Answer], *settings: Setting, peaks: Any = None) -> list[Row]:
    return rows(answers, settings or (PLAIN, ARGS), CONDITIONS, LEVELS, peaks or {})


def six(value: float) -> float:
    return float(f"{value:.6g}")


def test_quality_is_that_of_the_answers_paired_by_prompt_and_seed() -> None:
    asked = list(product("abc", (0, 1)))
    plain = dict(zip(asked, [1.0, 3.0, 2.0, 2.5, 7.0, 7.5], strict=True))
    steered = dict(zip(asked, [2.0, 3.0, 2.5, 2.0, 9.0, 8.5], strict=True))
    answers = [answer("args", p, seed=s, reward=r, gold=-r) for (p, s), r in steered.items()]
    answers += [answer(BASE, p, seed=s, reward=r, gold=r / 3) for (p, s), r in reversed(plain.items())]
    base, args = found(answers)
    treated, untreated = (np.array(list(each.values())).reshape(3, 2) for each in (steered, plain))
    assert args.reward is not None
    assert args.reward.mean == six(treated.mean())
    assert args.reward.low == six(interval(treated).low)
    gain = paired_gain(treated, untreated)
    assert args.reward_gain is not None
    assert args.reward_gain.model_dump() == {key: six(value) for key, value in gain.model_dump().items()}
    assert args.gold_gain is not None
    assert args.gold_gain.mean == six((-treated - untreated / 3).mean())
    assert base.reward_gain is not None
    assert (base.reward_gain.low, base.reward_gain.high, base.reward_gain.improved) == (0.0, 0.0, 0.0)


def test_the_win_rate_is_against_other_seeds_of_plain_sampling() -> None:
    answers = [answer(BASE, p, seed=s, reward=r) for p, s, r in (("a", 0, 1.0), ("a", 1, 2.0), ("a", 2, 5.0))]
    answers += [answer(BASE, "b", seed=s, reward=r) for s, r in ((0, 9.0), (1, -1.0))]
    answers += [answer("args", p, seed=s, reward=r) for p, s, r in (("a", 0, 5.0), ("a", 1, 3.0), ("b", 0, 0.0))]
    base, args = found(answers)
    assert args.win_rate is not None
    assert args.win_rate.mean == six(
        ((1.0 + 0.5 + 1.0 + 0.0) / 4 + 1.0) / 2
    )  # 5 over 2 and 5, 3 over 1 and 5; 0 over -1
    assert base.win_rate is not None
    assert base.win_rate.mean == 0.5


def test_the_win_rate_with_one_seed_is_against_plain_sampling_under_it() -> None:
    answers = [answer(BASE, p, reward=r) for p, r in (("a", 1.0), ("b", 2.0), ("c", 3.0))]
    answers += [answer("args", p, reward=r) for p, r in (("a", 2.0), ("b", 2.0), ("c", 1.0), ("d", 9.0))]
    _, args = found(answers)
    assert args.win_rate is not None
    assert args.win_rate.mean == 0.5  # won, tied, lost; d has no rival
    assert args.reward_gain is not None
    assert args.reward_gain.mean == six((1.0 + 0.0 - 2.0) / 3)


def test_plain_sampling_at_the_same_concurrency_goes_before_that_of_the_first() -> None:
    answers = [answer(BASE, p, reward=r) for p, r in (("a", 1.0), ("b", 2.0))]
    answers += [answer(BASE, "a", reward=5.0, concurrency=1)]
    answers += [answer("args", p, reward=10.0, concurrency=c) for p, c in product("ab", (8, 1))]
    gains = {row.concurrency: row.reward_gain for row in found(answers, ARGS)}
    assert list(gains) == [8, 1]
    assert [gain.mean for gain in gains.values() if gain] == [8.5, 6.5]


def test_a_measure_that_an_answer_is_without_is_left_out_and_the_others_stay() -> None:
    answers = [answer(BASE, p) for p in "ab"]
    answers += [answer("args", "a", reward=None, gold=1.0), answer("args", "b", reward=1.0)]
    _, args = found(answers)
    assert args.reward is None
    assert args.reward_gain is None
    assert args.gold_gain is not None
    assert args.kl is None


def test_gold_is_over_the_prompts_that_it_can_judge() -> None:
    golds = {"a": 0.25, "b": 0.5, "c": None}
    answers = [answer(BASE, p, gold=gold) for p, gold in golds.items()]
    answers += [answer("args", p, gold=None if gold is None else 3 * gold) for p, gold in golds.items()]
    base, args = found(answers)
    assert (base.gold_prompts, args.gold_prompts, args.prompts) == (2, 2, 3)
    assert args.gold is not None
    assert args.gold_gain is not None
    assert (args.gold.mean, args.gold_gain.mean) == (1.125, 0.75)
    _, silent = found([answer(BASE, "a", gold=None), answer("args", "a", gold=None)])
    assert (silent.gold, silent.gold_gain, silent.gold_prompts) == (None, None, 0)


def test_a_setting_with_an_error_says_the_first_and_the_others_go_on() -> None:
    answers = [answer(BASE, "a", reward=1.0), answer("args", "a", error="no guide"), answer("args", "b", error="late")]
    base, args = found([*answers, answer("args", "c", reward=2.0)], peaks={("args", 8): 9.0, (BASE, 8): 9.0})
    told = args.model_dump(exclude_defaults=True, exclude_unset=True)
    said = ("setting", "strategy", "level", "family", "strength", "decoding", "concurrency", "prompts", "answers")
    assert set(told) == {*said, "error", "conditions"}
    assert (args.error, args.answers, args.prompts) == ("no guide", 3, 3)
    assert (base.error, base.peak_memory_mib) == (None, 9.0)


def test_what_plain_sampling_failed_on_is_in_no_pair() -> None:
    answers = [answer(BASE, "a", error="late"), answer(BASE, "b", reward=1.0)]
    base, args = found([*answers, *(answer("args", p, reward=3.0) for p in "ab")])
    assert base.error == "late"
    assert args.reward_gain is not None
    assert (args.reward_gain.mean, args.win_rate and args.win_rate.mean) == (2.0, 1.0)
    assert found([*answers[:1], answer("args", "a", reward=3.0)])[1].reward_gain is None


def test_times_are_percentiles_in_milliseconds() -> None:
    answers = [answer(BASE, str(i), ttft=0.1 * i, e2e=0.1 * i + 1.0, delivered=11) for i in range(5)]
    (base,) = found(answers, PLAIN)
    assert base.ttft_ms is not None
    assert base.ttft_ms.model_dump() == {"p50": 200.0, "p95": 380.0, "p99": 396.0}
    assert base.e2e_ms is not None
    assert base.e2e_ms.p50 == 1200.0
    assert base.per_token_ms is not None
    assert base.per_token_ms.model_dump() == {"p50": 100.0, "p95": 100.0, "p99": 100.0}


@pytest.mark.parametrize(
    ("fields", "milliseconds"),
    [
        ({"ttft": 0.4, "e2e": 1.0, "delivered": 4}, 200.0),  # 0.6 s for three tokens
        ({"ttft": 0.999, "e2e": 1.0, "delivered": 4}, 250.0),  # all at once
        ({"ttft": None, "e2e": 1.0, "delivered": 4}, 250.0),  # tokens that are no text
        ({"ttft": 0.4, "e2e": 1.0, "delivered": 1}, 1000.0),
        ({"ttft": None, "e2e": 1.0, "delivered": 0}, None),
    ],
)
def test_time_per_token(fields: dict[str, Any], milliseconds: float | None) -> None:
    (base,) = found([answer(BASE, "a", **fields)], PLAIN)
    assert (base.per_token_ms and base.per_token_ms.p50) == milliseconds


def test_throughput_counts_the_time_in_which_requests_were_under_way_in_each_part() -> None:
    answers = [
        answer(BASE, "a", sent=100.0, e2e=2.0, delivered=10),
        answer(BASE, "b", sent=101.0, e2e=3.0, delivered=20, finish_reason="length"),  # the first part ends at 104
        answer(BASE, "c", sent=900.0, e2e=1.0, delivered=30, part=2),
    ]
    (base,) = found(answers, PLAIN)
    assert base.tokens_per_second == 60 / 5
    assert base.requests_per_second == 3 / 5
    assert base.delivered == 20.0
    assert base.truncated == six(1 / 3)


def test_tokens_and_forwards_are_means_by_model_over_all_answers() -> None:
    answers = [
        answer(BASE, "a", spent={"demo": 30, "positivity": 3}, forwards={"demo": 10}),
        answer(BASE, "b", spent={"demo": 10}, forwards={"demo": 5}),
    ]
    (base,) = found(answers, PLAIN)
    assert base.spent == {"demo": 20.0, "positivity": 1.5}
    assert base.spent_total == 21.5
    assert base.forwards == {"demo": 7.5}


def test_texts_kl_and_branching() -> None:
    answers = [
        answer("args", "a", text="a b a b a b", kl=2.0, branching=2.0),
        answer("args", "b", text="a b c", kl=1.0, branching=8.0, bounded=True),
    ]
    (args,) = found(answers, ARGS)
    assert args.distinct == {1: six(3 / 9), 2: six(3 / 7), 3: six(3 / 5)}
    assert args.repetition == six((1 / 3 + 0.0) / 2)
    assert args.branching == 4.0
    assert args.kl is not None
    assert args.kl.model_dump() == {"mean": 1.5, "bound": True}


def test_rows_come_by_setting_then_concurrency_and_say_what_they_are() -> None:
    answers = [answer(name, p, concurrency=c) for name, c, p in product((BASE, "args"), (8, 1), "ab")][:-1]
    told = found(answers, ARGS, PLAIN, BEST, peaks={("args", 1): 123.45678})
    assert [(row.setting, row.concurrency, row.prompts) for row in told] == [
        *(("args", 8, 2), ("args", 1, 1), (BASE, 8, 2), (BASE, 1, 2))
    ]
    assert [row.level for row in told] == ["token", "token", "base", "base"]
    assert [row.family for row in told] == ["args", "args", BASE, BASE]
    assert [row.peak_memory_mib for row in told] == [None, 123.457, None, None]


def test_what_was_measured_has_six_digits_what_was_asked_for_all_and_a_row_survives_its_file() -> None:
    answers = [answer("args", p, reward=r, e2e=r, delivered=3) for p, r in (("a", 1 / 3), ("b", 2e-7 / 3))]
    (row,) = found(answers, ARGS)
    assert (row.strength, row.decoding["w"]) == (0.123456789, 0.123456789)
    assert row.conditions == CONDITIONS
    line = row.model_dump_json()
    assert '"mean":0.166667' in line
    assert Row.model_validate_json(line) == row
    assert Row.model_validate_json(line).model_dump_json() == line
    assert found(answers, ARGS)[0].model_dump_json() == line


def pool(prompt: str, *rewards: float, **fields: Any) -> Answer:
    """A best-of-n answer; the gold of each draft is minus its reward."""
    considered = [Considered(reward=r, gold=-r, tokens=3) for r in rewards]
    best = max(rewards)
    return answer("best", prompt, considered=considered, reward=best, gold=-best, kl=0.6, bounded=True, **fields)


def test_a_curve_is_estimated_from_its_largest_search_and_timed_by_its_own_answers() -> None:
    answers = [answer(BASE, "a", reward=1.0), answer(BASE, "b", reward=0.0)]
    answers += [pool("a", 0.0, 1.0, 2.0, 3.0, e2e=9.0), pool("b", 4.0, 4.0, -4.0, 0.0, e2e=9.0)]
    answers += [answer("best n=2", "a", reward=77.0, gold=77.0, e2e=0.5, delivered=5, text="a b", kl=3.0)]
    answers += [answer("best n=1", "a", reward=77.0)]
    one, two, four = found(answers, BEST, peaks={("best n=2", 8): 64.0})
    assert [row.setting for row in (one, two, four)] == ["best n=1", "best n=2", "best"]
    assert [row.strength for row in (one, two, four)] == [1.0, 2.0, 4.0]
    assert {(row.strategy, row.level, row.family) for row in (one, two, four)} == {("best_of_n", "answer", "best")}
    assert [row.decoding["n"] for row in (one, two, four)] == [1, 2, 4]
    assert [row.estimated for row in (one, two, four)] == [*["order statistics of best, 2 prompts"] * 2, None]

    a, b = (1 + 2 * 2 + 3 * 3) / 6, (0 + 4 * 5) / 6  # of the six pairs
    assert two.reward is not None
    assert two.reward.mean == six((a + b) / 2)
    assert two.reward.low == six(interval([[a], [b]]).low)
    assert two.gold is not None
    assert two.gold.mean == six(-(a + b) / 2)
    assert two.reward_gain is not None
    assert two.reward_gain.mean == six((a - 1 + b - 0) / 2)
    assert two.win_rate is not None
    assert two.win_rate.mean == six(((0.5 + 5) / 6 + (0.5 + 5) / 6) / 2)
    assert two.kl is not None
    assert two.kl.model_dump() == {"mean": six(log(2) - 1 / 2), "bound": True}

    assert two.e2e_ms is not None
    assert (two.e2e_ms.p50, two.delivered, two.prompts, two.answers) == (500.0, 5.0, 1, 1)
    assert (two.distinct[1], two.tokens_per_second, two.peak_memory_mib) == (1.0, 10.0, 64.0)

    assert one.reward is not None
    assert one.reward.mean == six((1.5 + 1.0) / 2)

    assert four.reward is not None
    assert (four.reward.mean, four.kl and four.kl.mean, four.e2e_ms and four.e2e_ms.p50) == (3.5, 0.6, 9000.0)


def test_a_curve_at_a_concurrency_without_pools_is_estimated_from_another() -> None:
    answers = [answer(BASE, p, reward=r) for p, r in (("a", 1.0), ("b", 3.0))]
    answers += [pool("a", 1.0, 2.0, 3.0, 4.0), pool("b", 5.0, 6.0, 7.0, 8.0)]
    answers += [answer("best", "a", concurrency=1, reward=4.0), answer("best n=1", "a", concurrency=1, e2e=0.25)]
    one, four, alone = found(answers, BEST)
    assert [(row.setting, row.concurrency) for row in (one, four, alone)] == [("best n=1", 1), ("best", 8), ("best", 1)]
    assert one.estimated == "order statistics of best, 2 prompts"
    assert one.reward_gain is not None
    assert one.reward_gain.mean == 2.5
    assert one.e2e_ms is not None
    assert one.e2e_ms.p50 == 250.0
    failed = answer("best", "b", concurrency=1, error="too long")
    assert [row.error for row in found([*answers, failed], BEST)] == [None, None, "too long"]
    nothing = found([*answers[:2], *answers[-2:]], BEST)[0]
    assert nothing.error == "best considered 0 answers to a: no best of 1 can be told"
    untold = found(answers[-1:], BEST)[0]
    assert (untold.estimated, untold.reward, untold.e2e_ms) == (None, None, one.e2e_ms)


def test_a_curve_whose_search_failed_says_so_and_one_failed_time_costs_one_row() -> None:
    timed = [answer("best n=1", "a"), answer("best n=2", "a", error="late")]
    assert [row.error for row in found([*timed, pool("a", 1.0, 2.0, 3.0, 4.0)], BEST)] == [None, "late", None]
    failed = answer("best", "b", error="too long")
    assert {row.error for row in found([timed[0], pool("a", 1.0, 2.0, 3.0, 4.0), failed], BEST)} == {"too long"}
    assert found([timed[0], failed], BEST)[0].error == "too long"
    few = found([timed[0], answer("best n=2", "a"), pool("a", 1.0)], BEST)
    assert [row.error for row in few] == [None, "best considered 1 answers to a: no best of 2 can be told", None]


def test_branching_of_many_answers_is_their_geometric_mean() -> None:
    values = [1.5, 2.5, 9.0]
    (args,) = found([answer("args", str(i), branching=each) for i, each in enumerate(values)], ARGS)
    assert args.branching == six(exp(sum(map(log, values)) / 3))
