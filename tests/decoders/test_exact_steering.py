"""Laws of whole steered answers against enumerations in float64.

With the exact autoregressive reward model GenARM, and with the exact soft value Controlled Decoding, draw from
pi*(y) ~ pi(y) exp(r(y) / beta), the optimum of reward against KL.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from toy import Toy, random_table
from zoo import LMS, PROMPT, Array, log_softmax

from trimtab.engine.sampling import SamplingParams
from trimtab.engine.settings import EngineSettings

V, EOS, LONGEST = 4, 3, 3  # three letters; an answer ends with EOS or with its third token
BETA, ALPHA = 0.4, 0.5
TABLE = random_table(V)
Prefix = tuple[int, ...]


def over(answer: Prefix) -> bool:
    return len(answer) == LONGEST or answer[-1:] == (EOS,)


@cache
def reward(answer: Prefix) -> float:
    """Of a finished answer, one that ends with EOS too."""
    return float(np.random.default_rng([7, *answer]).normal() * 0.6)


@cache
def base(answer: Prefix) -> Array:
    return log_softmax(TABLE([*PROMPT, *answer]))


@cache
def soft_value(answer: Prefix) -> float:
    """beta * log E exp(r / beta) over the base's ways to go on."""
    if over(answer):
        return reward(answer)
    return BETA * math.log(sum(math.exp(base(answer)[v] + soft_value((*answer, v)) / BETA) for v in range(V)))


def next_values(prefix: Sequence[int]) -> Array:
    answer = tuple(prefix[len(PROMPT) :])
    return np.zeros(V) if over(answer) else np.array([soft_value((*answer, v)) for v in range(V)])


def answers(step: Callable[[Prefix], Array], answer: Prefix = (), logprob: float = 0.0) -> dict[Prefix, float]:
    """Probability of every answer whose next token has the log-probabilities `step`."""
    if over(answer):
        return {answer: math.exp(logprob)}
    law: dict[Prefix, float] = {}
    for token, each in enumerate(step(answer)):
        if each > -np.inf:
            law |= answers(step, (*answer, token), logprob + float(each))
    return law


def tilted() -> dict[Prefix, float]:
    """pi(y) exp(r(y) / beta) / Z, by its definition."""
    weights = {y: p * math.exp(reward(y) / BETA) for y, p in answers(base).items()}
    total = math.fsum(weights.values())
    return {y: weight / total for y, weight in weights.items()}


def experts(weights: Mapping[str, float], power: float) -> Callable[[Prefix], Array]:
    """Their product, or power mean, normalised at every step."""

    def step(answer: Prefix) -> Array:
        logprobs = {name: log_softmax(table([*PROMPT, *answer])[:V]) for name, table in LMS.items()}
        logprobs["base"] = base(answer)
        if power == 0.0:
            return log_softmax(sum(w * logprobs[name] for name, w in weights.items()))
        mean = sum(w * np.exp(-power * logprobs[name]) for name, w in weights.items())
        return log_softmax(-np.log(mean) / power)

    return step


def vas(answer: Prefix) -> Array:
    """Three candidates share their mass by value; the fourth token keeps what its logit gives it."""
    values = next_values([*PROMPT, *answer])
    best = np.argsort(-base(answer))[:3]
    scores = base(answer).copy()
    scores[best] += 2.0 * (values[best] - values[best].mean())
    return log_softmax(scores)


