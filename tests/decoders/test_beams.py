"""Beam search over steps and DVTS against their restatement, and what they are at their limits."""

import math
from collections.abc import Callable
from math import prod
from statistics import fmean

import numpy as np
import pytest
from replay import Path, Replay, letter, noise
from toy import Toy, random_table

from trimtab.decoders.registry import strategies
from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.results import Progress
from trimtab.engine.sampling import SamplingParams

VOCAB, EOS, PROMPT = 10, 7, [1, 5, 2, 9, 3]
TABLE = random_table(VOCAB)
SEPARATOR = letter(4)
AGGREGATES: dict[str, Callable[[list[float]], float]] = {
    "last": lambda scores: scores[-1],
    "min": min,
    "mean": fmean,
    "product": prod,
}


def reward(text: str) -> float:
    return noise(text + "!")


def toy(value: Callable[[str], float] = noise, eos: int | None = EOS) -> Toy:
    return Toy(TABLE, rewards={"value": value, "reward": reward}, eos=eos)


def decoding(strategy: str, **fields: object) -> dict[str, object]:
    return {"strategy": strategy, "value": "value", "separator": SEPARATOR, **fields}


def restated(
    replay: Replay,
    trees: int,
    n: int,
    m: int,
    *,
    steps: int = 40,
    step_tokens: int = 256,
    aggregate: str = "last",
    value: Callable[[str], float] = noise,
) -> tuple[list[Path], dict[str, int]]:
    """The answers that `trees` trees end with, and the report; every beam carries the scores of all its steps."""
    told = dict.fromkeys(("rounds", "expanded", "kept", "finished_early"), 0)
    drafts, scores = replay.begin(n), dict[Path, list[float]]()
    forest = [drafts[i * n // trees : (i + 1) * n // trees] for i in range(trees)]
    for step in range(1, steps + 1):
        grown = [each for tree in forest for each in tree if not each.ended]
        for each in grown:
            replay.extend(each, *((None, None) if step == steps else (step_tokens, SEPARATOR)))
            scores[each] = [*scores.get(each, []), replay.judge(each, value)]
            lost = aggregate != "last" and -math.inf in scores[each]
            each.value = -math.inf if lost else AGGREGATES[aggregate](scores[each])
        kept = []
        for tree in forest:
            beams = sorted(tree, key=lambda each: -each.value)[: n // trees // m]
            kept.append([each for each in tree if each.ended] if all(each.ended for each in beams) else beams)
        told["rounds"] += 1
        told["expanded"] += len(grown)
        told["kept"] += sum(map(len, kept))
        if all(each.ended for tree in kept for each in tree):
            return [each for tree in kept for each in tree], told
        told["finished_early"] += sum(each.ended for each in grown)
        forest = []
        for tree in kept:
            forest.append([])
            for beam in tree:
                children = [] if beam.ended else replay.fork(beam, m - 1)
                scores |= dict.fromkeys(children, scores[beam])
                forest[-1] += [beam, *children]
    raise AssertionError("the last step ends every beam")


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize(
    ("strategy", "n", "m", "options"),
    [
        ("beam_search", 4, 4, {}),
        ("beam_search", 6, 2, {"step_tokens": 2}),
        ("beam_search", 4, 2, {"steps": 2}),
        ("dvts", 6, 2, {"step_tokens": 3}),
        ("dvts", 6, 3, {"steps": 3}),
    ],
)
def test_beams_are_kept_as_the_paper_has_it(
    strategy: str, n: int, m: int, options: dict[str, int], aggregate: str
) -> None:
    trees = n // m if strategy == "dvts" else 1
    early = 0
    for seed in range(6):
        replay = Replay(TABLE, PROMPT, seed, 14, EOS)
        pool, told = restated(replay, trees, n, m, aggregate=aggregate, **options)  # type: ignore[arg-type]
        sampling = SamplingParams(seed=seed, max_tokens=14)
        result = toy().run(PROMPT, sampling, decoding=decoding(strategy, n=n, m=m, aggregate=aggregate, **options))
        ended = [each for each in result.candidates if each.reward is not None]
        assert [each.reward for each in ended] == pytest.approx([each.value for each in pool])
        assert result.choices[0].token_ids == max(pool, key=lambda each: each.value).answer
        assert result.report == told
        early += told["finished_early"]
    assert early, "no seed ends an answer before the search does"


@pytest.mark.parametrize("strategy", ["beam_search", "dvts"])
def test_m_1_is_best_of_n(strategy: str) -> None:
    for seed in range(5):
        engine, sampling = toy(), SamplingParams(seed=seed, max_tokens=10)
        searched = engine.run(PROMPT, sampling, n=3, decoding=decoding(strategy, n=6, m=1, step_tokens=3))
        best = engine.run(PROMPT, sampling, n=3, decoding={"strategy": "best_of_n", "n": 6, "reward": "value"})
        assert [each.token_ids for each in searched.choices] == [each.token_ids for each in best.choices]


def test_one_step_is_best_of_n() -> None:
    engine, sampling = toy(), SamplingParams(seed=2, max_tokens=10)
    searched = engine.run(PROMPT, sampling, n=3, decoding=decoding("beam_search", n=6, m=3, steps=1))
    best = engine.run(PROMPT, sampling, n=3, decoding={"strategy": "best_of_n", "n": 6, "reward": "value"})
    assert searched.choices == best.choices


def test_one_tree_is_beam_search_that_keeps_one_beam() -> None:
    for seed in range(5):
        engine, sampling = toy(), SamplingParams(seed=seed, max_tokens=10)
        tree, beams = (
            engine.run(PROMPT, sampling, decoding=decoding(each, n=4, m=4)) for each in ("dvts", "beam_search")
        )
        assert tree.choices == beams.choices
        assert tree.candidates == beams.candidates


def test_the_reward_picks_among_the_last_answers() -> None:
    other = 0
    for seed in range(5):
        pool, _ = restated(Replay(TABLE, PROMPT, seed, 10, EOS), 1, 6, 2)
        sampling = SamplingParams(seed=seed, max_tokens=10)
        result = toy().run(PROMPT, sampling, decoding=decoding("beam_search", n=6, m=2, reward="reward"))
        replay = Replay(TABLE, PROMPT, seed, 10, EOS)
        best = max(pool, key=lambda each: replay.judge(each, reward))
        assert result.choices[0].token_ids == best.answer
        other += best is not max(pool, key=lambda each: each.value)
    assert other


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_a_step_whose_score_is_missing_is_never_made_up_for(aggregate: str) -> None:
    """Where earlier steps count; scores of both signs, so that a product could turn a loss into a gain."""

    def known(text: str) -> float:
        return -math.inf if noise(text) > 0.8 else noise(text) - 0.4

    def failing(text: str) -> float:
        return math.nan if noise(text) > 0.8 else noise(text) - 0.4

    missing = 0
    for seed in range(6):
        replay = Replay(TABLE, PROMPT, seed, 10)
        pool, told = restated(replay, 1, 6, 2, step_tokens=2, aggregate=aggregate, value=known)
        sampling = SamplingParams(seed=seed, max_tokens=10)
        scored = decoding("beam_search", n=6, m=2, step_tokens=2, aggregate=aggregate)
        result = toy(failing, eos=None).run(PROMPT, sampling, decoding=scored)
        ended = [each for each in result.candidates if each.reward is not None]
        assert [each.value for each in ended] == pytest.approx([each.value for each in pool])
        assert result.choices[0].token_ids == max(pool, key=lambda each: each.value).answer
        assert result.report == told
        missing += sum(each.value == -math.inf for each in pool)
    assert missing


def test_nothing_but_failures_is_an_error() -> None:
    engine = toy(lambda text: math.nan)
    handle = engine.submit(PROMPT, SamplingParams(seed=1, max_tokens=8), decoding=decoding("beam_search"))
    engine.finish()
    assert "'value': gave NaN for every" in str(engine.end(handle).error)  # type: ignore[union-attr]


@pytest.mark.parametrize("strategy", ["beam_search", "dvts"])
def test_everything_may_end_in_the_first_step(strategy: str) -> None:
    surely = np.where(np.arange(VOCAB) == EOS, 50.0, 0.0)
    engine = Toy(lambda prefix: surely, rewards={"value": noise}, eos=EOS)
    result = engine.run(PROMPT, SamplingParams(seed=1, max_tokens=8), decoding=decoding(strategy, n=4, m=2))
    assert result.choices[0].token_ids == (EOS,)
    assert result.report == {"rounds": 1, "expanded": 4, "kept": 4, "finished_early": 0}


def test_equal_values_leave_plain_sampling() -> None:
    engine, sampling = toy(lambda text: 0.5), SamplingParams(seed=4, max_tokens=9)
    searched = engine.run(PROMPT, sampling, decoding=decoding("beam_search", n=6, m=2, step_tokens=2))
    assert searched.choices[0].token_ids == engine.run(PROMPT, sampling).choices[0].token_ids


def test_a_stop_string_ends_a_beam() -> None:
    stopped = 0
    for seed in range(5):
        sampling = SamplingParams(seed=seed, max_tokens=12, stop=(letter(3),))
        result = toy(eos=None).run(PROMPT, sampling, decoding=decoding("beam_search", n=4, m=2))
        replay = Replay(TABLE, PROMPT, seed, 12, stop=letter(3))
        pool, _ = restated(replay, 1, 4, 2)
        assert result.choices[0].token_ids == max(pool, key=lambda each: each.value).answer
        assert letter(3) not in result.choices[0].text
        stopped += result.choices[0].finish_reason == "stop"
    assert stopped


@pytest.mark.parametrize("strategy", ["beam_search", "dvts"])
def test_pages_are_shared_and_certain_text_is_sent(strategy: str) -> None:
    sent_early = 0
    for seed in range(6):
        engine = toy(eos=None)
        scored = decoding(strategy, n=4, m=4, step_tokens=3)
        handle = engine.submit(PROMPT, SamplingParams(seed=seed, max_tokens=12), decoding=scored, progress=True)
        engine.finish()
        held = [event.candidates for event in engine.events[handle] if isinstance(event, Progress)]
        assert max(held) == 4, "what is not kept gives its pages back"
        sent = [delta.text for delta in engine.deltas(handle)]
        assert "".join(sent) == engine.result(handle).choices[0].text
        assert engine.runner.prefilled == len(PROMPT) - 1
        sent_early += len(sent) > 3
    assert sent_early == 6, "one beam goes on from each step: its text is certain"


def test_a_value_that_is_enough_ends_the_search() -> None:
    stopped = 0
    for seed in range(10):
        sampling = SamplingParams(seed=seed, max_tokens=12)
        scored = decoding("beam_search", n=6, m=2, step_tokens=2)
        result = toy().run(PROMPT, sampling, decoding={**scored, "budget": {"reward_at_least": 0.7}})
        if result.stopped_by == "reward_at_least":
            assert noise(result.choices[0].text) >= 0.7
            stopped += 1
        else:
            assert result.choices == toy().run(PROMPT, sampling, decoding=scored).choices
    assert stopped


def test_beams_are_sampled_at_the_temperature_of_the_paper() -> None:
    assert strategies()["beam_search"].temperature == strategies()["dvts"].temperature == 0.8


@pytest.mark.parametrize("strategy", ["beam_search", "dvts"])
def test_wrong_fields_name_the_fix(strategy: str) -> None:
    with pytest.raises(InvalidRequest, match="make n a multiple of m"):
        DecodingSpec.parse(decoding(strategy, n=6, m=4))
    with pytest.raises(InvalidRequest, match="lower n"):
        DecodingSpec.parse(decoding(strategy, n=6, m=3)).check(choices=3, rewards={"value"})
