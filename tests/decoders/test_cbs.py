"""Chunk-level beam search against its restatement, and what it is at its limits."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from replay import Path, Replay, letter, noise
from toy import Toy, random_table

from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.results import Progress
from trimtab.engine.sampling import SamplingParams

VOCAB, EOS, PROMPT = 12, 7, [1, 5, 2, 9, 3]
TABLE = random_table(VOCAB)


def tuned(prefix: Sequence[int]) -> np.ndarray:
    return random_table(VOCAB)([*prefix, 99])


def untuned(prefix: Sequence[int]) -> np.ndarray:
    return random_table(VOCAB)([*prefix, 98])


def toy(value: Callable[[str], float] = noise, eos: int | None = EOS) -> Toy:
    rewards = {"value": value, "reward": lambda text: noise(text + "!")}
    engine = Toy(TABLE, rewards=rewards, eos=eos)
    engine.add_lm("tuned", tuned)
    engine.add_lm("untuned", untuned)
    return engine


def decoding(**fields: object) -> dict[str, object]:
    return {"strategy": "cbs", **fields}


def restated(
    replay: Replay, w: int, k: int, chunk: int, score: Callable[[Path], float]
) -> tuple[list[Path], list[Path], dict[str, int]]:
    """The answers that the search ends with, best first, all that were there in the last round, and the report."""
    candidates, told = replay.begin(w * k), dict.fromkeys(("rounds", "expanded", "kept", "finished_early"), 0)
    while True:
        grown = [each for each in candidates if not each.ended]
        for each in grown:
            replay.extend(each, chunk)
            each.value = score(each)
        order = sorted(candidates, key=lambda each: -each.value)
        beams = order[:w]
        over = all(each.ended for each in beams)
        told["rounds"] += 1
        told["expanded"] += len(grown)
        told["kept"] += sum(each.ended for each in candidates) if over else len(beams)
        told["finished_early"] += 0 if over else sum(each.ended for each in grown)
        if over:
            return [each for each in order if each.ended], candidates, told
        candidates = [each for beam in beams for each in ([beam] if beam.ended else [beam, *replay.fork(beam, k - 1)])]


def by_ratio(replay: Replay, other: Callable[[Sequence[int]], np.ndarray] = untuned) -> Callable[[Path], float]:
    return lambda path: sum(replay.logprobs(tuned, path)) - sum(replay.logprobs(other, path))


@pytest.mark.parametrize(("w", "k", "chunk", "length"), [(2, 3, 3, 10), (3, 2, 1, 6), (1, 4, 2, 7), (4, 1, 4, 9)])
@pytest.mark.parametrize("way", ["value", "models", "base"])
def test_beams_are_chosen_as_the_paper_has_it(way: str, w: int, k: int, chunk: int, length: int) -> None:
    fields: dict[str, object] = {"w": w, "k": k, "chunk": chunk}
    if way == "value":
        fields["value"] = "value"
    else:
        fields |= {"tuned": "tuned", "untuned": "untuned" if way == "models" else "base"}
    early = 0
    for seed in range(5):
        engine, replay = toy(), Replay(TABLE, PROMPT, seed, length, EOS)
        result = engine.run(PROMPT, SamplingParams(seed=seed, max_tokens=length), decoding=decoding(**fields))
        score = replay.judge if way == "value" else by_ratio(replay, TABLE if way == "base" else untuned)
        (best, *_), candidates, told = restated(replay, w, k, chunk, score)
        assert result.choices[0].token_ids == best.answer
        assert [each.tokens for each in result.candidates] == [len(each.answer) for each in candidates]
        assert [each.value for each in result.candidates] == pytest.approx(
            [each.value for each in candidates], abs=1e-4
        )
        assert result.report == told
        early += told["finished_early"]
    assert early, "no seed ends an answer before the search does"


def test_one_chunk_for_all_is_best_of_n() -> None:
    for seed in range(5):
        engine, sampling = toy(), SamplingParams(seed=seed, max_tokens=8)
        searched = engine.run(PROMPT, sampling, n=3, decoding=decoding(w=3, k=4, chunk=8, value="value"))
        best = engine.run(PROMPT, sampling, n=3, decoding={"strategy": "best_of_n", "n": 12, "reward": "value"})
        assert [each.token_ids for each in searched.choices] == [each.token_ids for each in best.choices]
        assert [each.text for each in searched.candidates] == [each.text for each in best.candidates]
        assert [each.reward for each in searched.candidates] == [each.reward for each in best.candidates]


def test_models_that_agree_leave_plain_sampling() -> None:
    engine, sampling = toy(), SamplingParams(seed=5, max_tokens=9)
    searched = engine.run(PROMPT, sampling, decoding=decoding(tuned="tuned", untuned="tuned", chunk=2))
    assert searched.choices[0].token_ids == engine.run(PROMPT, sampling).choices[0].token_ids


def test_the_reward_picks_among_the_last_answers() -> None:
    other = 0
    for seed in range(5):
        replay = Replay(TABLE, PROMPT, seed, 8, EOS)
        sampling = SamplingParams(seed=seed, max_tokens=8)
        scored = decoding(w=2, k=3, chunk=3, tuned="tuned", untuned="untuned", reward="reward")
        result = toy().run(PROMPT, sampling, n=2, decoding=scored)
        pool, *_ = restated(replay, 2, 3, 3, by_ratio(replay))
        ranked = sorted(pool, key=lambda each: -replay.judge(each, lambda text: noise(text + "!")))
        assert [each.token_ids for each in result.choices] == [each.answer for each in ranked[:2]]
        other += ranked[0] is not pool[0]
    assert other


def test_what_the_tuned_model_rules_out_loses() -> None:
    """Log-probabilities of -inf count: under one model as they are, under both as a loss."""

    def forbidding(prefix: Sequence[int]) -> np.ndarray:
        return np.where(np.arange(VOCAB) == 4, -np.inf, tuned(prefix))

    for untold in ("untuned", "forbidding"):
        for seed in range(5):
            engine = toy(eos=None)
            engine.add_lm("forbidding", forbidding)
            scored = decoding(w=2, k=4, chunk=2, tuned="forbidding", untuned=untold)
            result = engine.run(PROMPT, SamplingParams(seed=seed, max_tokens=6), decoding=scored)
            clean = [letter(4) not in each.text for each in result.candidates]
            assert [each.value != -math.inf for each in result.candidates] == clean
            assert 4 not in result.choices[0].token_ids


def test_a_value_that_is_missing_loses_and_nothing_else_is_an_error() -> None:
    one = toy(lambda text: math.nan if noise(text) > 0.3 else noise(text))
    searched = one.run(PROMPT, SamplingParams(seed=2, max_tokens=6), decoding=decoding(chunk=2, value="value"))
    values = [each.value for each in searched.candidates]
    assert -math.inf in values
    assert max(values) == noise(searched.choices[0].text)
    all_of_them = toy(lambda text: math.nan)
    handle = all_of_them.submit(PROMPT, SamplingParams(seed=2, max_tokens=6), decoding=decoding(value="value"))
    all_of_them.finish()
    assert "'value': gave NaN for every" in str(all_of_them.end(handle).error)  # type: ignore[union-attr]


def test_everything_may_end_in_the_first_chunk() -> None:
    surely = np.where(np.arange(VOCAB) == EOS, 50.0, 0.0)
    engine = Toy(lambda prefix: surely, rewards={"value": noise}, eos=EOS)
    result = engine.run(PROMPT, SamplingParams(seed=1, max_tokens=8), decoding=decoding(value="value"))
    assert result.choices[0].token_ids == (EOS,)
    assert result.report == {"rounds": 1, "expanded": 16, "kept": 16, "finished_early": 0}


def test_a_stop_string_ends_a_beam() -> None:
    inside = 0
    for seed in range(5):
        sampling = SamplingParams(seed=seed, max_tokens=12, stop=(letter(3),))
        result = toy(eos=None).run(PROMPT, sampling, decoding=decoding(w=2, k=2, chunk=4, value="value"))
        replay = Replay(TABLE, PROMPT, seed, 12, stop=letter(3))
        (best, *_), *_ = restated(replay, 2, 2, 4, replay.judge)
        assert result.choices[0].token_ids == best.answer
        inside += len(best.answer) % 4 != 0
    assert inside, "no seed stops inside a chunk"


def test_every_token_is_read_once_and_what_is_not_kept_is_freed() -> None:
    engine = toy(eos=None)
    scored = decoding(w=3, k=3, chunk=4, tuned="tuned")
    handle = engine.submit(PROMPT, SamplingParams(seed=6, max_tokens=12), decoding=scored, progress=True)
    engine.finish()
    result = engine.result(handle)
    drawn = result.report["expanded"] * 4
    assert engine.runner.prefilled == len(PROMPT) - 1
    assert result.usage.model_tokens["base"] == len(PROMPT) - 1 + drawn
    assert result.usage.model_tokens["tuned"] <= len(PROMPT) + drawn
    held = [event.candidates for event in engine.events[handle] if isinstance(event, Progress)]
    assert max(held) == 9, "what is not kept gives its pages back"


def test_what_all_beams_begin_with_is_sent_as_soon_as_it_is_known() -> None:
    early = 0
    for seed in range(5):
        engine = toy(eos=None)
        sampling = SamplingParams(seed=seed, max_tokens=12)
        handle = engine.submit(PROMPT, sampling, decoding=decoding(w=2, k=4, chunk=2, value="value"))
        engine.finish()
        sent = [delta.text for delta in engine.deltas(handle)]
        assert "".join(sent) == engine.result(handle).choices[0].text
        early += len(sent) > 1
    assert early


def test_a_reward_that_is_enough_ends_the_search() -> None:
    cut = 0
    for seed in range(10):
        sampling = SamplingParams(seed=seed, max_tokens=12)
        limited = decoding(w=3, k=3, chunk=2, value="value", budget={"reward_at_least": 0.7})
        result = toy().run(PROMPT, sampling, decoding=limited)
        if result.stopped_by == "reward_at_least":
            assert noise(result.choices[0].text) >= 0.7
            cut += 1
        else:
            assert (
                result.choices
                == toy().run(PROMPT, sampling, decoding=decoding(w=3, k=3, chunk=2, value="value")).choices
            )
    assert cut


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({}, "give one of tuned and value"),
        ({"tuned": "tuned", "value": "value"}, "give one of tuned and value"),
        ({"value": "value", "w": 17}, "less than or equal to 16"),
    ],
)
def test_wrong_fields_name_the_fix(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        DecodingSpec.parse(decoding(**wrong))
    with pytest.raises(InvalidRequest, match="lower n"):
        DecodingSpec.parse(decoding(value="value")).check(choices=5, rewards={"value"})


def test_a_missing_model_is_named() -> None:
    with pytest.raises(InvalidRequest) as caught:
        toy().submit(PROMPT, decoding=decoding(tuned="tuned", untuned="absent"))
    assert caught.value.param == "decoding.untuned"
