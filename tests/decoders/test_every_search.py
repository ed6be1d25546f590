"""What holds for every search: batches, streams, budgets, failures and cancellation, on toys."""

import math
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import pytest
import searches
from far_toy import FarToy
from searches import EOS, LENGTH, MESSAGES, PROMPT, SAMPLED, SEARCHES, VOCAB, taste, toy
from toy import Toy, random_table

from trimtab.decoders.registry import strategies
from trimtab.decoders.search.base import Search
from trimtab.engine.budget import Budget
from trimtab.engine.job import Job
from trimtab.engine.results import Failure, Result
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.settings import EngineSettings

SHIFTED = {"cards", "rsd", "gsi"}
"""searches with a threshold: a constant on the reward matters"""
UNREWARDED = {"cbs", "self_consistency"}
every = pytest.mark.parametrize("name", SEARCHES)


@pytest.fixture(params=[Toy, FarToy], ids=["here", "remote"], autouse=True)
def executor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test twice: with a base that runs here, and with one that another server runs, where the search can."""
    name = request.node.callspec.params.get("name")
    if request.param is FarToy and name is not None and not runs_elsewhere(name):
        pytest.skip("it needs the base's distributions")
    monkeypatch.setattr(searches, "Toy", request.param)


def runs_elsewhere(name: str) -> bool:
    params = strategies()[name].params
    return issubclass(params, Search) and not params.distributions


def submit(engine: Toy, name: str, sampling: SamplingParams = SAMPLED, **shared: Any) -> object:
    return engine.submit(PROMPT, sampling, decoding={"strategy": name, **SEARCHES[name], **shared}, messages=MESSAGES)


def run(name: str, sampling: SamplingParams = SAMPLED, engine: Toy | None = None, **shared: Any) -> Result:
    engine = engine or toy()
    handle = submit(engine, name, sampling, **shared)
    engine.finish()
    return engine.result(handle)


def told(result: Result) -> object:
    """What may not depend on who else is served."""
    return result.choices, [(each.text, each.reward) for each in result.candidates], result.stopped_by


def test_no_search_is_left_out() -> None:
    assert {name for name, each in strategies().items() if each.kind == "search"} == {*SEARCHES, "sample"}


def test_all_searches_in_one_batch_answer_as_each_alone() -> None:
    engine = toy()
    here = not isinstance(engine, FarToy)
    handles = {name: submit(engine, name) for name in SEARCHES if here or runs_elsewhere(name)}
    handles["sample"] = engine.submit(PROMPT, SAMPLED)
    engine.finish()
    for name, handle in handles.items():
        alone = run(name) if name in SEARCHES else toy().run(PROMPT, SAMPLED)
        assert told(engine.result(handle)) == told(alone), name


@every
@pytest.mark.parametrize("seed", range(3))
def test_what_is_sent_concatenates_to_the_answer(name: str, seed: int) -> None:
    engine = toy()
    handle = submit(engine, name, SAMPLED.model_copy(update={"seed": seed}))
    engine.finish()
    deltas, (choice,) = engine.deltas(handle), engine.result(handle).choices
    assert "".join(delta.text for delta in deltas) == choice.text
    assert sum((delta.token_ids for delta in deltas), ()) == choice.token_ids


@every
def test_a_constant_on_the_reward_changes_nothing_without_a_threshold(name: str) -> None:
    answers = {run(name, engine=toy(lambda text, c=c: taste(text) + c)).choices[0].token_ids for c in (0.0, 16.0)}  # type: ignore[misc]
    assert len(answers) == 1 or name in SHIFTED


@every
def test_the_reward_matters(name: str) -> None:
    """Some seed answers otherwise under the opposite reward."""
    samplings = [SAMPLED.model_copy(update={"seed": seed}) for seed in range(8)]
    pairs = [
        [run(name, sampling, toy(lambda text, s=sign: s * taste(text))).choices[0].token_ids for sign in (1, -1)]  # type: ignore[misc]
        for sampling in samplings
    ]
    assert any(one != other for one, other in pairs) or name in UNREWARDED


@every
@pytest.mark.parametrize("length", [1, 2])
def test_answers_may_be_shorter_than_a_step(name: str, length: int) -> None:
    (choice,) = run(name, SAMPLED.model_copy(update={"max_tokens": length})).choices
    assert len(choice.token_ids) <= length


@every
def test_a_stop_string_inside_a_step_ends_the_answer(name: str) -> None:
    """The first character of the second token of the free answer: every candidate that says it ends there."""
    free = run(name).choices[0].text
    stop = free[len(free) // 2]
    result = run(name, SAMPLED.model_copy(update={"stop": (stop,)}))
    assert stop not in result.choices[0].text
    assert all(stop not in candidate.text for candidate in result.candidates if name != "refine")


@every
def test_all_candidates_may_be_worth_the_same(name: str) -> None:
    assert run(name, engine=toy(lambda text: 1.0)).choices[0].token_ids


@every
def test_everything_may_end_with_the_first_token(name: str) -> None:
    bias = SAMPLED.model_copy(update={"logit_bias": {EOS: 100.0}})
    (choice,) = run(name, bias).choices
    assert choice.text == ""
    assert choice.finish_reason == "stop"


@every
@pytest.mark.parametrize("losing", [False, True])
def test_a_reward_that_fails_here_and_there(name: str, losing: bool) -> None:
    """By default the request fails and the guide is named; else the answers that it fails on lose."""

    calls = count()

    def moody(text: str) -> float:
        if sum(map(ord, text)) % 7 == 0 if losing else next(calls) == 1:
            raise ZeroDivisionError
        return taste(text)

    engine = toy(moody, EngineSettings(max_rows=4096, guides={}, reward_errors="lose" if losing else "fail"))
    handle = submit(engine, name)
    engine.finish()
    end = engine.end(handle)
    if losing or name in UNREWARDED:
        assert isinstance(end, Result)
    else:
        assert isinstance(end, Failure)
        assert "taste" in str(end.error)


@every
def test_a_reward_that_is_never_a_number(name: str) -> None:
    engine = toy(lambda text: math.nan)
    handle = submit(engine, name)
    engine.finish()
    end = engine.end(handle)
    one_answer = strategies()[name].params.most is Search.most
    if name in UNREWARDED or (one_answer and name != "tqstar"):  # which would weigh a token by it
        assert isinstance(end, Result)
        assert end.choices[0].token_ids
    else:
        assert isinstance(end, Failure)
        assert "taste" in str(end.error) or name == "tqstar"


def interrupt(engine: Toy, handle: object, ticks: int, act: Callable[[], None]) -> None:
    for _ in range(ticks):
        if not engine.engine.idle:
            engine.engine.tick()
    act()
    engine.finish()


@every
@pytest.mark.parametrize("ticks", [1, 2, 4, 7, 11, 16, 23])
def test_a_search_can_be_cancelled_anywhere(name: str, ticks: int) -> None:
    """No page is left; Toy.finish checks."""
    engine = toy()
    handle = submit(engine, name)
    neighbour = engine.submit(PROMPT, SAMPLED)
    interrupt(engine, handle, ticks, partial(engine.engine.cancel, handle))
    assert told(engine.result(neighbour)) == told(toy().run(PROMPT, SAMPLED))


@every
@pytest.mark.parametrize("ticks", [0, 1, 2, 3, 5, 8, 12, 17, 24])
def test_a_search_answers_whenever_its_time_is_up(name: str, ticks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within two ticks, with the best so far, and true to what was sent."""
    engine = toy()
    handle = submit(engine, name, budget={"deadline_ms": 3_600_000})
    over = {"at": math.inf}
    monkeypatch.setattr(
        Job, "overspent", property(lambda job: "deadline_ms" if engine.stats.steps >= over["at"] else None)
    )
    for _ in range(ticks):
        if not engine.engine.idle:
            engine.engine.tick()
    if engine.engine.idle:
        return
    over["at"] = -1
    engine.engine.tick()
    if not engine.engine.idle:
        engine.engine.tick()
    assert engine.engine.idle, "more than two ticks"
    result = engine.result(handle)
    assert result.stopped_by == "deadline_ms"
    (choice,) = result.choices
    finished = [each.reward for each in result.candidates if each.choice is None and each.finish_reason == "stop"]
    assert all(reward is None or not math.isnan(reward) for reward in finished)
    assert "".join(delta.text for delta in engine.deltas(handle)) == choice.text


