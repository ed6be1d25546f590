"""Presets: decoding under a model id."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from trimtab.engine.sampling import SamplingParams
from trimtab.llm import LLM
from trimtab.requests import GenerationRequest
from trimtab.server.presets import Preset
from trimtab.server.settings import InvalidSettings, Settings

Start = Callable[..., Any]
SHORT = {"strategy": "best_of_n", "n": 3, "reward": "brevity"}
PRESETS: dict[str, Any] = {
    "short": {"description": "The shortest of three.", "decoding": SHORT, "sampling": {"temperature": 0.5}},
    "cold": {"sampling": {"temperature": 0.0, "max_tokens": 4}},
}
ASKED = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "seed": 1}


@pytest.fixture(scope="module")
def http(llm: LLM, start_shared: Start) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=start_shared(llm, Settings.model_validate({"presets": PRESETS})).url, timeout=60) as it:
        yield it


def ask(http: httpx2.Client, model: str, **changes: Any) -> dict[str, Any]:
    answer = http.post("/v1/chat/completions", json={**ASKED, "model": model, **changes})
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


def test_presets_are_models(http: httpx2.Client) -> None:
    listed = {card["id"]: card for card in http.get("/v1/models").json()["data"]}
    assert list(listed) == ["tiny", "tiny:short", "tiny:cold"]
    assert listed["tiny:short"]["parent"] == "tiny"
    assert listed["tiny:short"]["description"] == "The shortest of three."
    assert "parent" not in listed["tiny"]
    assert http.get("/v1/models/tiny:short").json() == listed["tiny:short"]


def test_a_preset_decodes_as_its_decoding_object_would(http: httpx2.Client) -> None:
    preset, spelled = ask(http, "tiny:short"), ask(http, "tiny", decoding=SHORT, temperature=0.5)
    assert preset["model"] == "tiny:short"
    assert preset["decoding"]["preset"] == "short"
    assert "preset" not in spelled["decoding"]
    assert preset["decoding"]["spec"] == spelled["decoding"]["spec"]
    assert preset["choices"] == spelled["choices"]
    assert preset["decoding"]["candidates"] == spelled["decoding"]["candidates"]


def test_a_request_wins_over_its_preset(http: httpx2.Client) -> None:
    assert ask(http, "tiny:short", decoding={"n": 5})["decoding"]["spec"]["n"] == 5
    assert ask(http, "tiny:short", decoding={"trace": "tokens"})["decoding"]["spec"]["n"] == 3
    other = ask(http, "tiny:short", decoding={"strategy": "sample"})["decoding"]["spec"]
    assert other == ask(http, "tiny")["decoding"]["spec"]
    cold, warm = ask(http, "tiny:cold", seed=1), ask(http, "tiny:cold", seed=2, temperature=1.0)
    assert cold["choices"] == ask(http, "tiny:cold", seed=2)["choices"]
    assert cold["choices"] != warm["choices"]


def test_sampling_of_a_preset_counts_where_the_request_is_silent(http: httpx2.Client) -> None:
    answer = http.post("/v1/chat/completions", json={"messages": ASKED["messages"], "model": "tiny:cold"})
    assert answer.json()["usage"]["completion_tokens"] <= 4


def test_streams_of_a_preset(http: httpx2.Client) -> None:
    body = {**ASKED, "model": "tiny:short", "stream": True}
    text = http.post("/v1/chat/completions", json=body).text
    assert '"model":"tiny:short"' in text
    assert '"preset":"short"' in text


@pytest.mark.parametrize("model", ["tiny:shrt", "tiny:", "other:short", "short"])
def test_an_unknown_preset_is_an_unknown_model(http: httpx2.Client, model: str) -> None:
    answer = http.post("/v1/chat/completions", json={**ASKED, "model": model})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("preset", "words"),
    [
        ({"decoding": {"strategy": "best_of_m"}}, "did you mean 'best_of_n'"),
        ({"decoding": {**SHORT, "reward": "none"}}, "none"),
        ({"decoding": {"strategy": "genarm", "arm": "nobody"}}, "nobody"),
    ],
)
def test_a_preset_that_cannot_work_is_told_at_the_start(
    llm: LLM, start: Start, preset: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidSettings, match=words) as refused:
        start(llm, Settings.model_validate({"presets": {"wrong": preset}}))
    assert str(refused.value).startswith("preset wrong: ")


@pytest.mark.parametrize("preset", [{"sampling": {"temprature": 1}}, {"sampling": {"top_p": 2}}, {"decode": {}}])
def test_a_preset_with_mistakes_is_refused_by_the_settings(preset: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"presets\.wrong"):
        Settings.model_validate({"presets": {"wrong": preset}})


def test_only_what_was_set_wins() -> None:
    preset = Preset(sampling={"temperature": 0.5, "top_p": 0.9})
    request = GenerationRequest(prompt="a", sampling=SamplingParams(top_p=1.0))
    applied = preset.apply(request, frozenset(), None).sampling
    assert (applied.temperature, applied.top_p, applied.min_p) == (0.5, 1.0, 0.0)


def test_max_tokens_of_a_preset_are_not_taken_for_a_limit(llm: LLM, start: Start) -> None:
    server = {"limits": {"max_tokens": 20}}
    presets = {"short": {"sampling": {"max_tokens": 3}}, "long": {"sampling": {"max_tokens": 400}}}
    url = start(llm, Settings.model_validate({"server": server, "presets": presets})).url
    body = {"prompt": "Hi", "ignore_eos": True}

    def tokens(**asked: Any) -> int:
        answer = httpx2.post(url + "/v1/completions", json={**body, **asked}, timeout=60).json()
        return int(answer["usage"]["completion_tokens"])

    assert tokens(model="tiny:short") == 3
    assert tokens(model="tiny:short", max_tokens=5) == 5
    assert tokens(model="tiny:long") == 20
    assert tokens(model="tiny") == 16