WEIGHTS = {"a": 0.5, "b": 0.2, "base": 0.3}
LAWS: dict[str, tuple[dict[str, Any], Callable[[], dict[Prefix, float]]]] = {
    "genarm": ({"strategy": "genarm", "arm": "arm", "alpha": ALPHA}, tilted),
    "cd with a head": ({"strategy": "cd", "value": "head", "lam": 1 / BETA}, tilted),
    "cd with a scorer": ({"strategy": "cd", "value": "scorer", "lam": 1 / BETA}, tilted),
    "args of the soft value": ({"strategy": "args", "reward": "scorer", "w": 1 / BETA}, tilted),
    "vas of all tokens": ({"strategy": "vas", "value": "scorer", "beta": 1 / BETA}, tilted),
    "vas": ({"strategy": "vas", "value": "scorer", "beta": 2.0, "k": 3}, lambda: answers(vas)),
    "mod": ({"strategy": "mod", "weights": WEIGHTS}, lambda: answers(experts(WEIGHTS, 0.0))),
    "mod forward KL": ({"strategy": "mod", "weights": WEIGHTS, "alpha": 1.0}, lambda: answers(experts(WEIGHTS, 1.0))),
    "mod alpha": ({"strategy": "mod", "weights": WEIGHTS, "alpha": 0.3}, lambda: answers(experts(WEIGHTS, 0.3))),
}


def toy(**options: Any) -> Toy:
    made = Toy(TABLE, features=next_values, eos=EOS, **options)
    made.add_lm("arm", lambda prefix: next_values(prefix) / (BETA * ALPHA))
    made.add_head("head")
    made.add_scorer("scorer", lambda prefix: soft_value(tuple(prefix[len(PROMPT) :])))
    for name, table in LMS.items():
        made.add_lm(name, lambda prefix, table=table: table(prefix)[:V])
    return made


def distance(one: Mapping[Prefix, float], other: Mapping[Prefix, float]) -> float:
    """Total variation."""
    return 0.5 * math.fsum(abs(one.get(y, 0.0) - other.get(y, 0.0)) for y in one.keys() | other.keys())


@pytest.mark.parametrize(("decoding", "law"), LAWS.values(), ids=LAWS)
def test_the_law_of_whole_answers_is_exact(decoding: dict[str, Any], law: Callable[[], dict[Prefix, float]]) -> None:
    made = toy()
    open_ends = {y[:i] for y in answers(base) for i in range(len(y))}
    once = SamplingParams(seed=0, max_tokens=1)
    handles = {h: made.submit([*PROMPT, *h], once, decoding=decoding | {"trace": "tokens"}) for h in open_ends}
    made.finish()
    steps: dict[Prefix, Array] = {}
    for answer, handle in handles.items():
        trace = made.result(handle).choices[0].trace
        assert trace is not None
        steps[answer] = np.array([dict(trace[0].top_steered)[v] for v in range(V)])
    got, expected = answers(steps.__getitem__), law()
    assert got.keys() == expected.keys()
    off = distance(got, expected)
    assert off < 1e-5, f"total variation distance {off:.2g}; of the base {distance(answers(base), expected):.2g}"
    assert distance(answers(base), expected) > 0.02, "the law is that of the base: the test shows nothing"


DRAWS, BATCH = 20_000, 4_000


@pytest.mark.parametrize("name", ["genarm", "cd with a head"])
def test_answers_are_drawn_from_the_tilted_law(name: str) -> None:
    decoding, law = LAWS[name]
    made = toy(settings=EngineSettings(max_rows=BATCH, guides={}), pages=3 * BATCH)
    count: Counter[Prefix] = Counter()
    for seed in range(DRAWS // BATCH):
        result = made.run(PROMPT, SamplingParams(seed=seed, max_tokens=LONGEST), n=BATCH, decoding=decoding)
        count.update(choice.token_ids for choice in result.choices)
    expected = law()
    squares = [(count[y] - DRAWS * p) ** 2 / (DRAWS * p) for y, p in expected.items() if DRAWS * p >= 5]
    rare = [y for y, p in expected.items() if DRAWS * p < 5]
    if mass := math.fsum(expected[y] for y in rare):
        squares.append((sum(count[y] for y in rare) - DRAWS * mass) ** 2 / (DRAWS * mass))
    freedom = len(squares) - 1
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3  # 99.9 %, Wilson and Hilferty
    off = distance({y: c / DRAWS for y, c in count.items()}, expected)
    assert sum(squares) < limit, f"chi-square {sum(squares):.0f} of {freedom}, total variation distance {off:.3f}"