@every
def test_tokens_run_out_and_the_best_so_far_is_returned(name: str) -> None:
    full = sum(run(name).usage.model_tokens.values())
    limit = full * 2 // 3
    result = run(name, budget={"max_model_tokens": limit})
    assert result.stopped_by == "max_model_tokens"
    tick = 24  # no search of these decodes more rows at once, over both models
    if name in ("darwin", "refine", "rps"):  # prompts of their own
        tick = 512
    assert limit <= sum(result.usage.model_tokens.values()) <= limit + 2 * tick


@every
def test_fewer_rows_give_the_same_answer(name: str) -> None:
    engine = toy()
    narrow = run(name, engine=engine, budget={"max_rows": 1})
    assert max(engine.runner.widths) <= max(
        1, 4 if SEARCHES[name].get("tuned") or SEARCHES[name].get("draft") else 1
    ) or (name in ("treebon", "refine"))
    assert narrow.choices == run(name).choices or name == "self_consistency"  # where the first to finish vote first


@every
def test_several_choices(name: str) -> None:
    """As many as asked for; each is a whole answer."""
    engine = toy()
    changes = {"qalign": {"chains": 2}}.get(name, {})
    handle = engine.submit(
        PROMPT, SAMPLED, n=2, decoding={"strategy": name, **SEARCHES[name], **changes}, messages=MESSAGES
    )
    engine.finish()
    result = engine.result(handle)
    assert len(result.choices) == 2
    for index, choice in enumerate(result.choices):
        mine = [delta.text for delta in engine.deltas(handle) if delta.choice == index]
        assert "".join(mine) == choice.text
        assert choice.finish_reason == "stop" or len(choice.token_ids) == LENGTH


