"""Every strategy's scores, token by token through the whole engine, against its formula restated in float64."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
from zoo import BASE, BLOCKS, EOS, HEADS, LMS, PROMPT, SCORERS, VECTORS, Array, V, log_softmax, positions, whole, zoo

from trimtab.decoders.registry import strategies
from trimtab.engine.grammar import Grammar
from trimtab.engine.results import Choice
from trimtab.engine.sampling import SamplingParams


def mean(logprobs: Array, values: Array) -> float:
    """Of what can be drawn."""
    drawn = logprobs > -np.inf
    return float(np.exp(logprobs[drawn]) @ values[drawn])


def log_sigmoid(x: Array) -> Array:
    return -np.log1p(np.exp(-x))


@dataclass(frozen=True)
class At:
    """One position of an answer: what a formula may ask for."""

    answer: list[int]
    edit: Callable[[list[int], Array], Array] | None = None
    """penalties, biases and bans"""

    def z(self, name: str = "base", prompt: Sequence[int] = PROMPT) -> Array:
        return (LMS | {"base": BASE})[name]([*prompt, *self.answer])

    def p(self, name: str = "base") -> Array:
        return np.exp(log_softmax(self.z(name)))

    def lp(self, name: str = "base", prompt: Sequence[int] = PROMPT) -> Array:
        """What a formula calls log-probabilities; edits find logits, since a repetition penalty knows their zero."""
        z = self.z(name, prompt)
        return z if self.edit else log_softmax(z)

    def edited(self, z: Array) -> Array:
        return self.edit(self.answer, z) if self.edit else z

    def values(self, name: str) -> Array:
        """Of every token as the last one."""
        if name in HEADS:
            return HEADS[name][0].astype("d") @ self.z()
        return np.array([SCORERS[name]([*PROMPT, *self.answer, token]) for token in range(V)])

    def candidates(self, top_k: int = V, top_p: float = 1.0, alpha: float = 0.0) -> Array:
        """Mask by the edited base distribution."""
        p = np.exp(log_softmax(self.edited(self.z())))
        rank = np.argsort(np.argsort(-p))
        above = np.array([p[p > each].sum() for each in p])
        return (rank < top_k) & (above < top_p) & (p >= alpha * p.max()) & (p > 0)

    def score(self, mixed: Array, gain: Array | float = 0.0, among: Array | None = None, others: bool = False) -> Array:
        """Mixture, edits, then the gain of the tokens `among`; `others` can be drawn as well, or not."""
        s = self.edited(mixed)
        among = np.full(V, True) if among is None else among
        return np.where(among, s + gain, s if others else -np.inf)


def ascended(z: Array, rate: float, steps: int) -> Array:
    """Gradient ascent of the head with the hidden layer; the hidden state of this toy is its logits."""
    inner, outer = (w.astype("d") for w in HEADS["h"])
    for _ in range(steps):
        z = z + rate * (outer[0] * (inner @ z > 0)) @ inner
    return z


def power_mean(p: At, weights: dict[str, float], a: float) -> Array:
    return np.log(sum(w * p.p(name) ** -a for name, w in weights.items())) / -a


Formula = Callable[[At], Array]
FORMULAS: dict[str, tuple[dict[str, Any], Formula]] = {
    "sample": ({}, lambda p: p.score(p.z())),
    "args": (
        {"reward": "rm", "w": 2.0, "k": 3},
        lambda p: p.score(p.z(), 2 * p.values("rm"), p.candidates(3)),
    ),
    "rad": (
        {"reward": "rm", "beta": 4.0, "k": 3},
        lambda p: p.score(p.z(), 4 * p.values("rm").clip(0, 1), p.candidates(3)),
    ),
    "fudge": (
        {"classifier": "v", "lam": 2.0, "k": 4},
        lambda p: p.score(p.z(), 2 * log_sigmoid(p.values("v")), p.candidates(4)),
    ),
    "cd head": (
        {"strategy": "cd", "value": "q", "lam": 0.7},
        lambda p: p.score(p.z(), 0.7 * p.values("q")),
    ),
    "cd head, k": (
        {"strategy": "cd", "value": "q", "lam": 0.7, "k": 2},
        lambda p: p.score(p.z(), 0.7 * p.values("q"), p.candidates(2)),
    ),
    "cd scorer": (
        {"strategy": "cd", "value": "v", "k": 3},
        lambda p: p.score(p.z(), p.values("v"), p.candidates(3)),
    ),
    "ivo": ({"value": "q"}, lambda p: p.score(p.z(), p.values("q"))),
    "vas": (
        {"value": "v", "beta": 2.0, "k": 3},
        lambda p: p.score(
            p.z(), 2 * (p.values("v") - p.values("v")[p.candidates(3)].mean()), p.candidates(3), others=True
        ),
    ),
    "vas in a nucleus": (
        {
            "strategy": "vas",
            "value": "v",
            "k": 4,
            "steer": [{"method": "candidates", "top_p": 0.7, "keep_others": True}],
        },
        lambda p: p.score(
            p.z(), 3 * (p.values("v") - p.values("v")[p.candidates(4, 0.7)].mean()), p.candidates(4, 0.7), others=True
        ),
    ),
    "genarm": ({"arm": "a", "alpha": 0.6}, lambda p: p.score(p.lp() + 0.6 * p.lp("a"))),
    "genarm arms": (
        {"strategy": "genarm", "arms": {"a": 0.6, "b": -0.3}, "alpha": 2.0},
        lambda p: p.score(p.lp() + 1.2 * p.lp("a") - 0.6 * p.lp("b")),
    ),
    "pad": (
        {"arm": "a", "w": 0.8, "k": 3},
        lambda p: p.score(0.2 * p.lp() + 0.8 * p.lp("a"), among=p.candidates(3)),
    ),
    "pad preference": (
        {"strategy": "pad", "arm": "a", "preference": "seven.."},
        lambda p: p.score(0.5 * p.lp() + 0.5 * p.lp("a", [7, *PROMPT[1:]])),
    ),
    "dera": ({"aligned": "a", "lam": 2.5}, lambda p: p.score(p.lp() + 2.5 * (p.lp("a") - p.lp()))),
    "dera reference": (
        {"strategy": "dera", "aligned": "a", "reference": "b", "lam": 2.5},
        lambda p: p.score(p.lp("b") + 2.5 * (p.lp("a") - p.lp("b"))),
    ),
    "mod": (
        {"weights": {"a": 0.5, "b": 0.3, "base": 0.2}},
        lambda p: p.score(0.5 * p.lp("a") + 0.3 * p.lp("b") + 0.2 * p.lp()),
    ),
    "mod forward KL": (
        {"strategy": "mod", "weights": {"a": 0.5, "b": 0.3, "base": 0.2}, "alpha": 1.0},
        lambda p: p.score(-np.log(0.5 / p.p("a") + 0.3 / p.p("b") + 0.2 / p.p())),
    ),
    "mod alpha": (
        {"strategy": "mod", "weights": {"a": 0.6, "b": 0.4}, "alpha": -0.5},
        lambda p: p.score(power_mean(p, {"a": 0.6, "b": 0.4}, -0.5)),
    ),
    "proxy_tuning": (
        {"expert": "a", "antiexpert": "b", "alpha": 1.3},
        lambda p: p.score(p.z() + 1.3 * (p.z("a") - p.z("b"))),
    ),
    "dexperts": (
        {"expert": "a", "antiexpert": "b", "p": 0.7},
        lambda p: p.score(p.z() + 2 * (p.z("a") - p.z("b")), among=p.candidates(top_p=0.7)),
    ),
    "eft": ({"tuned": "a", "w": 1.5}, lambda p: p.score(p.z() + 1.5 * (p.z("a") - p.z()))),
    "eft reference": (
        {"strategy": "eft", "tuned": "a", "reference": "b"},
        lambda p: p.score(p.z() + p.z("a") - p.z("b")),
    ),
    "ivl": ({"value": "a"}, lambda p: p.score(p.z() + p.z("a"))),
    "contrastive": (
        {"amateur": "a", "alpha": 0.3, "beta": 0.8},
        lambda p: p.score(1.8 * p.lp() - 0.8 * p.lp("a"), among=p.candidates(alpha=0.3)),
    ),
    "contrastive, no prompt": (
        {"strategy": "contrastive", "amateur": "base", "amateur_sees_prompt": False},
        lambda p: p.score(1.5 * p.lp() - 0.5 * p.lp("base", [0]), among=p.candidates(alpha=0.1)),
    ),
    "cfg": ({"gamma": 1.7}, lambda p: p.score(p.lp("base", PROMPT[1:]) + 1.7 * (p.lp() - p.lp("base", PROMPT[1:])))),
    "cfg negative": (
        {"strategy": "cfg", "gamma": 1.7, "negative_prompt": "eightish"},
        lambda p: p.score(p.lp("base", [8, *PROMPT[1:]]) + 1.7 * (p.lp() - p.lp("base", [8, *PROMPT[1:]]))),
    ),
    "re_control": ({"value": "h", "lr": 0.05, "n": 4}, lambda p: p.score(ascended(p.z(), 0.05, 4))),
    "control_vector": (
        {"vector": "c", "coeff": -0.5, "measure_kl": True},
        lambda p: p.score(p.z() - 0.5 * VECTORS["c"]),
    ),
    "panacea": (
        {"guide": "p", "preference": {"x": 3.0, "y": 1.0}, "strength": 0.7, "measure_kl": True},
        lambda p: p.score(p.z() + 0.7 * np.array([1.0, 0.75, 0.25]) @ BLOCKS["p"]),
    ),
    "mixture": (
        {"weights": {"base": -0.4, "a": 1.1, "b": 0.2}},
        lambda p: p.score(-0.4 * p.z() + 1.1 * p.z("a") + 0.2 * p.z("b")),
    ),
    "candidates": (
        {"top_k": 4, "top_p": 0.8, "alpha": 0.1},
        lambda p: p.score(p.z(), among=p.candidates(4, 0.8, 0.1)),
    ),
    "value": (
        {"guide": "q", "weight": 1.5, "transform": "centre"},
        lambda p: p.score(p.z(), 1.5 * (p.values("q") - p.values("q").mean())),
    ),
    "value among likely tokens": (
        {
            "strategy": "value",
            "guide": "q",
            "transform": "centre",
            "steer": [{"method": "candidates", "alpha": 0.2, "keep_others": True}],
        },
        lambda p: p.score(
            p.z(),
            p.values("q") - p.values("q")[p.candidates(alpha=0.2)].mean(),
            p.candidates(alpha=0.2),
            others=True,
        ),
    ),
    "composed": (
        {
            "strategy": "genarm",
            "arm": "a",
            "alpha": 0.5,
            "steer": [
                {"method": "args", "reward": "rm", "k": 4},
                {"method": "value", "guide": "q", "transform": "log_sigmoid"},
                {"method": "dera", "aligned": "b", "lam": 0.4},
                {"method": "candidates", "top_p": 0.95},
            ],
        },
        lambda p: p.score(
            0.6 * p.lp() + 0.5 * p.lp("a") + 0.4 * p.lp("b"),
            1.5 * p.values("rm") + log_sigmoid(p.values("q")),
            p.candidates(4, 0.95),
        ),
    ),
}
SPOKEN = {"nudging", "wsd"}  # two models take turns: no formula of scores
SEEDS = range(3)
EDITED = {
    "repetition_penalty": 1.4,
    "presence_penalty": 0.3,
    "frequency_penalty": -0.2,
    "logit_bias": {0: 0.8, 2: -0.6},
    "min_tokens": 3,
}


def edited(answer: list[int], z: Array) -> Array:
    """`EDITED`, written out."""
    z = z.copy()
    for token in {*PROMPT, *answer} & set(range(V)):
        z[token] = z[token] / 1.4 if z[token] > 0 else z[token] * 1.4
    for token in set(answer):
        z[token] += 0.2 * answer.count(token) - 0.3
    z[0] += 0.8
    z[2] -= 0.6
    if len(answer) < 3:
        z[EOS] = -np.inf
    return z


def decoding(name: str) -> dict[str, Any]:
    return {"strategy": name, **FORMULAS[name][0]}


GRAMMAR = Grammar.regex(r'(!|"#)+\$?')


def constrained(answer: list[int], z: Array) -> Array:
    """`GRAMMAR`, written out: tokens 0 to 3 are the signs from ! to $."""
    allowed = [0, 1] if not answer else [2] if answer[-1] == 1 else [0, 1, 3, EOS]
    return np.where(np.isin(np.arange(V), allowed), z, -np.inf)


def traced(name: str, grammar: Grammar | None = None, **sampling: Any) -> list[Choice]:
    """Answers by one of the formulas, each token with its whole distribution."""
    made = zoo()
    handles = [
        made.submit(
            PROMPT,
            SamplingParams(seed=s, max_tokens=5, **sampling),
            decoding=decoding(name) | {"trace": "tokens"},
            grammar=grammar,
        )
        for s in SEEDS
    ]
    made.finish()
    return [made.result(handle).choices[0] for handle in handles]


close = partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5)


def test_every_strategy_has_a_formula_here() -> None:
    named = {each["strategy"] for each in map(decoding, FORMULAS)} - {"composed"}
    assert named == {each.name for each in strategies().values() if each.kind == "steer"} - SPOKEN | {"sample"}


@pytest.mark.parametrize("limits", ["plain", "edited", "constrained"])
@pytest.mark.parametrize("name", FORMULAS)
def test_scores_are_those_of_the_formula(name: str, limits: str) -> None:
    edit = {"plain": None, "edited": edited, "constrained": constrained}[limits]
    grammar = GRAMMAR if limits == "constrained" else None
    for choice in traced(name, grammar, **(EDITED if limits == "edited" else {})):
        for answer, token in positions(choice):
            at = At(answer, edit)
            expected = log_softmax(FORMULAS[name][1](at))
            base = log_softmax(at.z())
            close(whole(token.top_steered), expected)
            close(whole(token.top_base), base)
            close(token.logprob_steered, expected[token.id])
            close(token.logprob_base, base[token.id])
            close(token.entropy, mean(expected, -expected))
            close(token.entropy_base, mean(base, -base))
            close(token.kl, mean(expected, expected - base))


def filtered(scores: Array, temperature: float, top_k: int, top_p: float, min_p: float) -> Array:
    """Temperature, min-p, top-k, and top-p over what they leave, as log-probabilities."""
    z = scores / temperature
    p = np.exp(log_softmax(z))
    keep = (p >= min_p * p.max()) & (np.argsort(np.argsort(-p)) < top_k)
    p = np.where(keep, p, 0.0) / p[keep].sum()
    keep &= np.array([p[p > each].sum() for each in p]) < top_p
    return log_softmax(np.where(keep, z, -np.inf))


@pytest.mark.parametrize("name", FORMULAS)
def test_temperature_and_filters_come_after_steering(name: str) -> None:
    after = {"temperature": 0.8, "top_k": 3, "top_p": 0.9, "min_p": 0.05}
    for choice in traced(name, **after):
        for answer, token in positions(choice):
            scores = FORMULAS[name][1](At(answer))
            expected = filtered(scores, **after)
            close(whole(token.top_steered), log_softmax(scores))
            close(token.logprob_steered, expected[token.id])
            close(token.kl, mean(expected, expected - At(answer).lp()))


@pytest.mark.parametrize("name", FORMULAS)
def test_greedy_draws_the_best_score(name: str) -> None:
    for choice in traced(name, temperature=0.0):
        for answer, token in positions(choice):
            assert token.id == FORMULAS[name][1](At(answer)).argmax()


def test_fudge_draws_from_its_best_scores_alone() -> None:
    made = zoo()
    params = {"strategy": "fudge", "classifier": "v", "k": 4, "limit": 2, "trace": "tokens"}
    for answer, token in positions(made.run(PROMPT, SamplingParams(seed=0, max_tokens=5), decoding=params).choices[0]):
        at = At(answer)
        scores = at.score(at.z(), log_sigmoid(at.values("v")), at.candidates(4))
        close(token.logprob_steered, filtered(scores, 1.0, 2, 1.0, 0.0)[token.id])
