"""What stands around every search: calibration by the base's own answers, refusals, and the best so far."""

import math
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from toy import Toy, random_table

from trimtab.engine.job import Job
from trimtab.engine.results import Result
from trimtab.engine.sampling import SamplingParams

VOCAB, PROMPT, LENGTH = 40, [3, 1], 8
TABLE = random_table(VOCAB)
SAMPLED = SamplingParams(seed=5, max_tokens=LENGTH)
BEST = {"strategy": "best_of_n", "n": 3}
NO = {"rule": "abstain", "tau": 99.0, "message": "No."}


def taste(text: str) -> float:
    return math.sin(sum(map(ord, text)) % 97)


def toy(read: list[str] | None = None) -> Toy:
    """A toy whose reward `taste` notes what it reads."""

    def noted(text: str) -> float:
        if read is not None:
            read.append(text)
        return taste(text)

    engine = Toy(TABLE, rewards={"taste": noted, "size": lambda text: float(len(text))})
    engine.add_lm("arm", random_table(VOCAB, scale=4.0))
    return engine


def test_rewards_are_compared_with_the_bases_own_answers() -> None:
    read: list[str] = []
    reward = {"guide": "taste", "transform": "quantile", "samples": 4}
    result = toy(read).run(PROMPT, SAMPLED, decoding={**BEST, "reward": reward})
    base, answers = read[:4], read[4:]
    assert answers == [each.text for each in result.candidates]
    for each in result.candidates:
        beaten = [1.0 if taste(each.text) > taste(b) else 0.5 if taste(each.text) == taste(b) else 0.0 for b in base]
        assert each.reward == pytest.approx(sum(beaten) / 4)
        assert each.rewards == {"taste": taste(each.text)}
        assert each.terms == {"taste": each.reward}
    tokens = result.usage.model_tokens["base"]
    assert tokens == len(PROMPT) - 1 + 7 * LENGTH, "the comparison is paid for"


def test_the_base_is_compared_with_as_it_is_whatever_steers_the_search() -> None:
    reward = {"guide": "taste", "transform": "standardise", "samples": 3}
    plain: list[str] = []
    steered: list[str] = []
    toy(plain).run(PROMPT, SAMPLED, decoding={**BEST, "reward": reward})
    steer = [{"method": "genarm", "arm": "arm", "alpha": 3.0}]
    toy(steered).run(PROMPT, SAMPLED, decoding={**BEST, "reward": reward, "steer": steer})
    assert plain[:3] == steered[:3]
    assert plain[3:] != steered[3:]


def test_several_rewards_weigh_as_the_request_says() -> None:
    reward = {"sum": ["taste", {"guide": "size", "weight": -0.5}]}
    result = toy().run(PROMPT, SAMPLED, decoding={**BEST, "reward": reward})
    for each in result.candidates:
        assert each.reward == pytest.approx(taste(each.text) - 0.5 * len(each.text))


def test_a_refusal_is_said_in_the_place_of_every_choice_and_nothing_before() -> None:
    engine = toy()
    handle = engine.submit(PROMPT, SAMPLED, n=2, decoding={**BEST, "reward": "taste", "select": NO})
    engine.finish()
    result = engine.result(handle)
    assert [choice.text for choice in result.choices] == ["No.", "No."]
    assert result.stopped_by == "abstained"
    assert all(each.choice is None for each in result.candidates)
    assert {delta.text for delta in engine.deltas(handle)} == {"No."}


@pytest.mark.parametrize("tau", [-99.0, 99.0])
def test_a_search_that_makes_one_answer_may_refuse_it(tau: float) -> None:
    """It streams nothing before that is known."""
    decoding = {"strategy": "cd_blockwise", "k": 2, "block": 2, "value": "taste"}
    engine = toy()
    handle = engine.submit(PROMPT, SAMPLED, decoding={**decoding, "select": {**NO, "tau": tau}})
    engine.finish()
    result, free = engine.result(handle), toy().run(PROMPT, SAMPLED, decoding=decoding)
    assert result.choices[0].text == ("No." if tau > 0 else free.choices[0].text)
    assert [delta.text for delta in engine.deltas(handle)] == [result.choices[0].text]


def ended(monkeypatch: pytest.MonkeyPatch, decoding: dict[str, Any], due: Callable[[Toy], bool]) -> Result:
    """The result of a request whose time is up when `due`."""
    engine = toy()
    handle = engine.submit(PROMPT, SAMPLED, decoding={**decoding, "budget": {"deadline_ms": 3_600_000}})
    monkeypatch.setattr(Job, "overspent", property(lambda job: "deadline_ms" if due(engine) else None))
    engine.finish()
    return engine.result(handle)


