"""Every option of every token-level strategy changes what is drawn."""

from typing import Any

import numpy as np
import pytest
from toy import Toy
from zoo import BASES, END, PROMPT, V, babble, positions, whole, zoo

from trimtab.decoders.registry import strategies
from trimtab.engine.results import Result
from trimtab.engine.sampling import SamplingParams

CHANGES: dict[tuple[str, str], dict[str, Any]] = {
    ("args", "reward"): {"reward": "v"},
    ("args", "w"): {"w": 3.0},
    ("args", "k"): {"k": 4},
    ("rad", "reward"): {"reward": "v"},
    ("rad", "beta"): {"beta": 3.0},
    ("rad", "k"): {"k": 4},
    ("fudge", "classifier"): {"classifier": "rm"},
    ("fudge", "lam"): {"lam": 3.0},
    ("fudge", "k"): {"k": 3},
    ("fudge", "limit"): {"limit": 1},
    ("cd", "value"): {"value": "q2"},
    ("cd", "lam"): {"lam": 0.2},
    ("cd", "k"): {"k": 2},
    ("ivo", "value"): {"value": "v"},
    ("ivo", "lam"): {"lam": -1.0},
    ("ivo", "k"): {"k": 3},
    ("vas", "value"): {"value": "rm"},
    ("vas", "beta"): {"beta": 1.0},
    ("vas", "k"): {"k": 2},
    ("genarm", "arm"): {"arm": "b"},
    ("genarm", "alpha"): {"alpha": 2.0},
    ("genarm", "arms"): {"arm": None, "arms": {"a": 1.0, "b": 1.0}},
    ("pad", "arm"): {"arm": "b"},
    ("pad", "w"): {"w": 0.9},
    ("pad", "k"): {"k": 2},
    ("pad", "preference"): {"preference": "be brief"},
    ("dera", "aligned"): {"aligned": "b"},
    ("dera", "reference"): {"reference": "b"},
    ("dera", "lam"): {"lam": 1.5},
    ("mod", "weights"): {"weights": {"a": 0.8, "base": 0.2}},
    ("mod", "alpha"): {"alpha": 1.0},
    ("proxy_tuning", "expert"): {"expert": "base"},
    ("proxy_tuning", "antiexpert"): {"antiexpert": "a"},
    ("proxy_tuning", "alpha"): {"alpha": 0.3},
    ("dexperts", "expert"): {"expert": "base"},
    ("dexperts", "antiexpert"): {"antiexpert": "a"},
    ("dexperts", "alpha"): {"alpha": 0.3},
    ("dexperts", "p"): {"p": 0.4},
    ("eft", "tuned"): {"tuned": "b"},
    ("eft", "reference"): {"reference": "b"},
    ("eft", "w"): {"w": 0.4},
    ("ivl", "value"): {"value": "b"},
    ("contrastive", "amateur"): {"amateur": "b"},
    ("contrastive", "alpha"): {"alpha": 0.8},
    ("contrastive", "beta"): {"beta": 2.0},
    ("contrastive", "amateur_sees_prompt"): {"amateur_sees_prompt": False},
    ("cfg", "gamma"): {"gamma": 3.0},
    ("cfg", "negative_prompt"): {"negative_prompt": "be rude"},
    ("re_control", "value"): {"value": "h2"},
    ("re_control", "lr"): {"lr": 0.3},
    ("re_control", "n"): {"n": 3},
    ("control_vector", "vector"): {"vector": "c2"},
    ("control_vector", "coeff"): {"coeff": -1.0},
    ("control_vector", "measure_kl"): {"measure_kl": True},
    ("panacea", "guide"): {"guide": "p2"},
    ("panacea", "preference"): {"preference": {"x": 0.25, "y": 0.75}},
    ("panacea", "normalise"): {"preference": {"x": 3.0, "y": 1.0}, "normalise": False},
    ("panacea", "strength"): {"strength": -0.5},
    ("panacea", "measure_kl"): {"measure_kl": True},
    ("mixture", "weights"): {"weights": {"a": 0.5, "base": 0.0}},
    ("candidates", "top_k"): {"top_k": 2},
    ("candidates", "top_p"): {"top_p": 0.5},
    ("candidates", "alpha"): {"alpha": 0.7},
    ("candidates", "keep_others"): {"keep_others": True},
    ("value", "guide"): {"guide": "q2"},
    ("value", "weight"): {"weight": 2.0},
    ("value", "transform"): {"transform": "clamp"},
}
GATED: dict[tuple[str, str], dict[str, Any]] = {
    ("nudging", "aligned"): {"aligned": "other"},
    ("nudging", "gamma"): {"gamma": 0.9},
    ("nudging", "draft"): {"draft": 1},
    ("wsd", "aligned"): {"aligned": "other"},
    ("wsd", "window"): {"window": 1},
    ("wsd", "threshold"): {"threshold": 0.1},
    ("wsd", "draft"): {"draft": 1},
}
REPORTED = ("control_vector", "measure_kl"), ("panacea", "measure_kl")
FILTER = ("fudge", "limit")  # these leave scores as they are


