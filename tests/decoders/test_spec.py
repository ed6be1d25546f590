"""The `decoding` object: what it takes, what it refuses, and that its echo can be sent again."""

from typing import Any

import pytest

from trimtab.decoders.search.best_of_n import BestOfN
from trimtab.decoders.search.sample import Sample
from trimtab.decoders.spec import MAX_PARTS, DecodingSpec
from trimtab.decoders.steer.control_vector import ControlVector
from trimtab.decoders.steer.genarm import GenArm
from trimtab.engine.errors import InvalidRequest

ARM = {"method": "genarm", "arm": "x"}


def test_a_search_with_parts_is_filled_in() -> None:
    spec = DecodingSpec.parse(
        {
            "strategy": "best_of_n",
            "reward": "r",
            "steer": [ARM, {"method": "control_vector", "vector": "c", "coeff": 2}],
            "trace": "tokens",
        }
    )
    assert spec.search == BestOfN(reward="r")
    assert spec.parts == (GenArm(arm="x"), ControlVector(vector="c", coeff=2.0))
    assert spec.dump() == {
        "strategy": "best_of_n",
        "n": 8,
        "reward": "r",
        "export": None,
        "steer": [
            {"method": "genarm", "arm": "x", "alpha": 1.0, "arms": None},
            {"method": "control_vector", "vector": "c", "coeff": 2.0, "measure_kl": False},
        ],
        "trace": "tokens",
    }


