"""/v1/profiles over HTTP: what a caller stores for its users, sees, uses and erases."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest

from trimtab.decoders.library import Library, Profiles
from trimtab.engine.settings import EngineSettings
from trimtab.llm import LLM
from trimtab.server.settings import Settings

Start = Callable[..., Any]
Client = Callable[[str], httpx2.Client]
KEYS: dict[str, Any] = {
    name: {"sha256": hashlib.sha256(name.encode()).hexdigest()} for name in ("anna", "bert", "few", "plain", "searcher")
}
POLICIES = {
    "few": {"limits": {"requests_per_minute": 1}},
    "plain": {"strategies": [], "guides": []},
    "searcher": {"strategies": ["best_of_n"], "guides": ["brevity"]},
}


@pytest.fixture(scope="module")
def client(model_folder: Path, start_shared: Start) -> Iterator[Client]:
    """A client with one of the keys."""
    engine = EngineSettings(model=str(model_folder), dtype="float32", device="cpu", threads=1, pool_tokens=4096)
    keys = {name: {**key, "policy": name if name in POLICIES else None} for name, key in KEYS.items()}
    settings = Settings.model_validate({"keys": keys, "policies": POLICIES})
    opened: list[httpx2.Client] = []
    with closing(Library()) as library, LLM(settings=engine, library=library) as llm:
        url = start_shared(llm, settings).url

        def client(key: str) -> httpx2.Client:
            opened.append(httpx2.Client(base_url=url, timeout=60, headers={"authorization": f"Bearer {key}"}))
            return opened[-1]

        yield client
        for each in opened:
            each.close()


@pytest.fixture
def anna(client: Client) -> httpx2.Client:
    """A caller without profiles."""
    anna = client("anna")
    for profile in anna.get("/v1/profiles").json()["data"]:
        anna.delete(f"/v1/profiles/{profile['id']}")
    return anna


def ask(client: httpx2.Client, **decoding: Any) -> httpx2.Response:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "decoding": decoding}
    return client.post("/v1/chat/completions", json=body)


def test_a_profile_is_stored_read_replaced_and_erased(anna: httpx2.Client) -> None:
    stored = anna.put("/v1/profiles/user-1", json={"weights": {"brevity": 0.75, "length": -1}})
    assert stored.status_code == 200, stored.text
    told = {"id": "user-1", "weights": {"brevity": 0.75, "length": -1.0}, "text": None, "infer": None}
    assert stored.json() == told == anna.get("/v1/profiles/user-1").json()
    anna.put("/v1/profiles/user-1", json={"text": "I am new to this."})
    anna.put("/v1/profiles/a-b@c.d", json={"weights": {"brevity": 1}})
    kept = anna.get("/v1/profiles").json()["data"]
    assert [(each["id"], each["text"]) for each in kept] == [("a-b@c.d", None), ("user-1", "I am new to this.")]
    assert anna.delete("/v1/profiles/user-1").status_code == 204
    for method in ("GET", "DELETE"):
        gone = anna.request(method, "/v1/profiles/user-1")
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "profile_not_found")
    assert [each["id"] for each in anna.get("/v1/profiles").json()["data"]] == ["a-b@c.d"]


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"weights": {"brevit": 1.0}}, "weights.brevit", "did you mean 'brevity'?"),
        ({"weights": {"brevity": 1.5}}, "weights.brevity", "less than or equal to 1"),
        ({"weights": {"brevity": "much"}}, "weights.brevity", ""),
        ({"weights": {}}, "weights", ""),
        ({"text": ""}, "text", ""),
        ({"text": "x" * 4001}, "text", ""),
        ({"infer": "nobody"}, "infer", "no preference guide"),
        ({"profile": "other"}, "profile", "unknown key"),
        ({"wieghts": {}}, "wieghts", "did you mean 'weights'?"),
        ({}, None, "exactly one"),
        ({"text": "x", "infer": "y"}, None, "exactly one"),
    ],
)
def test_what_no_request_could_use_is_not_stored(
    anna: httpx2.Client, body: dict[str, Any], param: str | None, words: str
) -> None:
    refused = anna.put("/v1/profiles/user-1", json=body)
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, param), refused.text
    assert words in error["message"]
    assert anna.get("/v1/profiles").json()["data"] == []


def test_nobody_sees_or_names_the_profiles_of_another_key(anna: httpx2.Client, client: Client) -> None:
    anna.put("/v1/profiles/user-1", json={"weights": {"brevity": 1}})
    bert = client("bert")
    assert bert.get("/v1/profiles").json()["data"] == []
    assert bert.get("/v1/profiles/user-1").status_code == 404
    assert bert.delete("/v1/profiles/user-1").status_code == 404
    assert ask(bert, strategy="best_of_n", n=2, preference={"profile": "user-1"}).status_code == 400
    bert.put("/v1/profiles/user-1", json={"text": "Bert's own."})
    assert anna.get("/v1/profiles/user-1").json()["weights"] == {"brevity": 1.0}
    bert.delete("/v1/profiles/user-1")
    assert anna.get("/v1/profiles/user-1").status_code == 200
    assert client("nobody").get("/v1/profiles").status_code == 401


def test_requests_decode_by_the_profile_as_it_is_now(anna: httpx2.Client) -> None:
    decoding: dict[str, Any] = {"strategy": "best_of_n", "n": 4, "preference": {"profile": "user-1"}}
    missing = ask(anna, **decoding)
    assert (missing.status_code, missing.json()["error"]["param"]) == (400, "decoding.preference.profile")
    for attribute in ("brevity", "length"):
        anna.put("/v1/profiles/user-1", json={"weights": {attribute: 1}})
        answered = ask(anna, **decoding)
        assert answered.status_code == 200, answered.text
        assert all(list(each["rewards"]) == [attribute] for each in answered.json()["decoding"]["candidates"])
    anna.delete("/v1/profiles/user-1")
    assert ask(anna, **decoding).status_code == 400


def test_a_policy_judges_what_stands_in_the_profile(client: Client) -> None:
    decoding: dict[str, Any] = {"strategy": "best_of_n", "n": 2, "preference": {"profile": "user-1"}}
    searcher = client("searcher")
    searcher.put("/v1/profiles/user-1", json={"weights": {"brevity": 1}})
    assert ask(searcher, **decoding).status_code == 200
    searcher.put("/v1/profiles/user-1", json={"weights": {"length": 1}})
    refused = ask(searcher, **decoding)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "policy_violation")
    assert "'length'" in refused.json()["error"]["message"]
    plain = client("plain")
    plain.put("/v1/profiles/user-1", json={"weights": {"brevity": 1}})
    assert ask(plain, **decoding).status_code == 403


def test_profiles_count_as_requests(client: Client) -> None:
    few = client("few")
    assert few.put("/v1/profiles/user-1", json={"text": "x"}).status_code == 200
    assert few.put("/v1/profiles/user-2", json={"text": "x"}).status_code == 429


def test_what_a_policy_has_judged_is_what_runs(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile that changes between the review and the run would get around the policy."""
    changing = iter([{"weights": {"brevity": 1.0}}, {"weights": {"length": 1.0}}])
    monkeypatch.setattr(Profiles, "get", lambda self, tenant, id_: next(changing))
    answered = ask(client("searcher"), strategy="best_of_n", n=2, preference={"profile": "user-1"})
    assert answered.status_code == 200, answered.text
    assert all(list(each["rewards"]) == ["brevity"] for each in answered.json()["decoding"]["candidates"])
