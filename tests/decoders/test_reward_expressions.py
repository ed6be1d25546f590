"""Reward expressions: exact values, what shifts and orders they keep, how they are written and what is refused."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

from trimtab.decoders.rewards import Expression
from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.errors import GuideError, InvalidRequest

NAN, INF = math.nan, math.inf
RAW = {"a": [1.0, -2.0, 0.5], "b": [0.0, 4.0, 0.25], "c": [2.0, 2.0, 2.0]}
BASE = {"a": [-1.0, 0.0, 1.0, 1.0], "b": [3.0, 1.0, 2.0, 0.0], "c": [2.0, 2.0, 2.0, 2.0]}


class Holder(BaseModel):
    reward: Expression


def parsed(written: Any) -> Expression:
    return Holder.model_validate({"reward": written}).reward


def values(written: Any, raw: Mapping[str, Any] = RAW, base: Mapping[str, Any] = BASE) -> list[float]:
    return parsed(written).values(raw, base)


def term(transform: str, guide: str = "a", **parameters: float) -> dict[str, Any]:
    return {"guide": guide, "transform": transform, **parameters}


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("a", [1, -2, 0.5]),
        ({"guide": "a", "weight": -2}, [-2, 4, -1]),
        ({"sum": ["a", {"guide": "b", "weight": 0.5}]}, [1, 0, 0.625]),
        ({"mean": ["a", "b"]}, [0.5, 1, 0.375]),
        ({"min": ["a", {"guide": "b", "weight": 2}, "c"]}, [0, -2, 0.5]),
        ({"ensemble": ["a", "b"], "pessimism": 0.5}, [0.5 - 0.5 * 0.25, 1 - 0.5 * 9, 0.375 - 0.5 * 0.125**2]),
        ({"ensemble": ["a", "b"]}, [0.5, 1, 0.375]),
        ({"min": ["c", {"sum": ["a", "b"]}], "weight": 3}, [3, 6, 2.25]),
        (term("clip", low=-1, high=0.75), [0.75, -1, 0.5]),
        (term("clip", low=-1), [1, -1, 0.5]),
        (term("log_sigmoid", reference=0.5), [math.log(sigma(x - 0.5)) for x in RAW["a"]]),
        # two base answers are below 1 and two tie with it; none is below -2; half of them are below 0.5
        (term("quantile", samples=4), [0.75, 0, 0.5]),
        (term("quantile", samples=2), [1, 0, 1]),
        (term("quantile", samples=4, tilt=2), [math.exp(1.5), 1, math.e]),
        (term("quantile", samples=4, tilt=-2), [-math.exp(-1.5), -1, -1 / math.e]),
        # base answers of a: mean 0.25, variance 11/16
        (term("standardise", samples=4), [(x - 0.25) / math.sqrt(11 / 16) for x in RAW["a"]]),
        (term("standardise", samples=0), [(x + 1 / 6) / math.sqrt((49 + 121 + 16) / 36 / 3) for x in RAW["a"]]),
        (term("standardise", "c", samples=4), [0, 0, 0]),
    ],
)
def test_values_are_exact(written: Any, expected: list[float]) -> None:
    assert values(written) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_the_reference_is_a_quantile_of_the_base_answers() -> None:
    """0.85 of the way from the first to the last of 4 sorted values is 2.55 steps of 3."""
    for parameters, reference in (({}, 2.55), ({"quantile": 0.5}, 1.5), ({"quantile": 1.0}, 3.0)):
        found = values(term("log_sigmoid", "b", samples=4, **parameters))
        assert found == pytest.approx([math.log(sigma(x - reference)) for x in RAW["b"]], rel=1e-12)


def test_summed_log_sigmoids_are_the_log_probability_of_the_conjunction() -> None:
    both = values({"sum": [term("log_sigmoid", g, reference=r) for g, r in (("a", 0.0), ("b", 1.0))]})
    expected = [sigma(a) * sigma(b - 1) for a, b in zip(RAW["a"], RAW["b"], strict=True)]
    assert np.exp(both) == pytest.approx(expected, rel=1e-12)


def test_log_sigmoid_neither_overflows_nor_underflows() -> None:
    found = values(term("log_sigmoid", reference=0), {"a": [-1e6, 1e6, -INF, INF, 40.0]})
    assert found == [-1e6, 0.0, -INF, 0.0, pytest.approx(-math.exp(-40), rel=1e-12)]


@pytest.mark.parametrize("transform", ["standardise", "log_sigmoid", "quantile"])
def test_what_is_compared_with_base_answers_ignores_a_constant(transform: str) -> None:
    shifted = [{guide: [r + 4096.0 for r in rewards] for guide, rewards in each.items()} for each in (RAW, BASE)]
    assert values(term(transform, samples=4), *shifted) == values(term(transform, samples=4))


def test_quantile_and_standardise_ignore_the_scale_and_log_sigmoid_does_not() -> None:
    scaled = [{guide: [4 * r for r in rewards] for guide, rewards in each.items()} for each in (RAW, BASE)]
    same = {t: values(term(t, samples=4), *scaled) == values(term(t, samples=4)) for t in ("standardise", "quantile")}
    assert all(same.values())
    assert values(term("log_sigmoid"), *scaled) != values(term("log_sigmoid"))


@pytest.mark.parametrize(
    "transform",
    [
        term("log_sigmoid"),
        term("standardise", samples=0),
        term("standardise"),
        term("quantile", tilt=3),
        term("quantile", tilt=-3),
    ],
)
def test_transforms_keep_the_order(transform: dict[str, Any]) -> None:
    random = np.random.default_rng(3)
    raw = sorted(random.normal(size=50))
    found = values(transform, {"a": raw}, {"a": random.normal(size=8)})
    assert found == sorted(found)
    assert found[0] < found[-1]


@pytest.mark.parametrize(
    "written",
    [
        "a",
        *(term(t) for t in ("standardise", "log_sigmoid", "quantile")),
        term("standardise", samples=0),
        term("clip", low=0),
        {"min": ["b", "a"]},
        {"sum": ["b", term("quantile")]},
        {"ensemble": ["b", "a"], "pessimism": 1},
    ],
)
def test_nan_stays_nan_and_touches_no_other_answer(written: Any) -> None:
    clean = values(written, {"a": [1.0, 0.5, 0.25], "b": [1.0, 2.0, 3.0]})
    found = values(written, {"a": [1.0, NAN, 0.5, 0.25], "b": [1.0, 9.0, 2.0, 3.0]})
    assert math.isnan(found.pop(1))
    assert found == clean


def test_nan_among_the_base_answers_is_left_out() -> None:
    base = {"a": [NAN, -1.0, 0.0, 1.0, 1.0]}
    assert values(term("quantile", samples=5), base=base) == values(term("quantile", samples=4))
    with pytest.raises(GuideError, match=r"'a'.*every base answer"):
        values(term("quantile"), base={"a": [NAN, NAN]})


def test_infinities_that_cancel_lose_quietly() -> None:
    found = values({"sum": ["a", "b"]}, {"a": [INF, 1.0], "b": [-INF, 1.0]})
    assert math.isnan(found[0])
    assert found[1] == 2.0


@pytest.mark.parametrize("written", ["a", {"min": ["a", term("standardise", samples=0)]}, term("quantile")])
def test_no_answers_have_no_values(written: Any) -> None:
    assert values(written, {"a": []}) == []


def test_guides_come_once_in_order_and_samples_are_the_most_that_a_term_needs() -> None:
    found = parsed({"sum": [term("quantile", "b", samples=3), "a", {"min": ["b", term("log_sigmoid", "c")]}]})
    assert found.guides == ("b", "a", "c")
    assert found.samples == 8
    assert parsed({"sum": ["a", term("log_sigmoid", reference=1), term("clip", low=0)]}).samples == 0


def test_terms_tell_what_became_of_each_guide() -> None:
    written = {"sum": [{**term("quantile", samples=4), "weight": 5}, "b", {"guide": "a", "weight": 2}]}
    assert parsed(written).terms(RAW, BASE) == {"a": [0.75, 0.0, 0.5], "b": RAW["b"]}


@pytest.mark.parametrize(
    ("written", "dumped"),
    [
        ("a", "a"),
        ({"guide": "a"}, "a"),
        ({"guide": "a", "weight": 1, "transform": None}, "a"),
        ({"guide": "a", "weight": 2}, {"guide": "a", "weight": 2.0}),
        (term("quantile"), term("quantile", samples=8)),
        (term("log_sigmoid"), term("log_sigmoid", quantile=0.85, samples=8)),
        (term("log_sigmoid", reference=1), term("log_sigmoid", reference=1.0)),
        (term("standardise", samples=0), term("standardise", samples=0)),
        ({"sum": [{"guide": "a"}, "b"], "weight": 0.5}, {"sum": ["a", "b"], "weight": 0.5}),
        ({"ensemble": ["a", {"min": ["b", "c"]}], "pessimism": 2}, None),
    ],
)
def test_a_dump_is_compact_and_parses_to_the_same(written: Any, dumped: Any) -> None:
    expression = parsed(written)
    told = Holder(reward=expression).model_dump()
    assert told == {"reward": written if dumped is None else dumped}
    assert Holder.model_validate(json.loads(json.dumps(told))).reward == expression


def test_of_is_the_bare_name() -> None:
    assert Expression.of("a") == parsed("a")
    assert Expression.of("a").values(RAW, {}) == RAW["a"]


@pytest.mark.parametrize(
    ("written", "where", "words"),
    [
        (3, "", "name of a guide or an object"),
        ({}, "", "one of guide, sum, mean, min, ensemble, and this one has none"),
        ({"guide": "a", "min": ["b"]}, "", "has guide and min"),
        ({"sum": []}, "sum", "at least 1"),
        ({"sum": ["a", {"guide": "b", "wait": 2}]}, "sum.1.wait", "not permitted"),
        ({"sum": ["a", {"guide": "b", "weight": "2"}]}, "sum.1.weight", "valid number"),
        ({"min": ["a"], "transform": "standardise"}, "", "a min has no transform: give one to its terms"),
        ({"min": ["a"], "pessimism": 1.0}, "", "'pessimism' is no parameter of min, which takes none"),
        (term("standardize"), "transform", "'standardise'"),
        (term("quantile", low=1), "", "'low' is no parameter of transform 'quantile', which takes samples, tilt"),
        ({"guide": "a", "samples": 8}, "", "'samples' is no parameter of transform 'identity'"),
        (term("quantile", samples=0), "", "make samples 1 or more"),
        (term("quantile", samples=65), "samples", "less than or equal to 64"),
        (term("quantile", tilt=0), "", "tilt 0 makes all answers alike"),
        (term("log_sigmoid", reference=1, samples=4), "", "leave quantile and samples out"),
        (term("log_sigmoid", reference=INF), "reference", "finite"),
        (term("clip"), "", "clip needs low, high or both"),
        (term("clip", low=1, high=0), "", r"low \(1\) is above high \(0\)"),
        ({"sum": [{"sum": ["a"] * 9}, {"sum": ["a"] * 8}]}, "", "16 terms and 4 levels"),
        ({"sum": [{"min": [{"sum": [{"min": ["a"]}]}]}]}, "", "16 terms and 4 levels"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(written: Any, where: str, words: str) -> None:
    with pytest.raises(ValidationError, match=words) as caught:
        parsed(written)
    assert ".".join(map(str, caught.value.errors()[0]["loc"])) == f"reward.{where}".rstrip(".")


def test_endless_nesting_is_refused_and_no_crash() -> None:
    written: Any = "a"
    for _ in range(2000):
        written = {"sum": [written]}
    with pytest.raises(ValidationError):
        parsed(written)


def test_an_unknown_guide_is_refused_with_the_nearest_and_the_known_ones() -> None:
    expression = parsed({"sum": ["helpful", "harmles"]})
    expression.check({"helpful", "harmles"}, path="decoding.reward")
    with pytest.raises(
        InvalidRequest, match=r"'harmles': did you mean 'harmless'.* configured: harmless, helpful"
    ) as e:
        expression.check({"helpful", "harmless"}, path="decoding.reward")
    assert e.value.param == "decoding.reward"
    with pytest.raises(InvalidRequest, match=r"'helpful'; configured: none .add one under `guides`"):
        expression.check(set(), path="decoding.value")


def test_a_strategy_takes_and_tells_expressions() -> None:
    decoding = {"strategy": "best_of_n", "reward": {"sum": ["a", term("quantile")]}}
    spec = DecodingSpec.parse(decoding)
    assert spec.dump()["reward"] == {"sum": ["a", term("quantile", samples=8)]}
    assert DecodingSpec.parse(spec.dump()) == spec
    assert DecodingSpec.parse({"strategy": "best_of_n", "reward": "a"}).dump()["reward"] == "a"
    with pytest.raises(InvalidRequest, match="valid number") as caught:
        DecodingSpec.parse({"strategy": "best_of_n", "reward": {"sum": [{"guide": "a", "weight": "x"}]}})
    assert caught.value.param == "decoding.reward.sum.0.weight"


def test_the_schema_says_string_or_object() -> None:
    schema = Holder.model_json_schema()
    name, written = schema["$defs"]["Expression"]["anyOf"]
    assert schema["properties"]["reward"] == {"$ref": "#/$defs/Expression"}
    assert name["type"] == "string"
    assert written["type"] == "object"
    assert {"guide", "weight", "transform", "samples", "sum", "min", "mean", "ensemble"} <= written["properties"].keys()
    assert written["additionalProperties"] is False
    (terms, _) = written["properties"]["sum"]["anyOf"]
    assert terms["items"] == {"$ref": "#/$defs/Expression"}
