"""DeAL against the algorithm written down again in float64, without caches."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from toy import Toy, byte_tokenizer, random_table

from trimtab.decoders.constraints import Constraint
from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.errors import GuideError, InvalidRequest
from trimtab.engine.results import Failure, Result
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.vocabulary import Vocabulary

VOCAB, LENGTH, PROMPT = 8, 5, [1, 5, 2]
PROMPTS = [PROMPT, [4], [2, 7]]
TABLE = random_table(VOCAB, scale=1.0)
GREEDY = SamplingParams(temperature=0.0, max_tokens=LENGTH, seed=1)
WORDS = Vocabulary(byte_tokenizer())
State = tuple[int, ...]
Score = Callable[[str], float]


def noise(name: str) -> Score:
    """A reward drawn once per text."""

    @cache
    def reward(text: str) -> float:
        return float(np.random.default_rng([*name.encode(), 0, *text.encode()]).normal())

    return reward


TASTE, OTHER = noise("taste"), noise("other")


@cache
def logits(tokens: State) -> np.ndarray:
    return TABLE(tokens)


def deal(**changes: object) -> dict[str, object]:
    return {"strategy": "deal", "reward": "taste", "k": 3, "beams": 3, "lookahead": 2, **changes}


def toy(**options: Any) -> Toy:
    return Toy(TABLE, **{"rewards": {"taste": TASTE, "other": OTHER}, **options})


def restated(
    *,
    reward: Score = TASTE,
    k: int = 3,
    beams: int = 3,
    lookahead: int = 2,
    lam: float = 1.0,
    eos: int | None = None,
    stop: str | None = None,
    length: int = LENGTH,
    prompt: list[int] = PROMPT,
) -> list[tuple[float, float, State]]:
    """The last frontier, best first: score, log P and answer."""

    def ended(state: State) -> bool:
        text = WORDS.decode(state)
        return len(state) >= length or state[-1:] == (eos,) or (stop is not None and stop in text)

    def heuristic(state: State) -> float:
        for _ in range(lookahead):
            if not ended(state):
                state = (*state, int(logits((*prompt, *state)).argmax()))
        text = WORDS.decode([token for token in state if token != eos])
        return reward(text if stop is None else text.split(stop)[0])

    frontier: list[tuple[float, float, State]] = [(0.0, 0.0, ())]
    while not all(ended(state) for *_, state in frontier):
        offers = []
        for score, logprob, state in frontier:
            if ended(state):
                offers.append((score, logprob, state))
                continue
            z = logits((*prompt, *state))
            best = np.argsort(-z, kind="stable")[:k].tolist()
            mass = sum(math.exp(z[token]) for token in best)
            for token in best:
                total = logprob + z[token] - math.log(mass)
                offers.append((total + lam * heuristic((*state, token)), total, (*state, token)))
        frontier = sorted(offers, reverse=True)[:beams]
    return frontier


def submit(engine: Toy, sampling: SamplingParams = GREEDY, **changes: object) -> list[Result]:
    """All prompts, side by side."""
    handles = [engine.submit(prompt, sampling, decoding=deal(**changes)) for prompt in PROMPTS]
    engine.finish()
    return [engine.result(handle) for handle in handles]


def ids(engine: Toy, sampling: SamplingParams = GREEDY, **changes: object) -> list[int]:
    return list(engine.run(PROMPT, sampling, decoding=deal(**changes)).choices[0].token_ids)


@pytest.mark.parametrize("lookahead", [0, 1, 3, 20])
@pytest.mark.parametrize(("beams", "k"), [(1, 1), (1, 4), (3, 2), (4, 8), (20, 12)])
@pytest.mark.parametrize("lam", [0.5, 4.0])
def test_the_frontier_is_that_of_the_definition(lam: float, beams: int, k: int, lookahead: int) -> None:
    how: dict[str, Any] = {"lam": lam, "beams": beams, "k": k, "lookahead": lookahead}
    for prompt, result in zip(PROMPTS, submit(toy(), **how), strict=True):
        expected = restated(prompt=prompt, **how)
        assert result.choices[0].token_ids == expected[0][2]
        assert [each.text for each in result.candidates] == [WORDS.decode(state) for *_, state in expected]
        assert [each.reward for each in result.candidates] == pytest.approx([score for score, *_ in expected], abs=1e-4)
        assert result.report["logprobs"] == pytest.approx([logprob for _, logprob, _ in expected], abs=1e-4)
        assert [each.rewards["taste"] for each in result.candidates] == [TASTE(each.text) for each in result.candidates]


@pytest.mark.parametrize("eos", range(VOCAB))
def test_answers_that_have_ended_compete(eos: int) -> None:
    for lam in (0.0, 1.5):
        expected = restated(eos=eos, lam=lam)
        result = toy(eos=eos).run(PROMPT, GREEDY, decoding=deal(lam=lam))
        assert result.choices[0].token_ids == expected[0][2]
        ends = ["stop" if state[-1] == eos else "length" for *_, state in expected]
        assert [each.finish_reason for each in result.candidates] == ends


@pytest.mark.parametrize("stop", [WORDS.decode([token]) for token in range(VOCAB)])
def test_a_stop_string_is_an_end(stop: str) -> None:
    sampling = GREEDY.model_copy(update={"stop": (stop,)})
    assert ids(toy(), sampling) == list(restated(stop=stop)[0][2])


def test_without_weight_it_finds_the_most_likely_answer() -> None:
    """With a beam for every answer, beam search is exhaustive."""
    table, size, length = random_table(4), 4, 3

    def logprob(answer: State) -> float:
        rows = [table([*PROMPT, *answer[:step]]) for step in range(length)]
        return float(sum(z[token] - np.log(np.exp(z).sum()) for z, token in zip(rows, answer, strict=True)))

    best = max(product(range(size), repeat=length), key=logprob)
    engine = Toy(table, rewards={"taste": lambda text: math.nan})
    sampling = GREEDY.model_copy(update={"max_tokens": length})
    result = engine.run(PROMPT, sampling, decoding=deal(lam=0.0, beams=64, k=4, lookahead=0))
    assert result.choices[0].token_ids == best
    assert result.candidates[0].reward == pytest.approx(logprob(best), abs=1e-5)
    assert len(result.candidates) == 64


def test_one_beam_without_weight_is_greedy_at_any_temperature() -> None:
    plain = toy().run(PROMPT, GREEDY).choices[0].token_ids
    warm = SamplingParams(temperature=1.3, max_tokens=LENGTH, seed=9)
    assert ids(toy(), warm, lam=0.0, beams=1) == ids(toy(), beams=1, k=1) == list(plain)
    assert ids(toy(), warm) == ids(toy())


CONDITIONS = {"keywords": ["$"], "forbidden": ["("], "max_words": 1}


def test_a_constraint_is_met_where_a_beam_can_meet_it() -> None:
    """The toy says letters and spaces."""
    said = [WORDS.encode(letter)[0] for letter in "abcdefgh "]

    def table(prefix: Sequence[int]) -> np.ndarray:
        z = np.full(256, -np.inf)
        z[said] = np.random.default_rng(list(prefix)).normal(size=len(said))
        return z

    conditions = {"keywords": ["a", "B"], "forbidden": ["c"], "min_words": 3}
    engine = Toy(table)
    sampling = GREEDY.model_copy(update={"max_tokens": 8})
    how: dict[str, object] = {"strategy": "deal", "constraint": conditions, "lam": 30.0, "k": 9, "beams": 4}
    result = engine.run([1, 2], sampling, decoding=how)
    words = result.choices[0].text.split()
    assert {"a", "b"} <= set(words)
    assert "c" not in words
    assert len(words) >= 3
    greedy = engine.run([1, 2], sampling).choices[0].text
    assert Constraint.model_validate(conditions).satisfied(greedy) < 1.0
    assert result.candidates[0].reward == pytest.approx(result.report["logprobs"][0] + 30.0)
    assert result.candidates[0].rewards == {}


def test_answers_that_a_guide_fails_on_lose() -> None:
    first = WORDS.decode([int(TABLE(PROMPT).argmax())])
    engine = toy(rewards={"taste": lambda text: math.nan if text.startswith(first) else 0.0})
    assert not engine.run(PROMPT, GREEDY, decoding=deal()).choices[0].text.startswith(first)
    handle = (broken := toy(rewards={"taste": lambda text: math.nan})).submit(PROMPT, GREEDY, decoding=deal())
    broken.finish()
    end = broken.end(handle)
    assert isinstance(end, Failure)
    assert isinstance(end.error, GuideError)


def test_the_choices_are_the_best_beams() -> None:
    result = toy().run(PROMPT, GREEDY, n=3, decoding=deal())
    assert [choice.token_ids for choice in result.choices] == [state for *_, state in restated()]


@pytest.mark.parametrize("length", [0, 1])
def test_short_answers(length: int) -> None:
    sampling = GREEDY.model_copy(update={"max_tokens": length})
    assert ids(toy(), sampling) == list(restated(length=length)[0][2])
    many = toy().run(PROMPT, sampling, n=3, decoding=deal())
    assert len(many.choices) == 3
    assert len({choice.token_ids for choice in many.choices}) == (3 if length else 1)


def test_what_the_beams_share_is_sent_at_once() -> None:
    engine = toy()
    handle = engine.submit(PROMPT, GREEDY, decoding=deal(beams=2, lam=0.3))
    sent: list[int] = []
    while not engine.engine.idle:
        engine.engine.tick()
        sent.append(sum(len(delta.token_ids) for delta in engine.deltas(handle)))
    (choice,) = engine.result(handle).choices
    assert "".join(delta.text for delta in engine.deltas(handle)) == choice.text
    assert any(0 < count < LENGTH for count in sent)


@pytest.mark.parametrize(("pages", "page_size"), [(16, 2), (40, 1)])
def test_a_small_pool_changes_nothing(pages: int, page_size: int) -> None:
    engine = toy(pages=pages, page_size=page_size)
    handles = [engine.submit(PROMPT, GREEDY, decoding=deal()) for _ in range(2)]
    engine.finish()
    assert {engine.result(handle).choices[0].token_ids for handle in handles} == {restated()[0][2]}
    assert engine.stats.preemptions > 0


def test_beams_that_lose_and_looks_ahead_are_given_back() -> None:
    engine = toy(page_size=1)
    engine.submit(PROMPT, GREEDY, decoding=deal())
    held: list[int] = []
    while not engine.engine.idle:
        engine.engine.tick()
        held += [len(job.prompt.family) for job in engine.engine.scheduler.running]
    assert max(held) == 1 + 3 + 9
    assert min(held[-4:]) <= 1 + 3
    assert max(engine.runner.widths) == 9 == DecodingSpec.parse(deal()).program.rows(1)


def test_a_budget_ends_the_search() -> None:
    engine = toy(eos=3)
    result = engine.run(PROMPT, GREEDY, decoding=deal(budget={"reward_at_least": -50.0}))
    assert result.stopped_by == "reward_at_least"
    assert result.candidates[0].reward is not None
    short = toy().run(PROMPT, GREEDY, decoding=deal(budget={"max_model_tokens": 30}))
    assert short.stopped_by == "max_model_tokens"
    assert 0 < len(short.choices[0].token_ids) < LENGTH


@pytest.mark.parametrize(
    "change",
    [
        {"k": 2},
        {"beams": 1},
        {"lam": 0.1},
        {"lookahead": 0},
        {"reward": "other"},
        {"reward": None, "constraint": CONDITIONS},
    ],
)
def test_every_option_changes_something(change: dict[str, object]) -> None:
    told = [[result.choices[0].token_ids for result in submit(toy(), **each)] for each in (change, {})]
    assert told[0] != told[1]


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"reward": None}, "decoding", "give one of them"),
        ({"constraint": CONDITIONS}, "decoding", "give one of them"),
        ({"beams": 52, "k": 5}, "decoding", "may be 256"),
        ({"lam": -0.1}, "decoding.lam", "greater than or equal to 0"),
        ({"lookahead": 513}, "decoding.lookahead", "less than or equal to 512"),
        ({"reward": None, "constraint": {"keyword": ["a"]}}, "decoding.constraint.keyword", "mean 'keywords'"),
        ({"reward": "none"}, "decoding.reward", "no reward guide"),
    ],
)
def test_a_wrong_parameter_names_the_key(change: dict[str, object], param: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        DecodingSpec.parse(deal(**change)).check(choices=1, rewards=["taste", "other"])
    assert caught.value.param == param


def test_its_spec_survives_an_echo_and_bounds_the_choices() -> None:
    for change in ({}, {"reward": None, "constraint": CONDITIONS}):
        spec = DecodingSpec.parse(deal(**change))
        assert spec.temperature == 0.0
        assert DecodingSpec.parse(spec.dump()) == spec
    for change in ({}, {"k": 2}):
        spec, most = DecodingSpec.parse(deal(**change)), change.get("k", 3)
        spec.check(choices=most, rewards=["taste"])
        with pytest.raises(InvalidRequest, match=f"ends with {most} answers"):
            spec.check(choices=most + 1, rewards=["taste"])
