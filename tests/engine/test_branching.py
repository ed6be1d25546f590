"""Branching factors of answers: exp of the mean entropy of what was drawn from, against tables in float64."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from toy import Toy
from zoo import BASE, END, LMS, PROMPT, babble, zoo

from trimtab.engine.measure import Measure, summarise
from trimtab.engine.results import Choice, Steering
from trimtab.engine.sampling import SamplingParams

Array = np.ndarray
Scores = Callable[[Sequence[int]], Array]
TRACED = {"strategy": "sample", "trace": "tokens"}
GENARM = {"strategy": "genarm", "arm": "a", "alpha": 0.5}


def entropy(z: Array, temperature: float = 1.0, top_k: int = 0, min_p: float = 0.0) -> float:
    """Nats of the distribution that is left of scores, ties aside."""
    p = np.exp((z - z.max()).astype(np.float64) / temperature)
    p[p < min_p] = 0.0
    if top_k:
        p[np.argsort(-z)[top_k:]] = 0.0
    p = p[p > 0] / p.sum()
    return float(-(p * np.log(p)).sum())


def factor(table: Scores, choice: Choice, **shape: Any) -> float:
    """Of an answer that was drawn token by token from the scores of one table."""
    ids = choice.token_ids
    return math.exp(np.mean([entropy(table([*PROMPT, *ids[:at]]), **shape) for at in range(len(ids))]))


def drawn(length: int = 9, **changes: Any) -> SamplingParams:
    return SamplingParams.model_validate({"seed": 5, "max_tokens": length, "ignore_eos": True, **changes})


def summary(choice: Choice) -> Steering:
    assert choice.steering is not None
    return choice.steering


@pytest.mark.parametrize("shape", [{}, {"temperature": 0.6}, {"temperature": 1.7, "top_k": 3}, {"min_p": 0.3}])
def test_a_traced_answer_of_the_base_tells_what_it_chose_among(shape: dict[str, Any]) -> None:
    for choice in zoo().run(PROMPT, drawn(**shape), n=2, decoding=TRACED).choices:
        assert summary(choice).branching_factor == pytest.approx(factor(BASE, choice, **shape), rel=1e-5)
        assert summary(choice).branching_factor_base == pytest.approx(factor(BASE, choice), rel=1e-5)
    plain = zoo().run(PROMPT, drawn(**shape)).choices[0]
    assert plain.steering is None, "nothing steers and nothing was asked"


@pytest.mark.parametrize("trace", [{}, {"trace": "tokens"}])
def test_a_steered_answer_tells_both(trace: dict[str, Any]) -> None:
    """Two rows of other strategies beside it change nothing."""

    def mixed(prefix: Sequence[int]) -> Array:
        arm = LMS["a"](prefix)
        return np.asarray(BASE(prefix) + 0.5 * arm)

    toy = zoo()
    handle = toy.submit(PROMPT, drawn(temperature=0.8, top_k=4), n=2, decoding={**GENARM, **trace})
    toy.submit(PROMPT, drawn(), decoding={"strategy": "args", "reward": "rm", "k": 3})
    toy.submit(PROMPT, drawn(), decoding=TRACED)
    toy.finish()
    for choice in toy.result(handle).choices:
        steered, base = factor(mixed, choice, temperature=0.8, top_k=4), factor(BASE, choice)
        assert summary(choice).branching_factor == pytest.approx(steered, rel=1e-5)
        assert summary(choice).branching_factor_base == pytest.approx(base, rel=1e-5)
        assert steered != pytest.approx(base, rel=0.05)


def test_candidates_alone_can_be_drawn() -> None:
    decoding = {"strategy": "args", "reward": "rm", "k": 2}
    told = [
        summary(zoo().run(PROMPT, drawn(), decoding={**decoding, **trace}).choices[0])
        for trace in ({}, {"trace": "tokens"})
    ]
    assert told[0].branching_factor == pytest.approx(told[1].branching_factor, rel=1e-5)
    assert 1.0 < (told[0].branching_factor or 0.0) <= 2.0
    assert (told[0].branching_factor_base or 0.0) > 2.0


def test_a_greedy_answer_counts_at_temperature_one_without_filters() -> None:
    """As its trace and its log-probabilities do; a distribution that leaves one token has the factor 1."""
    greedy = zoo().run(PROMPT, drawn(temperature=0.0, top_k=1), decoding=TRACED).choices[0]
    assert summary(greedy).branching_factor == pytest.approx(factor(BASE, greedy), rel=1e-5)
    assert summary(greedy).branching_factor == pytest.approx(summary(greedy).branching_factor_base, rel=1e-5)
    assert [each.entropy for each in greedy.trace or ()] == pytest.approx(
        [each.entropy_base for each in greedy.trace or ()], abs=1e-5
    )
    sure = zoo().run(PROMPT, drawn(top_k=1), decoding=TRACED).choices[0]
    assert sure.token_ids == greedy.token_ids
    assert summary(sure).branching_factor == pytest.approx(1.0, abs=1e-6)
    assert summary(sure).branching_factor_base == pytest.approx(factor(BASE, greedy), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("trace", [{}, {"trace": "tokens"}])
def test_words_of_the_other_voice_are_left_out(temperature: float, trace: dict[str, Any]) -> None:
    table = babble(1)
    toy = Toy(table, eos=END)
    toy.add_lm("other", babble(2))
    decoding = {"strategy": "nudging", "gamma": 0.6, "aligned": "other"}
    sampling = SamplingParams(seed=1, max_tokens=40, ignore_eos=True, temperature=temperature)
    choice, known = (
        toy.run(PROMPT, sampling, decoding={**decoding, **each}).choices[0] for each in (trace, {"trace": "tokens"})
    )
    assert choice.token_ids == known.token_ids
    mine = [at for at, each in enumerate(known.trace or ()) if each.source == "base"]
    assert 0 < len(mine) < 40
    prefixes = [[*PROMPT, *choice.token_ids[:at]] for at in mine]
    steered = math.exp(np.mean([entropy(table(prefix), temperature or 1.0) for prefix in prefixes]))
    base = math.exp(np.mean([entropy(table(prefix)) for prefix in prefixes]))
    assert summary(choice).branching_factor == pytest.approx(steered, rel=1e-5)
    assert summary(choice).branching_factor_base == pytest.approx(base, rel=1e-5)


def test_the_mean_is_over_what_is_known() -> None:
    written = Measure(0.0, -2.0, 2.0, changed=True)
    known = [Measure(-1.0, -1.0, 0.0, False, base_entropy=each, entropy=2 * each) for each in (0.5, 1.5)]
    mixed = summarise([written, *known, written], against_base=True)
    assert mixed.branching_factor == pytest.approx(math.exp(2.0))
    assert mixed.branching_factor_base == pytest.approx(math.exp(1.0))
    assert summarise(known, against_base=False).branching_factor_base is None
    for nothing in ([], [written]):
        alone = summarise(nothing, against_base=True)
        assert (alone.branching_factor, alone.branching_factor_base) == (None, None)