@every
def test_a_steered_search_reports_what_steering_did(name: str) -> None:
    steer = [{"method": "genarm", "arm": "other", "alpha": 0.5}]
    result = run(name, steer=steer)
    if name not in ("rsd", "gsi", "refine"):  # other models write there
        assert result.choices[0].steering is not None
        assert result.choices != run(name).choices


OPTIONS: dict[str, dict[str, Any]] = {
    "beam_search": {
        "n": 6, "m": 4, "aggregate": "min", "reward": "short", "separator": "a", "step_tokens": 2, "steps": 1,
    },
    "best_of_n": {"n": 5, "export": "best_and_worst"},
    "cards": {
        "value": "short", "target": -2.0, "alpha": 0.0, "beta": 0.01, "hard": True, "entropy": 0.5, "min_segment": 1,
        "max_segment": 8, "length": 3, "attempts": 1, "parallel": 1,
    },
    "cbs": {"w": 1, "k": 3, "chunk": 2, "untuned": "third", "tuned": "third", "reward": "taste"},
    "cd_blockwise": {"k": 2, "block": 2, "value": "short"},
    "darwin": {"value": "short", "mutations": 1, "mutator": "other", "mutation_tokens": 2, "m": 2, "elite": 1},
    "deal": {"lam": 5.0, "beams": 1, "k": 2, "lookahead": 0},
    "dts": {"beta": 0.1, "block": 1, "simulations": 3, "parallel": 1, "width": 2.0, "alpha": 1.0},
    "dts_star": {"beta": 0.1, "block": 1, "simulations": 3, "parallel": 1, "width": 2.0, "alpha": 1.0, "c": 50.0},
    "dvts": {"n": 6, "m": 4, "aggregate": "min", "reward": "short", "separator": "a", "step_tokens": 2, "steps": 1},
    "gsi": {"n": 2, "beta": 5.0, "threshold": -9.0, "separator": "a", "step_tokens": 2, "draft": "third"},
    "particle_filter": {"n": 3, "value": "short", "beta": 4.0, "block": 2, "separator": "e", "ess": 0.0},
    "ppo_mcts": {"reward": "short", "simulations": 8, "k": 5, "c": 0.1, "prior_temperature": 0.2, "parallel": 3},
    "qalign": {"beta": 0.1, "steps": 3, "chains": 2},
    "refine": {"guide": "base", "rounds": 1, "n": 1, "instruction": "Shorter."},
    "rps": {"directions": 2, "preference": {"taste": 1.0, "short": -1.0}, "angle": 80.0},
    "rsd": {"draft": "third", "delta": -9.0, "accept": "clip", "separator": "a", "step_tokens": 2},
    "self_consistency": {
        "n": 3, "extract": "number", "reward": "taste", "least": 1, "share": 0.4, "vote_temperature": 0.01,
        "confidence": 0.4,
    },
    "speculative_rejection": {"n": 3, "value": "short", "alpha": 0.1, "schedule": [2]},
    "treebon": {"n": 2, "layers": 2, "children": 1, "segment": 1, "dpo": "third", "ref": "third"},
    "ts_llm": {
        "reward": "short", "simulations": 6, "width": 3, "step_tokens": 2, "endings": ["a"], "min_step_tokens": 2,
    },
}  # fmt: skip
NEEDS: dict[tuple[str, str], dict[str, Any]] = {
    ("rsd", "accept"): {"delta": None},
    ("qalign", "burn_in"): {"select": "majority"},
    ("self_consistency", "share"): {"least": 2, "confidence": 1.0},
    ("self_consistency", "confidence"): {"least": 2, "share": 1.0},
    ("self_consistency", "least"): {"share": 0.1},
    ("self_consistency", "vote_temperature"): {"reward": "taste"},
    ("dts_star", "beta"): {"simulations": 24, "c": 0.1},
}
"""what has to be changed beside an option, in both runs"""


