"""/openapi.json: complete, free of dangling references, and as strict as the server itself."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from jsonschema_rs import Draft202012Validator

import trimtab.server
from trimtab.decoders.registry import strategies
from trimtab.engine.sampling import SamplingParams

Document = dict[str, Any]
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
OPEN = {"/health", "/ready", "/metrics", "/version"}


@pytest.fixture
def document(http: httpx2.Client) -> Document:
    told: Document = http.get("/openapi.json").json()
    return told


def operations(document: Document) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"].removeprefix("#/components/schemas/")
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def validator(document: Document, name: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": document["components"]})


def test_every_reference_leads_somewhere_and_nothing_is_unused(document: Document) -> None:
    assert set(references(document)) == set(document["components"]["schemas"])


def test_every_operation_is_complete(document: Document) -> None:
    names = []
    for path, method, operation in operations(document):
        names.append(operation["operationId"])
        assert operation["summary"], path
        wanted = {"400", "408", "429", "431", "500", "503"}
        if "requestBody" in operation:
            wanted |= {"413", "415"}
        if path not in OPEN:
            wanted |= {"401"}
        assert wanted <= operation["responses"].keys(), path
        assert "422" not in operation["responses"]
        assert operation.get("security") == (
            None if path in OPEN else [{"admin": []}] if path.startswith("/admin/") else [{"key": []}]
        )
        for status, response in operation["responses"].items():
            assert response["description"], (path, status)
            assert response["headers"]["x-request-id"]["required"]
            if int(status) >= 400:
                assert response["content"] == {
                    "application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}
                }
        assert method in ("get", "post", "put", "patch", "delete")
    assert len(set(names)) == len(names)


def test_every_status_of_the_code_is_documented_somewhere(document: Document) -> None:
    code = "".join(file.read_text() for file in Path(trimtab.server.__path__[0]).rglob("*.py"))
    raised = set(re.findall(r"ApiError\(\s*(\d{3})", code)) - {"405"}  # of a method that no operation has
    told = {status for *_, operation in operations(document) for status in operation["responses"]}
    assert raised <= told


def test_streams_are_told_beside_whole_answers(document: Document) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        content = document["paths"][path]["post"]["responses"]["200"]["content"]
        assert set(content) == {"application/json", "text/event-stream"}


@pytest.mark.parametrize("name", ["ChatRequest", "CompletionRequest"])
def test_ranges_are_those_of_the_engine(document: Document, name: str) -> None:
    fields = document["components"]["schemas"][name]["properties"]
    for field, schema in SamplingParams.model_json_schema()["properties"].items():
        if field in fields and field not in ("top_k", "logprobs", "logit_bias", "stop"):
            (told,) = [branch for branch in fields[field]["anyOf"] if branch != {"type": "null"}]
            (own,) = [each for each in schema.get("anyOf", [schema]) if each != {"type": "null"}]
            for bound in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
                assert told.get(bound) == own.get(bound), field


def test_every_strategy_is_a_decoding_object(document: Document) -> None:
    schemas = document["components"]["schemas"]
    chosen = [schemas[each] for each in references(schemas["Decoding"])]
    assert {each["properties"]["strategy"]["const"] for each in chosen} == {*strategies(), "auto"}
    parts = [schemas[each] for each in references(schemas["SteeringPart"])]
    steer = {name for name, each in strategies().items() if each.kind == "steer"}
    assert {each["properties"]["method"]["const"] for each in parts} == steer


CHANGES: list[tuple[dict[str, Any], bool]] = [
    ({}, True),
    ({"temperature": 2}, True),
    ({"temperature": 2.1}, False),
    ({"top_k": -1, "n": 2.0, "seed": 3.0}, True),
    ({"n": 2.5}, False),
    ({"n": 0}, False),
    ({"n": 33}, False),
    ({"stop": ""}, False),
    ({"stop": ["a", "b", "c", "d", "e"]}, False),
    ({"logit_bias": {"1": 5.5}}, True),
    ({"logit_bias": {"one": 5.5}}, False),
    ({"store": False, "service_tier": None}, True),
    ({"store": True}, False),
    ({"temprature": 1}, False),
    ({"top_logprobs": 21, "logprobs": True}, False),
    ({"messages": []}, False),
    ({"messages": [{"role": "user"}]}, False),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, True),
    ({"decoding": {}}, True),
    ({"decoding": None}, True),
    ({"decoding": {"strategy": "best_of_n", "n": 2, "reward": "brevity"}}, True),
    ({"decoding": {"strategy": "best_of_n", "n": 2.0, "reward": {"sum": [{"guide": "brevity"}]}}}, True),
    ({"decoding": {"strategy": "best_of_n", "n": 0, "reward": "brevity"}}, False),
    ({"decoding": {"strategy": "best_of_m"}}, False),
    ({"decoding": {"strategy": "auto"}}, False),
    ({"decoding": {"strategy": "auto", "budget": {"deadline_ms": 9}, "n": 2}}, False),
    ({"decoding": {"strategy": "best_of_n", "reward": "brevity", "select": "soft"}}, True),
    ({"decoding": {"strategy": "best_of_n", "reward": "brevity", "select": "softly"}}, False),
    ({"decoding": {"strategy": "best_of_n", "reward": "brevity", "select": {"rule": "soft", "temperature": 1}}}, True),
    ({"decoding": {"strategy": "best_of_n", "reward": "brevity", "select": {"rule": "abstain", "tau": 0}}}, True),
    ({"decoding": {"strategy": "best_of_n", "reward": "brevity", "select": "argmax"}}, True),
    ({"decoding": {"budget": {"max_model_tokens": 9}}}, True),
    ({"decoding": {"budget": {"max_tokens": 9}}}, False),
    ({"decoding": {"steer": [{"method": "candidates", "top_k": 4}], "trace": "tokens"}}, True),
    ({"decoding": {"steer": [{"method": "best_of_n"}]}}, False),
    ({"decoding": {"trace": "words"}}, False),
]


@pytest.mark.parametrize(("change", "fits"), CHANGES)
def test_the_document_is_as_strict_as_the_server(
    http: httpx2.Client, document: Document, change: dict[str, Any], fits: bool
) -> None:
    body = CHAT | change
    answer = http.post("/v1/chat/completions", json=body)
    assert (answer.status_code == 200) == fits, answer.text
    assert validator(document, "ChatRequest").is_valid(body) == fits


def test_auto_fits_the_document_though_it_takes_a_profile_to_answer(document: Document) -> None:
    known = validator(document, "ChatRequest")
    assert known.is_valid(CHAT | {"decoding": {"strategy": "auto", "budget": {"deadline_ms": 9}, "trace": "tokens"}})
    assert not known.is_valid(CHAT | {"decoding": {"strategy": "auto", "budget": {"max_model_tokens": 2**31}}})


def test_answers_and_examples_fit_the_document(http: httpx2.Client, document: Document) -> None:
    for path, method, operation in operations(document):
        for content in operation.get("requestBody", {}).get("content", {}).values():
            if "example" in content:
                name = content["schema"]["$ref"].rpartition("/")[2]
                model = "brevity" if path in ("/v1/score", "/v1/classify") else "tiny"
                example = {**content["example"], "model": model}
                assert validator(document, name).is_valid(example)
                answer = http.request(method, path, json=example)
                assert answer.status_code == 200, answer.text
                told = operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
                assert validator(document, told.rpartition("/")[2]).is_valid(answer.json())


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_no_page_loads_scripts_from_elsewhere(http: httpx2.Client, path: str) -> None:
    assert http.get(path).status_code == 404


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/openapi.json", "/metrics"])
def test_head_is_get_without_the_body(http: httpx2.Client, path: str) -> None:
    head, get = http.head(path), http.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert head.headers["x-request-id"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("OPTIONS", "/v1/models", "GET, HEAD"),
        ("PUT", "/v1/chat/completions", "POST"),
        ("HEAD", "/v1/chat/completions", "POST"),
        ("DELETE", "/health", "GET, HEAD"),
        ("POST", "/openapi.json", "GET, HEAD"),
    ],
)
def test_another_method_is_told_what_is_allowed(http: httpx2.Client, method: str, path: str, allowed: str) -> None:
    answer = http.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allowed
    if method != "HEAD":
        assert answer.json()["error"]["code"] == "method_not_allowed"
