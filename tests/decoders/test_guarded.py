"""An operator's guard: what does not pass it is never returned, streamed or told of, whatever the search."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from searches import LENGTH, MESSAGES, OTHER, PROMPT, SAMPLED, SEARCHES, TABLE, taste
from toy import Toy

from trimtab.decoders.floor import Floor
from trimtab.decoders.select import Argmax, Entry, Guard, Guarded, Watch
from trimtab.decoders.select.by_reward import Soft
from trimtab.engine.job import Job
from trimtab.engine.results import Failure, Result
from trimtab.engine.settings import EngineSettings

REFUSAL = "No."
FLOOR = Floor.model_validate({"guard": {"reward": "safe", "at_least": 0.5, "refusal": REFUSAL}})
NAMES = ["sample", *SEARCHES]
CHANGES = {"qalign": {"chains": 2}}
every = pytest.mark.parametrize("name", NAMES)


def safe(text: str) -> float:
    """Half of all texts pass."""
    return float(sum(map(ord, text)) % 2)


def engine(judge: Callable[[str], float] = safe, losing: bool = False) -> Toy:
    settings = EngineSettings(max_rows=4096, score_pairs=4096, guides={}, reward_errors="lose" if losing else "fail")
    rewards = {"taste": taste, "short": lambda text: -float(len(text)), "safe": judge}
    toy = Toy(TABLE, rewards=rewards, eos=7, settings=settings)
    toy.add_lm("other", OTHER)
    return toy


def submit(toy: Toy, name: str, n: int = 1, seed: int = 5, floor: Floor | None = FLOOR, **shared: Any) -> object:
    decoding = (
        {} if name == "sample" else {"strategy": name, **SEARCHES[name], **(CHANGES.get(name, {}) if n > 1 else {})}
    )
    sampling = SAMPLED.model_copy(update={"seed": seed, **shared.pop("sampling", {})})
    return toy.submit(PROMPT, sampling, n=n, decoding={**decoding, **shared}, messages=MESSAGES, floor=floor)


def texts_of(told: Any) -> list[str]:
    """All strings of a report that are no keys."""
    if isinstance(told, dict):
        told = list(told.values())
    if isinstance(told, list | tuple):
        return [text for each in told for text in texts_of(each)]
    return [told] if isinstance(told, str) else []


def kept(toy: Toy, handle: object, judge: Callable[[str], float] = safe) -> Result:
    """The result of a request, of which nothing that the guard keeps back was let out."""
    result = toy.result(handle)
    texts = [choice.text for choice in result.choices]
    assert all(text == REFUSAL or judge(text) >= 0.5 for text in texts)
    assert {each.text for each in result.candidates} <= set(texts)
    assert set(texts_of(result.report)) <= set(texts)
    for index, text in enumerate(texts):
        assert "".join(delta.text for delta in toy.deltas(handle) if delta.choice == index) == text
    assert (result.stopped_by == "abstained") == (set(texts) == {REFUSAL})
    return result


@every
def test_nothing_below_the_threshold_is_let_out(name: str) -> None:
    toy = engine()
    handles = [submit(toy, name, n, seed) for n in (1, 2) for seed in range(3)]
    toy.finish()
    for handle in handles:
        kept(toy, handle)


@every
def test_a_guard_that_nothing_passes_refuses(name: str) -> None:
    toy = engine(lambda text: 0.0)
    handle = submit(toy, name, n=2)
    toy.finish()
    result = kept(toy, handle, lambda text: 0.0)
    assert [choice.text for choice in result.choices] == [REFUSAL, REFUSAL]
    assert result.candidates == ()


@every
def test_a_guard_that_everything_passes_changes_no_answer(name: str) -> None:
    toy = engine(lambda text: 1.0)
    guarded, free = submit(toy, name), submit(toy, name, floor=None)
    toy.finish()
    assert toy.result(guarded).choices == toy.result(free).choices


@every
def test_time_that_is_up_lets_nothing_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    over = {"at": math.inf}
    monkeypatch.setattr(
        Job, "overspent", property(lambda job: "deadline_ms" if toy.stats.steps >= over["at"] else None)
    )
    for ticks in (0, 1, 3, 6, 12):
        toy, over["at"] = engine(), math.inf
        handles = [submit(toy, name, n, budget={"deadline_ms": 3_600_000}) for n in (1, 2)]
        for _ in range(ticks):
            if not toy.engine.idle:
                toy.engine.tick()
        over["at"] = -1
        toy.finish()
        for handle in handles:
            kept(toy, handle)


@pytest.mark.parametrize("name", ["sample", "best_of_n", "cd_blockwise", "qalign"])
@pytest.mark.parametrize("losing", [True, False])
def test_a_guard_that_fails_lets_nothing_out(name: str, losing: bool) -> None:
    def broken(text: str) -> float:
        raise ZeroDivisionError

    for judge in (broken, lambda text: math.nan):
        toy = engine(judge, losing)
        handle = submit(toy, name)
        toy.finish()
        if judge is broken and not losing:
            assert isinstance(toy.end(handle), Failure)
            assert toy.deltas(handle) == []
        else:
            assert [choice.text for choice in kept(toy, handle).choices] == [REFUSAL]


@pytest.mark.parametrize("ticks", range(1, LENGTH))
def test_what_a_stop_string_held_back_is_judged_too(ticks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard looks at the text that is returned, the beginning of a stop string at its end included."""
    toy = engine(lambda text: 1.0)
    free = submit(toy, "sample", floor=None)
    toy.finish()
    text = toy.result(free).choices[0].text
    judged: list[str] = []

    def judge(answer: str) -> float:
        judged.append(answer)
        return 1.0

    toy = engine(judge)
    over = {"now": False}
    monkeypatch.setattr(Job, "overspent", property(lambda job: "deadline_ms" if over["now"] else None))
    handle = submit(toy, "sample", sampling={"stop": (text[1:] + "never",)})
    for _ in range(ticks):
        toy.engine.tick()
    over["now"] = True
    toy.finish()
    assert toy.result(handle).choices[0].text == judged[-1]


