"""Panacea: the plan of a preference, what is normalised, and what is refused."""

from typing import Any

import numpy as np
import pytest
from toy import Toy
from zoo import BASE, BLOCKS, PROMPT, log_softmax, positions, whole, zoo

from trimtab.decoders.attributes import Attribute
from trimtab.decoders.named import named
from trimtab.decoders.preference import Personal, Resolved
from trimtab.decoders.spec import DecodingSpec
from trimtab.decoders.steer.panacea import Panacea
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.plan import PLAIN, SteerPlan, Variant
from trimtab.engine.sampling import SamplingParams

EVEN = {"strategy": "panacea", "guide": "p", "preference": {"x": 0.5, "y": 0.5}}


@pytest.fixture(scope="module")
def toy() -> Toy:
    return zoo()


def planned(toy: Toy, decoding: dict[str, Any]) -> SteerPlan:
    return toy.plan(PROMPT, SamplingParams(), DecodingSpec.parse(decoding))


@pytest.mark.parametrize(
    ("given", "scales"),
    [
        ({"preference": {"x": 0.7, "y": 0.3}}, (1.0, 0.7, 0.3)),
        ({"preference": {"y": 3.0, "x": 1.0}}, (1.0, 0.25, 0.75)),
        ({"preference": {"y": 0.2}}, (1.0, 0.0, 1.0)),
        ({"preference": {"y": 0.2}, "normalise": False}, (1.0, 0.0, 0.2)),
        ({"preference": {"x": 1.0, "y": 1.0}, "strength": 2.0}, (2.0, 1.0, 1.0)),
        ({"preference": {"x": 2.0}, "normalise": False, "strength": 0.5}, (0.5, 1.0, 0.0)),
    ],
)
def test_the_base_runs_with_the_scaled_adapter(toy: Toy, given: dict[str, Any], scales: tuple[float, ...]) -> None:
    plan = planned(toy, {**EVEN, **given})
    assert plan.variant.adapter == "p"
    assert plan.variant.scales == pytest.approx(scales)
    assert plan.lanes == ()
    assert plan.steered
    assert plan.guides == {"p"}


def test_strength_zero_is_the_base(toy: Toy) -> None:
    assert planned(toy, {**EVEN, "strength": 0.0}).variant == PLAIN


def test_reports_compare_with_the_plain_base(toy: Toy) -> None:
    plan = planned(toy, {**EVEN, "measure_kl": True})
    assert plan.reference is not None
    assert plan.lanes[plan.reference].variant == PLAIN


def test_the_first_token_has_the_distribution_of_the_formula(toy: Toy) -> None:
    decoding = {**EVEN, "preference": {"x": 0.75, "y": 0.25}, "trace": "tokens"}
    handle = toy.submit(PROMPT, SamplingParams(seed=1, max_tokens=1), decoding=decoding)
    toy.finish()
    general, x, y = BLOCKS["p"]
    told = whole(positions(toy.result(handle).choices[0])[0][1].top_steered)
    np.testing.assert_allclose(told, log_softmax(BASE(PROMPT) + general + 0.75 * x + 0.25 * y), atol=1e-5)


def test_it_combines_with_vectors_and_other_models(toy: Toy) -> None:
    parts = [{"method": "control_vector", "vector": "c"}, {"method": "genarm", "arm": "a"}]
    plan = planned(toy, {**EVEN, "steer": parts})
    assert plan.variant == Variant("p", (("c", 1.0),), (1.0, 0.5, 0.5))
    assert [lane.name for lane in plan.lanes] == ["a"]


def test_without_a_preference_all_attributes_count_alike(toy: Toy) -> None:
    plan = planned(toy, {"strategy": "genarm", "arm": "p"})
    assert plan.lanes[0].variant == Variant("p", scales=(1.0, 0.5, 0.5))


@pytest.mark.parametrize(
    ("given", "message", "param"),
    [
        ({"preference": {"x": 1.0, "z": 1.0}}, "no attribute 'z'.* it knows x, y", "decoding.preference.z"),
        ({"guide": "a"}, "'a' has no blocks that a preference could scale; those that have: p, p2", "decoding.guide"),
        ({"guide": "rm"}, "has the role 'reward'; this needs a language model", "decoding.guide"),
        ({"guide": "none"}, "no guide is named 'none'", "decoding.guide"),
        ({"preference": {"x": -0.5}}, "greater than or equal to 0", "decoding.preference.x"),
        ({"preference": {"x": float("nan")}}, "finite", "decoding.preference.x"),
        ({"preference": {"x": 0.0}}, "all weights are 0", "decoding.preference"),
        ({"preference": {}}, "at least 1 item", "decoding.preference"),
    ],
)
def test_what_cannot_be_meant_is_refused(toy: Toy, given: dict[str, Any], message: str, param: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as refused:
        planned(toy, {**EVEN, **given})
    assert refused.value.param == param


@pytest.mark.parametrize(
    "decoding", [{"strategy": "panacea", "guide": "p"}, {"steer": [{"method": "panacea", "guide": "p"}]}]
)
def test_an_attribute_that_the_adapter_lacks_is_named_where_the_client_wrote_it(
    toy: Toy, decoding: dict[str, Any]
) -> None:
    known = Personal({name: Attribute(low="less", high="more") for name in ("x", "xy")})
    spec = DecodingSpec.parse({**decoding, "preference": {"weights": {"x": 0.5, "xy": 0.5}}}, known)
    with pytest.raises(InvalidRequest, match="no attribute 'xy'; it knows x, y") as refused:
        toy.plan(PROMPT, SamplingParams(), spec)
    assert refused.value.param == "decoding.preference.weights.xy"
    with pytest.raises(InvalidRequest) as refused:
        toy.plan(PROMPT, SamplingParams(), DecodingSpec.parse(spec.dump()))
    named_in = "decoding.preference" if "strategy" in decoding else "decoding.steer.0.preference"
    assert refused.value.param == f"{named_in}.xy"


def test_two_parts_that_adapt_the_base_are_refused(toy: Toy) -> None:
    part = {"method": "panacea", "guide": "p2", "preference": {"x": 1.0}}
    with pytest.raises(InvalidRequest, match="two parts adapt the base: leave one out") as refused:
        planned(toy, {**EVEN, "steer": [part]})
    assert refused.value.param == "decoding.steer.0.guide"


def test_its_guide_is_among_those_that_a_request_names() -> None:
    assert named(DecodingSpec.parse(EVEN)) == {"p": "decoding.guide"}


def test_a_preference_of_the_request_fills_in_the_weights() -> None:
    found = Panacea.preferred({"guide": "p"}, Resolved(weights={"x": 0.5, "y": 0.0}))
    assert found == {"guide": "p", "preference": {"x": 0.5, "y": 0.0}}
    own = {"guide": "p", "preference": {"x": 1.0}}
    assert Panacea.preferred(own, Resolved(weights={"y": 1.0})) is own
    words = {"guide": "p"}
    assert Panacea.preferred(words, Resolved(text="be brief")) is words
    with pytest.raises(InvalidRequest, match=r"cannot lead away from an attribute, and 'x' has weight -0.5"):
        Panacea.preferred({"guide": "p"}, Resolved(weights={"x": -0.5}))
