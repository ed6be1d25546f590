"""A reward of one server judged by another one: the same scores, and what callers are told when it fails."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fake_scorer import FakeScorer
from folders import classifier_folder
from running import Running
from starlette.responses import JSONResponse
from tiny import tiny_folder
from wire import metrics

from trimtab import LLM, EngineSettings
from trimtab.server.doctor import examine
from trimtab.server.errors import api_error
from trimtab.server.settings import Policy, ServerSettings, Settings

TASTE = {"model": "base", "max_tokens": 6, "seed": 3, "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("far")
    tiny_folder(place / "base")
    classifier_folder(place / "taste", seed=1)
    classifier_folder(place / "mood", seed=2, labels=3)
    return place


def settings(place: Path, **guides: object) -> EngineSettings:
    told = {"model": str(place / "base"), "device": "cpu", "threads": 1, "pool_tokens": 2048, "guides": guides}
    return EngineSettings.model_validate({**told, "guide_failures": 2, "guide_retry_after": 5})


@pytest.fixture(scope="module")
def there(place: Path) -> Iterator[Running]:
    """The server that has the rewards."""
    local = {name: {"role": "reward", "model": str(place / name)} for name in ("taste", "mood")}
    local["mood"]["label"] = "LABEL_1"
    with LLM(settings=settings(place, **local)) as llm:
        running = Running(llm, ServerSettings())
        yield running
        running.stop()


@pytest.fixture
def scorer() -> Iterator[FakeScorer]:
    scorer = FakeScorer("trimtab")
    yield scorer
    scorer.stop()


@pytest.fixture
def here(place: Path, there: Running, scorer: FakeScorer, start: Callable[..., Running]) -> Iterator[Running]:
    """The server whose rewards are judged there, beside one of its own, and one by a fake."""
    far = {"role": "remote_reward", "url": there.url}
    guides = {
        "near": {"role": "reward", "model": str(place / "taste")},
        "far": {**far, "guide": "taste"},
        "mood": {**far, "guide": "mood", "label": "LABEL_1"},
        "fake": {"role": "remote_reward", "url": scorer.url, "guide": "taste", "retries": 0},
    }
    with LLM(settings=settings(place, **guides)) as llm:
        yield start(llm)


def best(reward: object, **changes: object) -> dict[str, Any]:
    return {**TASTE, "decoding": {"strategy": "best_of_n", "n": 4, "reward": reward}, **changes}


def chat(url: str, body: dict[str, Any]) -> httpx2.Response:
    return httpx2.post(url + "/v1/chat/completions", json=body, timeout=60)


def test_searches_choose_as_by_a_reward_of_ones_own(here: Running) -> None:
    near, far = (chat(here.url, best(name)).json() for name in ("near", "far"))
    assert far["choices"] == near["choices"]
    ours, theirs = ([each["reward"] for each in told["decoding"]["candidates"]] for told in (near, far))
    assert theirs == pytest.approx(ours, abs=1e-5)
    assert far["decoding"]["model_tokens"]["far"] == near["decoding"]["model_tokens"]["near"]
    both = {"sum": [{"guide": "near", "weight": 1.0}, {"guide": "far", "weight": -1.0}]}
    nothing = [each["reward"] for each in chat(here.url, best(both)).json()["decoding"]["candidates"]]
    assert nothing == pytest.approx([0.0] * 4, abs=1e-5)


def test_callers_get_its_scores_and_classes(here: Running, there: Running) -> None:
    pairs = [{"prompt": "Hi", "answer": answer} for answer in ("a", "good", "worse than that")]

    def told(url: str, path: str, model: str) -> list[Any]:
        response = httpx2.post(url + path, json={"model": model, "pairs": pairs}, timeout=60)
        return [entry.get("score", entry.get("probs")) for entry in response.json()["data"]]

    assert told(here.url, "/v1/score", "far") == pytest.approx(told(there.url, "/v1/score", "taste"))
    for ours, theirs in zip(
        told(here.url, "/v1/classify", "mood"), told(there.url, "/v1/classify", "mood"), strict=True
    ):
        assert ours == pytest.approx(theirs)


def test_what_is_told_of_it(here: Running, there: Running, place: Path) -> None:
    cards = {card["name"]: card for card in httpx2.get(here.url + "/v1/guides").json()["data"]}
    far = cards["far"]
    assert (far["role"], far["model"], far["scores_answers"], far["scores_candidates"]) == (
        "remote_reward",
        "taste",
        True,
        False,
    )
    assert [each["name"] for each in far["contract"]["findings"]] == ["route", "scores", "batches"]
    assert far["contract"]["ok"]
    assert there.url not in str(cards), "addresses are no caller's business"
    guides = {"far": {"role": "remote_reward", "url": there.url, "guide": "taste"}}
    lines = [check.line for check in examine(Settings(engine=settings(place, **guides)))]
    assert any("guide far: remote_reward taste, scores whole answers only" in line for line in lines)
    assert any("route of far: it answers by /v1/score in conversations" in line for line in lines)


def test_a_policy_may_rest_on_it(place: Path, there: Running, start: Callable[..., Running]) -> None:
    guides = {"far": {"role": "remote_reward", "url": there.url, "guide": "taste"}}
    floor = {"guard": {"reward": "far", "at_least": 1e6}}
    policies = {"strict": Policy.model_validate({"floor": floor})}
    with LLM(settings=settings(place, **guides)) as llm:
        url = start(llm, Settings(policies=policies, default_policy="strict")).url
        answered = chat(url, TASTE)
        assert answered.status_code == 200, answered.text
        assert answered.json()["decoding"]["stopped_by"] == "abstained"


def test_failures_as_callers_see_them(here: Running, scorer: FakeScorer) -> None:
    def refused() -> httpx2.Response:
        return chat(here.url, best("fake"))

    scorer.before = lambda path, body: JSONResponse({"secret": "text"}, 400)
    wrong = refused()
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (502, "remote_error")
    assert wrong.json()["error"]["type"] == "server_error"
    assert wrong.headers["x-should-retry"] == "false"
    scorer.before = lambda path, body: JSONResponse({}, 500)
    failed = refused()
    assert (failed.status_code, failed.headers.get("x-should-retry")) == (502, None)
    scorer.before = lambda path, body: JSONResponse({}, 503, {"retry-after": "41"})
    busy = refused()
    assert (busy.status_code, busy.json()["error"]["code"]) == (503, "remote_unavailable")
    assert busy.headers["retry-after"] == "41"
    assert "'fake'" in busy.json()["error"]["message"]
    for response in (wrong, failed, busy):
        assert scorer.url not in response.text
        assert "secret" not in response.text
    left_alone = refused()  # the second failure in a row of the server itself
    assert (left_alone.status_code, left_alone.json()["error"]["code"]) == (503, "guide_unavailable")
    told = metrics(here.url)
    assert told['trimtab:remote_up{remote="fake"}'] == 0
    assert told['trimtab:remote_up{remote="far"}'] == 1
    assert told['trimtab:remote_failures_total{kind="refused",remote="fake"}'] >= 1
    assert told['trimtab:request_refused_total{reason="remote"}'] == 1
    assert chat(here.url, best("far")).status_code == 200


def test_a_stream_ends_with_the_error(here: Running, scorer: FakeScorer) -> None:
    scorer.before = lambda path, body: JSONResponse({}, 503)
    text = chat(here.url, best("fake", stream=True, stream_options={"include_usage": True})).text
    assert "remote_unavailable" in text


def test_a_guide_comes_and_goes_while_the_server_runs(place: Path, there: Running) -> None:
    from trimtab.engine.guides.config import RemoteRewardConfig
    from trimtab.engine.rewards import Pair

    with LLM(settings=settings(place)) as llm:
        llm.load_guide("far", RemoteRewardConfig(url=there.url, guide="taste")).result(30)
        assert len(llm.score("far", [Pair((), "a"), Pair((), "b")])) == 2
        assert set(llm.stats.remotes) == {"far"}
        llm.unload_guide("far").result(30)
        assert llm.stats.remotes == {}


def test_the_base_has_no_name_in_messages() -> None:
    from trimtab.engine.errors import RemoteError, RemoteUnavailable

    for error in (RemoteError("the server at http://a"), RemoteUnavailable("the server at http://a")):
        assert "the base model" in api_error(error).detail
        assert "http" not in api_error(error).detail
