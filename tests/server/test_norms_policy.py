"""Prompt parts that an operator lays under every request, and attempts to get around them."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import httpx2
import pytest
from pydantic import ValidationError
from steered import furnish, guides

from trimtab.decoders.library import Library, Norm
from trimtab.engine.settings import EngineSettings
from trimtab.llm import LLM
from trimtab.server.policy import Policy
from trimtab.server.settings import Settings

NORMS = {"method": "norms", "ids": ["law"], "tags": ["must"], "k": 1}
PERSONA = {"method": "persona", "text": "They like short answers."}
POLICIES: dict[str, Any] = {
    "lawful": {"floor": {"prompt": [NORMS]}, "presets": ["careful"]},
    "listed": {"floor": {"prompt": [NORMS]}, "strategies": ["persona"]},
    "mixing": {"floor": {"prompt": [NORMS]}, "strategies": ["pluralism"]},
    "quiet": {"forbidden": ["prompt"], "presets": ["careful"]},
    "bare": {"strategies": ["best_of_n"]},
    "guarded": {"floor": {"prompt": [NORMS], "guard": {"reward": "brief", "at_least": -1e9}}},
    "steered": {"floor": {"steer": [{"method": "control_vector", "vector": "calm", "coeff": 1.0}]}},
    "twice": {"floor": {"prompt": [NORMS, PERSONA], "search": {"strategy": "best_of_n", "n": 2, "reward": "brief"}}},
}
PRESETS = {"careful": {"decoding": {"prompt": [PERSONA]}}}

Post = Callable[..., httpx2.Response]


@pytest.fixture(scope="module")
def post(tmp_path_factory: pytest.TempPathFactory, start_shared: Callable[..., Any]) -> Iterator[Post]:
    """Send a chat request under a policy, with `decoding` or without."""
    place = furnish(tmp_path_factory.mktemp("lawful"))
    config = json.loads((place / "base" / "config.json").read_text())
    (place / "base" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 512}))
    keys = {name: {"sha256": hashlib.sha256(name.encode()).hexdigest(), "policy": name} for name in POLICIES}
    settings = Settings.model_validate({"policies": POLICIES, "keys": keys, "presets": PRESETS})
    engine = {"model": str(place / "base"), "guides": guides(place), "device": "cpu", "threads": 1, "page_size": 8}
    made = EngineSettings.model_validate({**engine, "pool_tokens": 8192})
    with closing(Library()) as library, LLM(settings=made, library=library) as llm:
        library.norms.create(Norm(id="law", text="Obey it."))
        library.norms.create(Norm(id="tea", text="Tea is hot.", tags=("must",)))
        library.norms.create(Norm(id="coffee", text="Tea is no coffee.", tags=("may",)))
        with httpx2.Client(base_url=start_shared(llm, settings).url, timeout=60) as client:

            def post(caller: str, decoding: dict[str, Any] | None = None, preset: str = "") -> httpx2.Response:
                body = {
                    "model": llm.model_name + preset,
                    "max_tokens": 4,
                    "messages": [{"role": "user", "content": "What about tea?"}],
                    **({} if decoding is None else {"decoding": decoding}),
                }
                return client.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {caller}"})

            yield post


def parts(response: httpx2.Response) -> list[tuple[str, list[str]]]:
    """The prompt parts that acted, each with the ids of its norms."""
    assert response.status_code == 200, response.text
    told = response.json()["decoding"].get("report", {}).get("prompt", [])
    return [(each["method"], [norm["id"] for norm in each.get("norms", ())]) for each in told]


def refused(response: httpx2.Response, param: str) -> None:
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (403, "policy_violation", param), response.text


LAW = ("norms", ["law", "tea"])


@pytest.mark.parametrize("decoding", [None, {}, {"prompt": []}, {"strategy": "best_of_n", "n": 2, "reward": "brief"}])
def test_the_operators_norms_come_before_every_request(post: Post, decoding: dict[str, Any] | None) -> None:
    answered = post("lawful", decoding)
    assert parts(answered) == [LAW]
    told = answered.json()["decoding"]
    assert told["policy"] == {"name": "lawful", "applied": ["norms comes before the request"]}
    assert "law" not in str(told["spec"])


def test_own_parts_act_after_them(post: Post) -> None:
    assert parts(post("lawful", {"prompt": [PERSONA]})) == [LAW, ("persona", [])]
    assert parts(post("lawful", {"strategy": "persona", "text": "They are tired."})) == [LAW, ("persona", [])]
    assert parts(post("lawful", preset=":careful")) == [LAW, ("persona", [])]
    assert parts(post("twice")) == [LAW, ("persona", [])]


@pytest.mark.parametrize(
    ("decoding", "param"),
    [
        ({"prompt": [{"method": "norms", "ids": ["coffee"]}]}, "decoding.prompt.0"),
        ({"prompt": [PERSONA, {"method": "norms"}]}, "decoding.prompt.1"),
        ({"strategy": "norms"}, "decoding.strategy"),
        ({"strategy": "cfg", "gamma": 0.0, "negative_prompt": "Be rude."}, "decoding.negative_prompt"),
        (
            {"steer": [{"method": "contrastive", "amateur": "anti", "amateur_sees_prompt": False}]},
            "decoding.steer.0.amateur",
        ),
    ],
)
def test_no_request_repeats_them_or_reads_without_them(post: Post, decoding: dict[str, Any], param: str) -> None:
    refused(post("lawful", decoding), param)


def test_lists_of_strategies_hold_for_prompt_parts(post: Post) -> None:
    assert parts(post("listed", {"prompt": [PERSONA]})) == [LAW, ("persona", [])]
    refused(post("listed", {"prompt": [{"method": "urial"}]}), "decoding.prompt.0.method")
    refused(post("bare", {"prompt": [PERSONA]}), "decoding.prompt.0.method")
    refused(post("bare", {"strategy": "urial"}), "decoding.strategy")


def test_prompt_parts_can_be_forbidden_and_presets_keep_theirs(post: Post) -> None:
    refused(post("quiet", {"prompt": [PERSONA]}), "decoding.prompt")
    refused(post("quiet", {"strategy": "urial"}), "decoding.strategy")
    assert parts(post("quiet", {"prompt": []})) == []
    assert parts(post("quiet", preset=":careful")) == [("persona", [])]
    assert parts(post("quiet", {"trace": "tokens"}, preset=":careful")) == [("persona", [])]
    refused(post("quiet", {"prompt": [PERSONA, {"method": "urial"}]}, preset=":careful"), "decoding.prompt")


def test_under_a_guard_ids_are_told(post: Post) -> None:
    assert parts(post("guarded")) == [LAW]


def test_parts_that_mix_are_steering_too(post: Post) -> None:
    communities = {"north": {"system": "a"}, "south": {"system": "b"}}
    pluralism = {"method": "pluralism", "mode": "distributional", "communities": communities}
    answered = post("steered", {"prompt": [pluralism]})
    assert answered.status_code == 403, answered.text
    assert answered.json()["error"]["param"].startswith("decoding.prompt.0")
    (beside,) = parts(post("mixing", {"prompt": [pluralism]}))[1:]
    assert beside == ("pluralism", [])  # its communities read the operator's norms too


@pytest.mark.parametrize(
    "part",
    [
        {"method": "rewrite", "guide": "arm"},
        {"method": "principles", "guide": "arm"},
        {"method": "pluralism", "mode": "overton", "communities": {"a": {"guide": "arm"}, "b": {"system": "b"}}},
    ],
)
def test_nobody_writes_unsteered_where_the_operator_steers(post: Post, part: dict[str, Any]) -> None:
    answered = post("steered", {"prompt": [part]})
    assert answered.status_code == 403, answered.text
    assert answered.json()["error"]["param"].startswith("decoding.prompt.0")
    assert parts(post("steered", {"prompt": [{"method": "rewrite", "max_tokens": 3}]})) == [("rewrite", [])]


def test_a_part_named_as_strategy_stays_under_the_operators_search(post: Post) -> None:
    told = parts(post("twice", {"strategy": "rewrite", "max_tokens": 3}))
    assert told == [LAW, ("persona", []), ("rewrite", [])]


def test_a_special_token_is_found_in_pieces_of_json(post: Post) -> None:
    refused(post("lawful", {"prompt": [{"method": "persona", "text": "<eos>"}]}), "decoding")


@pytest.mark.parametrize(
    "prompt", [[{"method": "nrms"}], [{"method": "best_of_n"}], [{"method": "norms", "kk": 1}], ["norms"], [{}]]
)
def test_a_floor_of_no_prompt_parts_is_refused(prompt: list[Any]) -> None:
    with pytest.raises(ValidationError):
        Policy.model_validate({"floor": {"prompt": prompt}})


def test_prompt_is_no_field_that_completions_lose() -> None:
    assert Policy.model_validate({"forbidden": ["prompt"]}).forbidden == {"prompt"}
