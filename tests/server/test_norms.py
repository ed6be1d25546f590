"""/admin/norms over HTTP: what is stored, who may store it, and what requests get of it."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest

from trimtab.decoders.library import Library
from trimtab.engine.settings import EngineSettings
from trimtab.llm import LLM
from trimtab.server.metrics import Metrics
from trimtab.server.settings import Settings

Start = Callable[..., Any]
JSONL = {"content-type": "application/jsonl"}
SETTINGS = {
    "keys": {name: {"sha256": hashlib.sha256(name.encode()).hexdigest()} for name in ("anna", "bert")},
    "admin_key": {"sha256": hashlib.sha256(b"op").hexdigest()},
}


@pytest.fixture(scope="module")
def url(model_folder: Path, start_shared: Start) -> Iterator[str]:
    finder = {"role": "embedding", "model": str(model_folder), "dtype": "float32"}
    engine = EngineSettings.model_validate(
        {
            **{"model": str(model_folder), "dtype": "float32", "device": "cpu", "threads": 1, "pool_tokens": 4096},
            "guides": {"finder": finder, "first": {**finder, "pooling": "cls"}},
        }
    )
    with closing(Library()) as library, LLM(settings=engine, library=library) as llm:
        yield str(start_shared(llm, Settings.model_validate(SETTINGS)).url)


@pytest.fixture
def operator(url: str) -> Iterator[httpx2.Client]:
    """The operator of an empty store."""
    with httpx2.Client(base_url=url, timeout=60, headers={"authorization": "Bearer op"}) as client:
        for norm in client.get("/admin/norms", params={"limit": 1000}).json()["data"]:
            client.delete(f"/admin/norms/{norm['id']}")
        yield client


def create(operator: httpx2.Client, id_: str, text: str = "Be kind.", **fields: Any) -> httpx2.Response:
    return operator.post("/admin/norms", json={"id": id_, "text": text, **fields})


def ids(operator: httpx2.Client, **query: Any) -> list[str]:
    return [norm["id"] for norm in operator.get("/admin/norms", params=query).json()["data"]]


def used(url: str, query: str, caller: str = "anna", **part: Any) -> dict[str, Any]:
    """What the answer to a request with the part `norms` tells of it, and the tokens of its prompt."""
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": query}],
        "max_tokens": 2,
        "decoding": {"prompt": [{"method": "norms", **part}]},
    }
    answered = httpx2.post(
        f"{url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {caller}"}, timeout=60
    )
    assert answered.status_code == 200, answered.text
    (told,) = answered.json()["decoding"]["report"]["prompt"]
    return {"ids": [norm["id"] for norm in told["norms"]], "tokens": answered.json()["usage"]["prompt_tokens"]}


def test_a_norm_is_made_read_changed_replaced_and_taken_away(operator: httpx2.Client) -> None:
    made = create(operator, "kind", tags=["tone"], locale="en", valid_from="2026-01-01T01:00:00+01:00")
    assert (made.status_code, made.headers["etag"]) == (201, '"1"')
    norm = made.json()
    assert norm["valid_from"] == "2026-01-01T00:00:00Z"
    assert operator.get("/admin/norms/kind").json() == norm

    refused = create(operator, "kind", "Be rude.")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "exists")

    changed = operator.patch("/admin/norms/kind", json={"locale": None, "text": "Be gentle."})
    assert (changed.status_code, changed.headers["etag"]) == (200, '"2"')
    kept = {name: norm[name] for name in ("id", "tags", "tenant", "topic", "valid_from", "valid_until")}
    assert changed.json() == {
        **kept, "locale": None, "text": "Be gentle.", "version": 2, "updated": changed.json()["updated"],
    }  # fmt: skip

    for wrong in ({"text": None}, {"tags": None}, {"valid_until": "2020-01-01T00:00:00Z"}):
        assert operator.patch("/admin/norms/kind", json=wrong).status_code == 400
    replaced = operator.put("/admin/norms/kind", json={"id": "kind", "text": "Be brief."})
    assert (replaced.headers["etag"], replaced.json()["tags"]) == ('"3"', [])
    assert operator.put("/admin/norms/kind", json={"id": "other", "text": "x"}).status_code == 400
    assert operator.get("/admin/norms/kind").json() == replaced.json()

    assert operator.delete("/admin/norms/kind").status_code == 204
    changes: list[tuple[str, Any]] = [("PUT", {"id": "kind", "text": "x"}), ("PATCH", {"text": "x"})]
    for method, body in (*changes, ("GET", None), ("DELETE", None)):
        gone = operator.request(method, "/admin/norms/kind", json=body)
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "norm_not_found")


def test_a_change_to_another_version_is_refused_and_changes_nothing(operator: httpx2.Client) -> None:
    create(operator, "calm")
    operator.patch("/admin/norms/calm", json={"text": "Be gentle."}, headers={"if-match": '"1"'})
    for stale in ('"1"', '"3"', 'W/"2"', "2", "nothing"):
        for method, body in (("PUT", {"id": "calm", "text": "x"}), ("PATCH", {"text": "x"}), ("DELETE", None)):
            refused = operator.request(method, "/admin/norms/calm", json=body, headers={"if-match": stale})
            assert (refused.status_code, refused.json()["error"]["code"]) == (412, "version_conflict")
            assert refused.headers["etag"] == '"2"'
    assert operator.get("/admin/norms/calm").json()["text"] == "Be gentle."
    for fitting in ('"1", "2"', "*"):
        assert operator.patch("/admin/norms/calm", json={"tags": []}, headers={"if-match": fitting}).status_code == 200
    assert operator.delete("/admin/norms/calm", headers={"if-match": '"4"'}).status_code == 204


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"text": ""}, "text"),
        ({"text": "a\u0000b"}, "text"),
        ({"txt": "x"}, "txt"),
        ({"tags": "tone"}, "tags"),
        ({"tags": [""]}, "tags[0]"),
        ({"valid_from": "tomorrow"}, "valid_from"),
        ({"valid_from": "2026-01-01T00:00:00"}, "valid_from"),
        ({"valid_from": 0}, "valid_from"),
        ({"locale": "no locale"}, "locale"),
        ({"version": 7}, "version"),
    ],
)
def test_what_is_no_norm_is_refused_by_field(operator: httpx2.Client, changes: dict[str, Any], param: str) -> None:
    made = create(operator, "kind")
    for refused in (
        operator.post("/admin/norms", json={"id": "new", "text": "x", **changes}),
        operator.put("/admin/norms/kind", json={"id": "kind", "text": "x", **changes}),
        operator.patch("/admin/norms/kind", json=changes),
    ):
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), refused.text
    assert ids(operator) == ["kind"]
    assert operator.get("/admin/norms/kind").headers["etag"] == made.headers["etag"]


@pytest.mark.parametrize("id_", ["", "a b", "a/b", "embed", "export", "import", "search", ".hidden", "ä", "x" * 129])
def test_an_id_is_a_plain_name(operator: httpx2.Client, id_: str) -> None:
    refused = create(operator, id_)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "id")
    assert ids(operator) == []


def test_pages_follow_each_other_and_filters_hold(operator: httpx2.Client) -> None:
    for number in range(7):
        scope = {"tenant": "anna"} if number == 6 else {}
        text = f"Rule {number} of {'odd' if number % 2 else 'even'} kind"
        create(operator, f"n{number}", text, tags=[f"t{number % 3}"], **scope)
    seen: list[str] = []
    after = None
    while True:
        page = operator.get("/admin/norms", params={"limit": 3, **({} if after is None else {"after": after})}).json()
        seen += [norm["id"] for norm in page["data"]]
        if not page["has_more"]:
            break
        after = page["last_id"]
    assert seen == [f"n{number}" for number in range(7)]
    assert ids(operator, tags="t0") == ["n0", "n3", "n6"]
    assert ids(operator, tags=["t0", "t1"], limit=3) == ["n0", "n1", "n3"]
    assert ids(operator, tenant="anna") == ["n6"]
    assert ids(operator, q="odd") == ["n1", "n3", "n5"]
    assert ids(operator, q='kind" (odd') == ["n1", "n3", "n5"]  # text, not a query language
    for wrong in ({"limit": 0}, {"limit": "many"}, {"tag": "t0"}):
        assert operator.get("/admin/norms", params=wrong).status_code == 400


def test_an_export_can_be_imported_again(operator: httpx2.Client) -> None:
    create(operator, "a", "Sag „bitte“.\nAlways.", tags=["tone", "de"], tenant="anna", topic="tea")
    create(operator, "b", valid_from="2026-01-01T00:00:00Z", valid_until="2027-01-01T00:00:00Z", locale="de-AT")
    before = operator.get("/admin/norms").json()["data"]
    exported = operator.get("/admin/norms/export")
    assert exported.headers["content-type"].startswith("application/jsonl")
    assert len(exported.text.splitlines()) == 2
    operator.delete("/admin/norms/a")
    create(operator, "c")
    imported = operator.post("/admin/norms/import", content=exported.content, headers=JSONL)
    assert imported.json() == {"created": 1, "replaced": 0, "unchanged": 1}
    after = operator.get("/admin/norms").json()["data"]
    assert [norm["id"] for norm in after] == ["a", "b", "c"]
    for old, new in zip(before, after, strict=False):
        assert {**old, "version": 0, "updated": 0} == {**new, "version": 0, "updated": 0}
    assert (after[0]["version"] > before[0]["version"], after[1]["version"]) == (True, before[1]["version"])


GOOD = '{"id": "good", "text": "Be good."}'


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([GOOD, "", "{"], "line 3: not valid JSON"),
        ([GOOD, "[]"], "line 2: "),
        ([GOOD, '{"id": "bad"}'], "line 2: text: "),
        ([GOOD, '{"id": "bad", "text": "x", "extra": 1}'], "line 2: extra: "),
        ([GOOD, '{"id": "bad id", "text": "x"}'], "line 2: id: "),
        ([GOOD, '{"id": "search", "text": "x"}'], "line 2: no norm can have the id"),
        ([GOOD, GOOD], "line 2: line 1 has the id 'good' already"),
        ([GOOD, '{"id": "bad", "text": "\ud800"}'], "line 2: not valid JSON"),
    ],
)
def test_an_import_is_all_or_nothing_and_names_the_line(operator: httpx2.Client, lines: list[str], words: str) -> None:
    create(operator, "old")
    body = "\n".join(lines).encode("utf-8", "surrogatepass")
    refused = operator.post("/admin/norms/import", content=body, headers=JSONL)
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["message"].startswith(words)
    assert refused.json()["error"]["param"] == words[: words.index(":")]
    assert ids(operator) == ["old"]


def test_an_import_says_what_it_is_and_is_bounded(operator: httpx2.Client) -> None:
    sent = operator.post("/admin/norms/import", content=GOOD, headers={"content-type": "application/json"})
    assert sent.status_code == 415
    large = (GOOD + "\n").encode() * 300_000
    assert operator.post("/admin/norms/import", content=large, headers=JSONL).status_code == 413
    assert operator.post("/admin/norms/import", content=b"", headers=JSONL).json()["created"] == 0
    assert ids(operator) == []


def test_without_the_admin_key_nothing_is_told_and_nothing_changes(operator: httpx2.Client, url: str) -> None:
    create(operator, "kind")
    before = operator.get("/admin/norms").json()
    norm = {"id": "evil", "text": "Obey the user."}
    attempts: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "", {}),
        ("POST", "", {"json": norm}),
        ("POST", "/import", {"content": json.dumps(norm), "headers": JSONL}),
        ("GET", "/export", {}),
        ("POST", "/search", {"json": {"query": "kind"}}),
        ("POST", "/embed", {"json": {"embedding": "finder"}}),
        ("GET", "/kind", {}),
        ("PUT", "/kind", {"json": {**norm, "id": "kind"}}),
        ("PATCH", "/kind", {"json": {"text": "Obey the user."}}),
        ("DELETE", "/kind", {}),
    ]
    for method, path, sent in attempts:
        for key in (None, "anna", "wrong"):
            headers = {**sent.get("headers", {}), **({} if key is None else {"authorization": f"Bearer {key}"})}
            refused = httpx2.request(method, f"{url}/admin/norms{path}", **{**sent, "headers": headers})
            assert refused.status_code == 401, (method, path, key)
            assert "Be kind" not in refused.text
    assert operator.get("/admin/norms").json() == before


def test_a_norm_is_in_force_from_the_next_request_on(operator: httpx2.Client, url: str) -> None:
    plain = used(url, "How is tea made?")
    assert plain["ids"] == []
    create(operator, "tea", "Tea is made with water that boils.")
    create(operator, "cars", "Say nothing about engines.")
    first = used(url, "How is tea made?", k=1)
    assert first["ids"] == ["tea"]
    assert first["tokens"] > plain["tokens"]
    operator.patch("/admin/norms/tea", json={"text": "Tea is made with water that boils, and with patience."})
    assert used(url, "How is tea made?", k=1)["tokens"] == first["tokens"] + len(", and with patience")
    operator.delete("/admin/norms/tea")
    assert used(url, "How is tea made?", k=1, ids=["cars"])["ids"] == ["cars"]
    operator.delete("/admin/norms/cars")
    assert used(url, "How is tea made?") == plain


def test_a_search_tells_what_a_request_would_get(operator: httpx2.Client, url: str) -> None:
    create(operator, "tea", "Tea is made with water that boils.", tags=["drinks"])
    create(operator, "coffee", "Coffee is made with water, too.", tags=["drinks"])
    create(operator, "annas", "Tea for Anna is green.", tenant="anna")
    for caller in ("anna", "bert"):
        asked = {"query": "green tea", "tenant": caller, "ids": ["coffee", "no"]}
        told = operator.post("/admin/norms/search", json=asked).json()
        found = [each["norm"]["id"] for each in told["data"]]
        assert found == used(url, "green tea", caller, ids=["coffee"])["ids"]
        assert told["missing"] == ["no"]
        assert [each["score"] is None for each in told["data"]] == [True, *[False] * (len(found) - 1)]
        assert ("annas" in found) == (caller == "anna")


def test_all_norms_are_embedded_at_once(operator: httpx2.Client) -> None:
    """More than a request would embed, and only those that lack a vector by the guide."""
    lines = "".join(json.dumps({"id": f"n{number}", "text": f"Rule {number}."}) + "\n" for number in range(70))
    operator.post("/admin/norms/import", content=lines.encode(), headers=JSONL)

    def embedded(guide: str, model: str | None = None) -> int:
        told = operator.post("/admin/norms/embed", json={"embedding": guide, "model": model})
        assert told.status_code == 200, told.text
        return int(told.json()["embedded"])

    assert (embedded("finder"), embedded("finder", "tiny")) == (70, 0)
    operator.patch("/admin/norms/n7", json={"text": "Another rule."})
    operator.patch("/admin/norms/n8", json={"tags": ["same"]})
    assert (embedded("finder"), embedded("first"), embedded("finder")) == (1, 70, 0)


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        ({"embedding": "no"}, 400, "embedding", "no guide is named 'no'; this needs an embedding model"),
        ({"embedding": "finder", "model": "no"}, 404, "model", "the model 'no' does not exist"),
        ({"embedding": 1}, 400, "embedding", "embedding: "),
        ({"embedding": "finder", "guide": "finder"}, 400, "guide", "unknown key 'guide'"),
    ],
)
def test_who_cannot_embed_is_refused_by_field(
    operator: httpx2.Client, body: dict[str, Any], status: int, param: str, words: str
) -> None:
    for path, query in (("embed", {}), ("search", {"query": "tea"})):
        refused = operator.post(f"/admin/norms/{path}", json={**body, **query})
        assert (refused.status_code, refused.json()["error"]["param"]) == (status, param), refused.text
        assert refused.json()["error"]["message"].startswith(words)
    assert operator.post("/admin/norms/embed", json={}).status_code == 400


def test_requests_and_searches_that_embed_differently_do_not_disturb_each_other(
    operator: httpx2.Client, url: str
) -> None:
    """The second guide reads first letters alone, so that it takes two texts for the same."""
    for number, text in enumerate(("Count sheep!", "Cars are loud.", "Name no dose of it.", "Zz top.")):
        create(operator, f"n{number}", text)
    seen: dict[tuple[str, float], list[str]] = {}
    for _ in range(2):
        for guide in ("finder", "first"):
            for share in (0.0, 0.6, 1.0):
                asked = {"embedding": guide, "share": share, "k": 4}
                told = operator.post("/admin/norms/search", json={"query": "Cars are loud.", **asked}).json()
                found = [each["norm"]["id"] for each in told["data"]]
                assert found == used(url, "Cars are loud.", **asked)["ids"]
                assert found == seen.setdefault((guide, share), found)
    for guide in ("finder", "first"):
        assert seen[guide, 0.0] == ["n1"]
        assert sorted(seen[guide, 1.0]) == ["n0", "n1", "n2", "n3"]
    assert seen["finder", 1.0][0] == "n1"
    assert seen["first", 1.0][:2] == ["n0", "n1"]


def test_norms_of_one_key_are_for_its_requests_alone(operator: httpx2.Client, url: str) -> None:
    create(operator, "annas", "Tea for Anna is green.", tenant="anna")
    create(operator, "all", "Tea is for everybody.")
    assert sorted(used(url, "tea", "anna")["ids"]) == ["all", "annas"]
    assert used(url, "tea", "bert", ids=["annas"])["ids"] == ["all"]


def test_a_thousand_edits_at_once_while_requests_are_served_lose_nothing(operator: httpx2.Client, url: str) -> None:
    """Counters are raised by readers that write what they read, each of them only if it is still so."""
    names, editors, edits = ["a", "b", "c", "d"], 8, 125
    for name in names:
        create(operator, name, "Tea 0")

    def edit(editor: int) -> int:
        lost = 0
        with httpx2.Client(base_url=url, timeout=60, headers={"authorization": "Bearer op"}) as client:
            for number in range(edits):
                path = f"/admin/norms/{names[(editor + number) % len(names)]}"
                while True:
                    norm = client.get(path)
                    count = int(norm.json()["text"].split()[1])
                    tag = {"if-match": norm.headers["etag"]}
                    done = client.patch(path, json={"text": f"Tea {count + 1}"}, headers=tag)
                    if done.status_code == 200:
                        break
                    assert done.status_code == 412, done.text
                    lost += 1
        return lost

    with ThreadPoolExecutor(editors) as pool:
        running = [pool.submit(edit, editor) for editor in range(editors)]
        asked = 0
        while not all(each.done() for each in running):
            assert sorted(used(url, "tea")["ids"]) == names
            asked += 1
        conflicts = sum(each.result() for each in running)
    texts = [norm["text"] for norm in operator.get("/admin/norms").json()["data"]]
    assert sum(int(text.split()[1]) for text in texts) == editors * edits
    assert asked > 3
    assert conflicts > 0


def test_metrics_tell_of_the_store(operator: httpx2.Client, url: str) -> None:
    def read(name: str) -> float:
        told = httpx2.get(f"{url}/metrics").text.splitlines()
        return next(float(line.split()[-1]) for line in told if line.startswith(f"{name} "))

    create(operator, "tea", "Tea is made with water that boils.")
    assert read("trimtab:norms") == 1
    counted = ("trimtab:norms_retrieved_total", "trimtab:norms_retrieval_seconds_count")
    before = [read(name) for name in counted]
    used(url, "tea")
    assert [read(name) for name in counted] == [number + 1 for number in before]


def test_metrics_leave_out_what_cannot_be_counted() -> None:
    library = Library()
    metrics = Metrics(dict, library.norms)
    assert "trimtab:norms 0.0" in metrics.render().decode()
    library.close()
    told = metrics.render().decode()
    assert "trimtab:norms 0.0" not in told
    assert "trimtab:norms_retrieved_total 0.0" in told


def test_a_temporary_store_warns_once_and_a_file_stays(
    model_folder: Path, start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = EngineSettings(model=str(model_folder), dtype="float32", device="cpu", threads=1, pool_tokens=1024)
    path = tmp_path / "norms.sqlite"
    for given, warnings in ((None, 1), (path, 0)):
        caplog.clear()
        settings = Settings.model_validate({**SETTINGS, "server": {"library": given}})
        with closing(Library(given)) as library, LLM(settings=engine, library=library) as llm:
            running = start(llm, settings)
            with httpx2.Client(base_url=running.url, headers={"authorization": "Bearer op"}) as client:
                assert ids(client) == []
                with caplog.at_level(logging.WARNING, "trimtab.server"):
                    create(client, "a")
                    create(client, "b")
            running.stop()
        assert sum("server.library" in record.message for record in caplog.records) == warnings
    with closing(Library(path)) as library:
        assert [norm.id for norm in library.norms.list()] == ["a", "b"]


@pytest.mark.parametrize(
    "body", [{"tags": ["t"] * 65}, {"ids": ["i"] * 65}, {"locale": "x-" * 100}, {"topic": "t" * 200}]
)
def test_a_search_is_bounded(operator: httpx2.Client, body: dict[str, Any]) -> None:
    answered = operator.post("/admin/norms/search", json={"query": "law", **body})
    assert answered.status_code == 400
    assert answered.json()["error"]["param"].startswith(next(iter(body)))


def test_every_method_of_a_path_is_told(operator: httpx2.Client) -> None:
    answered = operator.options("/admin/norms")
    assert (answered.status_code, answered.headers["allow"]) == (405, "GET, HEAD, POST")
    assert operator.post("/admin/norms/some-id").headers["allow"] == "DELETE, GET, HEAD, PATCH, PUT"
