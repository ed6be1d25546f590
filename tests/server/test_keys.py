"""API keys: where they are read from, and who has one."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import AuthenticationError, OpenAI

from trimtab.llm import LLM
from trimtab.server.keys import Key, KeyMissing, bearer, digest, generate, owner
from trimtab.server.settings import InvalidSettings, Settings

Start = Callable[..., Any]
GUARDED = (
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/score"),
    ("POST", "/v1/classify"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("GET", "/v1/strategies"),
    ("GET", "/v1/guides"),
    ("GET", "/v1/machine"),
)
OPERATORS = (
    ("GET", "/admin/state"),
    ("POST", "/admin/reload"),
    ("POST", "/admin/models"),
    ("DELETE", "/admin/models/tiny"),
    ("POST", "/admin/guides"),
    ("DELETE", "/admin/guides/brevity"),
)
OPEN = ("/health", "/ready", "/version", "/metrics")
ANN, BEN, ADMIN = "ann-secret", "ben-secret", "admin-secret"


def sha(key: str) -> dict[str, str]:
    return {"sha256": hashlib.sha256(key.encode()).hexdigest()}


@pytest.fixture(scope="module")
def locked(llm: LLM, start_shared: Start) -> str:
    settings = Settings.model_validate({"keys": {"ann": sha(ANN), "ben": sha(BEN)}, "admin_key": sha(ADMIN)})
    return str(start_shared(llm, settings).url)


def with_key(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize(("method", "path"), GUARDED + OPERATORS)
@pytest.mark.parametrize(
    "header", [{}, with_key("wrong"), {"authorization": "Bearer"}, {"authorization": f"Basic {ANN}"}]
)
def test_nothing_is_done_for_strangers(locked: str, method: str, path: str, header: dict[str, str]) -> None:
    answer = httpx2.request(method, locked + path, headers=header, json={} if method == "POST" else None)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    error = answer.json()["error"]
    assert error["type"] == "authentication_error"
    assert error["code"] == ("invalid_api_key" if header == with_key("wrong") else "missing_api_key")


def test_a_stranger_is_turned_away_before_the_body_is_read(locked: str) -> None:
    answer = httpx2.post(locked + "/v1/chat/completions", content=b"{", headers={"content-type": "application/json"})
    assert answer.status_code == 401


@pytest.mark.parametrize("path", OPEN)
def test_what_operators_watch_needs_no_key(locked: str, path: str) -> None:
    assert httpx2.get(locked + path).status_code == 200


def test_callers_and_the_operator_have_different_keys(locked: str) -> None:
    assert httpx2.get(locked + "/v1/models", headers=with_key(ANN)).status_code == 200
    assert httpx2.get(locked + "/v1/models", headers=with_key(ADMIN)).status_code == 401
    assert httpx2.get(locked + "/admin/state", headers=with_key(ADMIN)).status_code == 200
    assert httpx2.get(locked + "/admin/state", headers=with_key(ANN)).status_code == 401


def test_without_an_admin_key_nobody_is_the_operator(llm: LLM, start: Start) -> None:
    url = start(llm, Settings()).url
    assert httpx2.get(url + "/v1/models").status_code == 200
    for method, path in OPERATORS:
        assert httpx2.request(method, url + path, headers=with_key(ADMIN)).status_code == 401


def test_openai_clients_send_their_key(locked: str) -> None:
    messages: Any = [{"role": "user", "content": "Hi"}]
    with OpenAI(base_url=locked + "/v1", api_key=BEN, max_retries=0) as client:
        answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=2)
        assert answer.usage is not None
    with OpenAI(base_url=locked + "/v1", api_key="other", max_retries=0) as client, pytest.raises(AuthenticationError):
        client.chat.completions.create(model="tiny", messages=messages, max_tokens=2)


def test_callers_are_counted_by_name(locked: str) -> None:
    def spent() -> dict[str, int]:
        callers = httpx2.get(locked + "/admin/state", headers=with_key(ADMIN)).json()["callers"]
        assert all(each["requests"] == each["rows"] == 0 for each in callers.values())
        return {name: callers.get(name, {"model_tokens": 0})["model_tokens"] for name in ("ann", "ben")}

    before = spent()
    body = {"model": "tiny", "prompt": "Hi", "max_tokens": 3, "ignore_eos": True}
    assert httpx2.post(locked + "/v1/completions", json=body, headers=with_key(ANN)).status_code == 200
    after = spent()
    assert after["ann"] >= before["ann"] + 3
    assert after["ben"] == before["ben"]
    assert 'trimtab:caller_model_tokens_total{caller="ann"}' in httpx2.get(locked + "/metrics").text


def test_a_key_from_its_digest_a_variable_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    path.write_text("sesame\n", encoding="utf-8")
    monkeypatch.setenv("SESAME", "sesame")
    made = [Key.model_validate(each) for each in (sha("sesame"), {"env": "SESAME"}, {"file": str(path)})]
    assert {key.digest() for key in made} == {digest("sesame")}


@pytest.mark.parametrize("wrong", [{}, {"env": "A", "file": "b"}, {"sha256": "abc"}, {"key": "plain"}])
def test_a_key_that_is_none(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        Key.model_validate(wrong)


def test_keys_that_are_not_there_are_told_at_the_start(llm: LLM, start: Start, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text(" \n", encoding="utf-8")
    for key, words in (({"env": "NOT_THERE"}, "NOT_THERE"), ({"file": str(empty)}, "empty")):
        with pytest.raises(KeyMissing, match=words):
            Key.model_validate(key).digest()
        with pytest.raises(InvalidSettings, match=r"keys\.ann"):
            start(llm, Settings.model_validate({"keys": {"ann": key}}))


def test_one_key_is_not_two_callers(llm: LLM, start: Start) -> None:
    with pytest.raises(InvalidSettings, match="the same key"):
        start(llm, Settings.model_validate({"keys": {"ann": sha("x"), "ben": sha("x")}}))


def test_reading_the_header() -> None:
    assert bearer("Bearer a b") == "a b"
    assert bearer("bearer abc") == "abc"
    assert bearer("Basic abc") is None
    assert bearer("Bearer ") is None
    assert bearer(None) is None


def test_finding_the_owner() -> None:
    known = {"ann": digest("a"), "ben": digest("b")}
    assert [owner(key, known) for key in ("a", "b", "c", "")] == ["ann", "ben", None, None]
    assert len({generate() for _ in range(100)}) == 100


def test_tokenizing_counts_against_the_limits_of_a_key(llm: LLM, start: Start) -> None:
    policies = {"few": {"limits": {"requests_per_minute": 2}}}
    url = start(llm, Settings.model_validate({"policies": policies, "default_policy": "few"})).url
    asked = [("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]}), ("/tokenize", {"prompt": "a"})]
    codes = [httpx2.post(url + path, json=body, timeout=30).status_code for path, body in asked]
    assert codes == [200, 200, 429]