@pytest.mark.parametrize(
    ("decoding", "param", "words"),
    [
        ({"reward": {"sum": [{"guide": "r", "wieght": 2}]}}, "decoding.reward.sum.0.wieght", "mean 'weight'"),
        ({"reward": {"guide": "r", "sample": 2}}, "decoding.reward.sample", "mean 'samples'"),
        ({"reward": "r", "budget": {"deadline": 3}}, "decoding.budget.deadline", "mean 'deadline_ms'"),
        ({"reward": "r", "budget": {"max_rows": 0}}, "decoding.budget.max_rows", "greater than or equal to 1"),
        ({"reward": "r", "budget": 3}, "decoding.budget", "is an object"),
        ({"reward": "r", "select": {"rule": "sofd"}}, "decoding.select.rule", "mean 'soft'"),
        ({"strategy": "deal", "constraint": {"keyword": ["x"]}}, "decoding.constraint.keyword", "mean 'keywords'"),
        ({"strategy": "cd_blockwise", "value": "r", "select": "soft"}, "decoding.select", "only rule 'abstain'"),
        ({"strategy": "self_consistency", "select": "argmax"}, "decoding.select", "goes by rewards"),
        ({"strategy": "sample", "budget": {"reward_at_least": 1}}, "decoding.budget.reward_at_least", "needs a reward"),
    ],
)
def test_a_wrong_key_inside_an_object_is_named_with_its_path(decoding: Any, param: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        DecodingSpec.parse({"strategy": "best_of_n", **decoding})
    assert caught.value.param == param


def test_select_and_budget_are_echoed_as_they_count() -> None:
    decoding = {"strategy": "best_of_n", "reward": "r", "select": "soft", "budget": {"max_rows": 3}}
    told = DecodingSpec.parse(decoding).dump()
    assert told["select"]["rule"] == "soft"
    assert told["budget"] == {"max_rows": 3}
    assert DecodingSpec.parse(told) == DecodingSpec.parse(decoding)


def test_a_strategy_that_steers_is_the_first_part_of_plain_sampling() -> None:
    spec = DecodingSpec.parse({"strategy": "control_vector", "vector": "c", "steer": [ARM]})
    assert spec.search == Sample()
    assert spec.parts == (ControlVector(vector="c"), GenArm(arm="x"))


@pytest.mark.parametrize(
    "decoding",
    [
        None,
        {"strategy": "best_of_n", "reward": "r", "n": 3},
        {"strategy": "args", "reward": "r", "steer": [ARM, {"method": "cfg"}], "trace": "tokens"},
        {"strategy": "genarm", "arms": {"x": 1.0, "y": 2}, "alpha": 0.5},
        {"steer": [{"method": "mod", "weights": {"x": 0.5, "base": 0.5}, "alpha": 0.5}]},
        {"strategy": "cd", "value": "v", "k": None},
    ],
)
def test_the_echo_parses_to_the_same(decoding: dict[str, Any] | None) -> None:
    spec = DecodingSpec.parse(decoding)
    assert DecodingSpec.parse(spec.dump()) == spec


def test_the_first_paper_with_a_temperature_sets_it() -> None:
    greedy = {"method": "args", "reward": "r"}
    assert DecodingSpec.parse({"steer": [ARM, greedy]}).temperature == 0.0
    assert DecodingSpec.parse({"strategy": "nudging", "aligned": "x"}).temperature == 0.0
    assert DecodingSpec.parse({"steer": [ARM]}).temperature is None


def test_rewards_of_the_search_are_checked() -> None:
    spec = DecodingSpec.parse({"strategy": "best_of_n", "reward": "r", "steer": [ARM]})
    spec.check(choices=1, rewards=["r"])
    with pytest.raises(InvalidRequest, match="no reward guide"):
        spec.check(choices=1, rewards=["other"])


@pytest.mark.parametrize(
    ("decoding", "param", "words"),
    [
        ({"steer": [{**ARM, "alhpa": 1}]}, "steer.0.alhpa", "did you mean 'alpha'"),
        ({"steer": [ARM, {"method": "genram", "arm": "x"}]}, "steer.1.method", "did you mean 'genarm'"),
        ({"steer": [{"arm": "x"}]}, "steer.0.method", "give it a method"),
        ({"steer": [{"method": "best_of_n", "reward": "r"}]}, "steer.0.method", "name it as `strategy`"),
        ({"steer": [{**ARM, "alpha": "1"}]}, "steer.0.alpha", "valid number"),
        ({"steer": [{**ARM, "trace": "tokens"}]}, "steer.0.trace", "unknown decoding key"),
        ({"steer": ARM}, "steer", "list of parts"),
        ({"steer": ["genarm"]}, "steer", "list of parts"),
        ({"steer": [ARM] * (MAX_PARTS + 1)}, "steer", "9 parts"),
        ({"strategy": "genarm", "arm": "x", "steer": [ARM] * MAX_PARTS}, "steer", "9 parts"),
        ({"trace": "all"}, "trace", "'tokens'"),
        ({"stear": []}, "stear", "did you mean 'steer'"),
        ({"strategy": "args", "reward": "r", "k": 0}, "k", "greater than or equal to 1"),
        ({"strategy": "args", "reward": "r", "k": 2**63}, "k", "less than or equal"),
        ({"strategy": "args", "reward": "r", "w": float("nan")}, "w", "finite"),
        ({"strategy": "args", "reward": "r", "w": 10001}, "w", "less than or equal to 10000"),
        ({"strategy": "mixture", "weights": {}}, "weights", "at least 1"),
        ({"strategy": "mixture", "weights": {"x": float("inf")}}, "weights.x", "finite"),
        ({"strategy": "dexperts", "expert": "x", "antiexpert": "y", "p": 0.0}, "p", "greater than 0"),
        ({"strategy": "re_control", "value": "v", "n": 1001}, "n", "less than or equal to 1000"),
        ({"strategy": "value", "guide": "v", "transform": "sigmoid"}, "transform", "'log_sigmoid'"),
    ],
)
def test_a_wrong_key_is_named_by_its_path(decoding: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        DecodingSpec.parse(decoding)
    assert caught.value.param == f"decoding.{param}"


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"method": "genarm"}, "give either arm"),
        ({"method": "genarm", "arm": "x", "arms": {"y": 1.0}}, "give either arm"),
        ({"method": "mod", "weights": {"x": 0.5}}, "add up to 0.5"),
        ({"method": "candidates", "keep_others": True}, "set top_k, top_p or alpha"),
    ],
)
def test_what_the_fields_say_together_is_checked(part: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        DecodingSpec.parse({"steer": [part]})
    assert caught.value.param == "decoding.steer.0"
    assert "Value error" not in str(caught.value)