def test_a_preference_pair_tells_of_no_text_but_the_choice() -> None:
    toy = engine(lambda text: 1.0)
    handle = submit(toy, "best_of_n", export="best_and_worst")
    toy.finish()
    result = toy.result(handle)
    assert result.report["pair"]["chosen"] == result.choices[0].text
    assert result.report["pair"]["rejected"] is None
    assert result.report["withheld"] == 0


def test_a_report_beside_withheld_answers_tells_their_number_alone() -> None:
    toy = engine(lambda text: float(taste(text) > 0.0))
    handle = submit(toy, "best_of_n", export="best_and_worst")
    toy.finish()
    result = kept(toy, handle, lambda text: float(taste(text) > 0.0))
    assert result.report.keys() == {"withheld"}
    assert result.report["withheld"] > 0


def test_votes_of_answers_that_are_kept_back_do_not_count() -> None:
    """Of 4 answers the largest group fails; the choice is one of the others, and no vote is told."""
    toy = engine()
    plain = submit(toy, "self_consistency", floor=None, select={"rule": "majority", "extract": "text"})
    guarded = submit(toy, "self_consistency", select={"rule": "majority", "extract": "text"})
    toy.finish()
    assert texts_of(toy.result(plain).report)
    result = kept(toy, guarded)
    assert result.report["withheld"] == sum(safe(each.text) < 0.5 for each in toy.result(plain).candidates)


def test_the_best_answer_that_passes_is_returned() -> None:
    toy = engine()
    free, guarded = submit(toy, "best_of_n", floor=None), submit(toy, "best_of_n")
    toy.finish()
    passing = [each for each in toy.result(free).candidates if safe(each.text) >= 0.5]
    best = max(passing, key=lambda each: -math.inf if each.reward is None else each.reward)
    assert toy.result(guarded).choices[0].text == best.text


def test_a_guard_that_the_search_goes_by_anyway_is_asked_once() -> None:
    calls: list[str] = []

    def judge(text: str) -> float:
        calls.append(text)
        return 1.0

    toy = engine(judge)
    submit(toy, "best_of_n", reward="safe", floor=None)
    toy.finish()
    alone = len(calls)
    floor = Floor.model_validate(
        {"guard": FLOOR.guard[0], "reward": "safe", "search": {"strategy": "best_of_n", "n": 4}}
    )
    toy.submit(PROMPT, SAMPLED, decoding=None, messages=MESSAGES, floor=floor)
    toy.finish()
    assert len(calls) == 2 * alone


def entry(reward: float) -> Entry:
    return Entry("", (), reward, {}, 0.0)


@pytest.mark.parametrize("rule", [Argmax(), Soft(temperature=1e6)])
def test_the_rule_sees_only_what_passes(rule: Argmax | Soft) -> None:
    watch = Watch((Guard(reward="a", at_least=0.0), Guard(reward="b", at_least=1.0)))
    judged = [{"a": 1.0, "b": 0.9}, {"a": 0.0, "b": 1.0}, {"a": -0.1, "b": 2.0}, {"a": math.nan, "b": 2.0}, {"b": 2.0}]
    random = np.random.default_rng(0)
    order = Guarded(rule, watch).order([entry(float(-i)) for i in range(5)], judged, 5, random)
    assert order == [1]
    assert Guarded(rule, watch).order([entry(0.0)], judged[:1], 1, random) == []
