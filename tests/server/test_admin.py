"""What the operator changes while the server runs: models and guides."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from trimtab.engine.settings import EngineSettings
from trimtab.llm import LLM
from trimtab.server.settings import Settings

Start = Callable[..., Any]
KEY = {"sha256": hashlib.sha256(b"op").hexdigest()}
WORDS = {"role": "program", "kind": "keywords", "words": ["a"]}


@pytest.fixture
def engine(model_folder: Path) -> dict[str, Any]:
    return {"model": str(model_folder), "dtype": "float32", "device": "cpu", "threads": 1, "pool_tokens": 1024}


@pytest.fixture
def operator(engine: dict[str, Any], start: Start) -> Any:
    llm = LLM(settings=EngineSettings.model_validate(engine))
    settings = Settings.model_validate({"admin_key": KEY, "presets": {"cold": {"sampling": {"temperature": 0.0}}}})
    running = start(llm, settings)
    with httpx2.Client(base_url=running.url, timeout=60, headers={"authorization": "Bearer op"}) as client:
        client.service = running.service  # type: ignore[attr-defined]
        yield client
    running.service.close()


def complete(client: httpx2.Client, model: str, **changes: Any) -> httpx2.Response:
    body = {"model": model, "prompt": "Hi", "max_tokens": 4, **changes}
    return client.post("/v1/completions", json=body)


def listed(client: httpx2.Client) -> list[str]:
    return [card["id"] for card in client.get("/v1/models").json()["data"]]


def test_a_second_model_with_the_same_presets(operator: Any, engine: dict[str, Any], tmp_path: Path) -> None:
    second = tmp_path / "second"
    shutil.copytree(engine["model"], second)
    loaded = operator.post("/admin/models", json={"engine": {**engine, "model": str(second)}})
    assert (loaded.status_code, loaded.json()["id"]) == (201, "second")
    assert listed(operator) == ["tiny", "second", "tiny:cold", "second:cold"]
    first, other = (complete(operator, model, temperature=0).json() for model in ("tiny", "second"))
    assert first["choices"][0]["text"] == other["choices"][0]["text"]
    assert other["model"] == "second"
    assert complete(operator, "second:cold").status_code == 200
    assert 'trimtab:generation_tokens_total{model="second"}' in operator.get("/metrics").text

    assert operator.post("/admin/models", json={"engine": {**engine, "model": str(second)}}).status_code == 409
    assert operator.delete("/admin/models/second").json() == {"name": "second"}
    assert listed(operator) == ["tiny", "tiny:cold"]
    assert complete(operator, "second").status_code == 404
    assert complete(operator, "tiny").status_code == 200
    assert operator.delete("/admin/models/second").status_code == 404


def test_without_any_model_the_server_is_not_ready(operator: Any, engine: dict[str, Any]) -> None:
    assert operator.delete("/admin/models/tiny").status_code == 200
    assert operator.get("/health").status_code == 200
    assert operator.get("/ready").status_code == 503
    assert complete(operator, "tiny").status_code == 404
    assert operator.post("/tokenize", json={"prompt": "a"}).status_code == 404
    assert operator.post("/admin/models", json={"engine": engine}).status_code == 201
    assert operator.get("/ready").status_code == 200
    assert complete(operator, "tiny").status_code == 200


@pytest.mark.parametrize(
    ("engine_given", "param"),
    [
        ({"model": "/no/such/folder"}, "engine.model"),
        ({"modl": "x"}, "engine.modl"),
        ({"model": "x", "max_rows": 0}, "engine.max_rows"),
    ],
)
def test_a_model_that_cannot_be_loaded(operator: Any, engine_given: dict[str, Any], param: str) -> None:
    refused = operator.post("/admin/models", json={"engine": engine_given})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert listed(operator) == ["tiny", "tiny:cold"]


SENT = {"url": "http://127.0.0.1:9", "api_key_env": "HOME"}


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("guides", {"name": "x", "config": {"role": "remote_reward", **SENT}}),
        ("models", {"engine": {"model": "x", "guides": {}, "remote": SENT}}),
        ("models", {"engine": {"model": "x", "guides": {"y": {"role": "remote_reward", **SENT}}}}),
    ],
)
def test_no_variable_of_the_environment_is_sent_elsewhere(operator: Any, route: str, body: dict[str, Any]) -> None:
    refused = operator.post(f"/admin/{route}", json=body)
    assert refused.status_code == 400
    assert "api_key_env" in refused.json()["error"]["message"]


def test_a_guide_comes_and_goes(operator: Any) -> None:
    search = {"decoding": {"strategy": "best_of_n", "n": 2, "reward": "words"}}
    assert complete(operator, "tiny", **search).status_code == 400
    loaded = operator.post("/admin/guides", json={"name": "words", "config": WORDS})
    assert loaded.status_code == 201, loaded.text
    assert loaded.json()["scores_answers"] is True
    assert complete(operator, "tiny", **search).status_code == 200
    assert "words" in [card["name"] for card in operator.get("/v1/guides").json()["data"]]
    assert operator.post("/admin/guides", json={"name": "words", "config": WORDS}).status_code == 409
    assert operator.delete("/admin/guides/words").json() == {"name": "words"}
    assert complete(operator, "tiny", **search).status_code == 400
    assert operator.delete("/admin/guides/words").status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {"name": "x", "config": {"role": "reward", "model": "/no/such/folder"}},
        {"name": "x", "config": {"role": "nothing"}},
        {"name": "base", "config": WORDS},
        {"name": "", "config": WORDS},
        {"config": WORDS},
        {"name": "x", "config": WORDS, "extra": 1},
    ],
)
def test_a_guide_that_cannot_be_loaded(operator: Any, body: dict[str, Any]) -> None:
    before = operator.get("/v1/guides").json()
    assert operator.post("/admin/guides", json=body).status_code == 400
    assert operator.get("/v1/guides").json() == before
    assert complete(operator, "tiny").status_code == 200


def test_what_presets_need_cannot_be_unloaded(engine: dict[str, Any], start: Start) -> None:
    with LLM(settings=EngineSettings.model_validate(engine)) as llm:
        preset = {"decoding": {"strategy": "best_of_n", "n": 2, "reward": "brevity"}}
        running = start(llm, Settings.model_validate({"admin_key": KEY, "presets": {"short": preset}}))
        with httpx2.Client(base_url=running.url, timeout=60, headers={"authorization": "Bearer op"}) as operator:
            refused = operator.delete("/admin/guides/brevity")
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "in_use")
            assert "preset short" in refused.json()["error"]["message"]
            assert operator.delete("/admin/guides/length").status_code == 200


def test_the_state_tells_models_guides_and_callers(operator: Any) -> None:
    complete(operator, "tiny")
    told = operator.get("/admin/state").json()
    assert [card["id"] for card in told["models"]] == ["tiny", "tiny:cold"]
    assert {card["name"] for card in told["guides"]["tiny"]} >= {"brevity", "length"}
    assert told["callers"]["anonymous"]["model_tokens"] > 0