@pytest.mark.parametrize(("name", "option"), [(name, option) for name, each in OPTIONS.items() for option in each])
def test_every_option_changes_something(name: str, option: str) -> None:
    """An answer, a candidate, a number of the report or the tokens spent, for some seed."""

    def seen(seed: int, **changes: Any) -> object:
        engine = toy()
        engine.add_lm("third", random_table(VOCAB, scale=1.0))
        given = {**SEARCHES[name], **NEEDS.get((name, option), {}), **changes}
        given = {key: value for key, value in given.items() if value is not None}
        likelier = {EOS: 3.0} | dict.fromkeys(engine.vocabulary.encode("ea"), 4.0)  # ends of answers and steps
        sampling = SAMPLED.model_copy(update={"seed": seed, "logit_bias": likelier})
        handle = engine.submit(PROMPT, sampling, decoding={"strategy": name, **given}, messages=MESSAGES)
        engine.finish()
        result = engine.result(handle)
        return told(result), result.report, result.usage.model_tokens

    assert any(seen(seed) != seen(seed, **{option: OPTIONS[name][option]}) for seed in range(8))


def test_every_option_is_tried() -> None:
    """But rewards that are named anyway, and what has tests of its own."""
    elsewhere = {
        "cbs": {"value"}, "deal": {"constraint"}, "treebon": {"value"}, "qalign": {"burn_in"}, "rps": {"rewards"},
    }  # fmt: skip
    for name, options in OPTIONS.items():
        known = set(strategies()[name].params.model_fields)
        left = known - options.keys() - elsewhere.get(name, set())
        assert left <= {"reward", "value"} & SEARCHES[name].keys(), (name, left)


def test_budgets_are_strict() -> None:
    assert Budget() == Budget.model_validate({})
    assert set(Budget.model_fields) == {"deadline_ms", "max_model_tokens", "max_rows", "max_kl", "reward_at_least"}