@pytest.mark.parametrize(("steps", "text"), [(3, "No."), (LENGTH, "No.")])
def test_a_rule_that_may_refuse_refuses_when_time_is_up(steps: int, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unfinished answers, because nobody knows their worth, and finished ones below the threshold."""
    decoding = {**BEST, "reward": "taste", "select": NO}
    result = ended(monkeypatch, decoding, lambda engine: engine.stats.steps >= steps)
    assert result.choices[0].text == text


def test_of_unfinished_answers_the_best_so_far_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    result = ended(monkeypatch, {**BEST, "reward": "taste"}, lambda engine: engine.stats.steps >= 3)
    assert result.stopped_by == "deadline_ms"
    assert len(result.choices[0].token_ids) == 3
    assert taste(result.choices[0].text) == max(taste(each.text) for each in result.candidates)


@pytest.mark.parametrize("finished", [1, 2])
def test_what_was_sent_of_each_choice_stands(finished: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever is better: choices that were made one after the other keep their places."""
    decoding = {
        "strategy": "cards", "reward": "turn", "target": -99.0, "hard": True, "min_segment": 1, "max_segment": 2,
        "parallel": 1, "budget": {"deadline_ms": 3_600_000},
    }  # fmt: skip

    def due(job: Job) -> str | None:
        ended = [each for each in job.prompt.family if each.finish is not None]
        going = [each for each in job.prompt.family if each.finish is None and each.generated > 2]
        return "deadline_ms" if len(ended) == finished and (finished == 2 or going) else None

    for sign in (1.0, -1.0):
        turns = count()
        engine = Toy(TABLE, rewards={"turn": lambda text, s=sign, t=turns: s * next(t)})  # type: ignore[misc]
        handle = engine.submit(PROMPT, SAMPLED, n=2, decoding=decoding)
        monkeypatch.setattr(Job, "overspent", property(due))
        engine.finish()
        result = engine.result(handle)
        for index, choice in enumerate(result.choices):
            sent = "".join(delta.text for delta in engine.deltas(handle) if delta.choice == index)
            assert sent == choice.text
            assert len(choice.token_ids) == LENGTH if index + 1 <= finished else 2 < len(choice.token_ids) < LENGTH


def test_finished_answers_go_before_better_ones_that_are_not() -> None:
    """The first to finish is taken, whatever the others promise."""
    engine = Toy(random_table(VOCAB, scale=1.0), rewards={"size": lambda text: float(len(text))}, eos=7)
    for seed in range(20):
        sampling = SamplingParams(seed=seed, max_tokens=30)
        free = engine.run(PROMPT, sampling, decoding={"strategy": "best_of_n", "n": 4, "reward": "size"})
        shortest = min(free.candidates, key=lambda each: each.tokens)
        spent = len(PROMPT) - 1 + 4 * shortest.tokens + 4
        if sum(each.tokens <= shortest.tokens + 2 for each in free.candidates) > 1:
            continue
        decoding = {"strategy": "best_of_n", "n": 4, "reward": "size", "budget": {"max_model_tokens": spent}}
        early = engine.run(PROMPT, sampling, decoding=decoding)
        assert early.choices[0].text == shortest.text
        assert early.choices[0].finish_reason == "stop"
        return
    raise AssertionError("no seed with one short answer")


def test_a_reward_that_is_enough_ends_the_search() -> None:
    engine = Toy(random_table(VOCAB, scale=1.0), rewards={"taste": taste}, eos=7)
    sampling = SamplingParams(seed=2, max_tokens=30)
    decoding = {"strategy": "best_of_n", "n": 6, "reward": "taste"}
    free = engine.run(PROMPT, sampling, decoding=decoding)
    first = min(free.candidates, key=lambda each: each.tokens)
    assert first.reward is not None
    early = engine.run(PROMPT, sampling, decoding={**decoding, "budget": {"reward_at_least": first.reward - 1e-9}})
    assert early.stopped_by == "reward_at_least"
    assert early.choices[0].text == first.text
    assert sum(early.usage.model_tokens.values()) < sum(free.usage.model_tokens.values())
    never = engine.run(PROMPT, sampling, decoding={**decoding, "budget": {"reward_at_least": 99.0}})
    assert never.stopped_by == "finished"
    assert never.choices == free.choices