def test_every_option_has_a_case() -> None:
    steers = [each for each in strategies().values() if each.kind == "steer"]
    options = {(each.name, field) for each in steers for field in each.params.model_fields}
    assert options == CHANGES.keys() | GATED.keys()


def run(toy: Toy, strategy: str, params: dict[str, Any]) -> list[Result]:
    decoding = {"strategy": strategy, **params, "trace": "tokens"}
    handles = [toy.submit(PROMPT, SamplingParams(seed=s, max_tokens=6), decoding=decoding) for s in range(8)]
    toy.finish()
    return [toy.result(handle) for handle in handles]


def drawn(results: list[Result]) -> list[tuple[int, ...]]:
    return [result.choices[0].token_ids for result in results]


def first_step(results: list[Result]) -> list[float]:
    """The distribution of the first token, which depends on nothing that was drawn."""
    logprobs: list[float] = whole(positions(results[0].choices[0])[0][1].top_steered).tolist()
    return logprobs


@pytest.mark.parametrize(("strategy", "field"), [key for key in CHANGES if key not in (*REPORTED, FILTER)])
def test_an_option_changes_tokens_and_their_distribution(strategy: str, field: str) -> None:
    toy, base = zoo(), BASES[strategy]
    before, after = run(toy, strategy, base), run(toy, strategy, base | CHANGES[strategy, field])
    assert len(first_step(before)) == V
    assert drawn(before) != drawn(after)
    assert any(
        not np.allclose(whole(mine.top_steered), whole(other.top_steered), atol=1e-3)
        for one, two in zip(before, after, strict=True)
        for (_, mine), (_, other) in zip(positions(one.choices[0]), positions(two.choices[0]), strict=False)
    )


def test_the_limit_of_fudge_draws_its_best_scores() -> None:
    toy = zoo()
    before, after = (run(toy, "fudge", BASES["fudge"] | limit) for limit in ({}, CHANGES[FILTER]))
    assert len(set(drawn(before))) > 1
    assert len(set(drawn(after))) == 1


@pytest.mark.parametrize("strategy", [strategy for strategy, _ in REPORTED])
def test_measure_kl_compares_with_the_plain_model(strategy: str) -> None:
    toy = zoo()
    before, after = (run(toy, strategy, BASES[strategy] | more) for more in ({}, {"measure_kl": True}))
    assert drawn(before) == drawn(after)
    for one, other in zip(before, after, strict=True):
        unmeasured, measured = one.choices[0].steering, other.choices[0].steering
        assert unmeasured is not None
        assert unmeasured.kl is None
        assert measured is not None
        assert (measured.kl or 0.0) > 0.0


@pytest.mark.parametrize(("strategy", "field"), GATED)
def test_an_option_changes_who_speaks(strategy: str, field: str) -> None:
    toy = Toy(babble(1), eos=END)
    for name, salt in (("aligned", 2), ("other", 3)):
        toy.add_lm(name, babble(salt))
    base = {"aligned": "aligned"} | ({"threshold": 0.5} if strategy == "wsd" else {"gamma": 0.6})
    greedy = SamplingParams(temperature=0.0, max_tokens=40)
    before, after = (
        toy.run(PROMPT, greedy, decoding={"strategy": strategy, **base, **change})
        for change in ({}, GATED[strategy, field])
    )
    if field == "draft":  # how far the guide runs ahead is a matter of cost
        assert before.usage.forwards["base"] < after.usage.forwards["base"]
    else:
        assert drawn([before]) != drawn([after])
