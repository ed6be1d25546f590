"""/openapi.json: what FastAPI knows of the routes, and what it does not: every status, headers, security, `decoding`.

There is no page that shows it: those that FastAPI offers load their scripts from another host.
"""

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, cast

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from trimtab.engine.sampling import SamplingParams
from trimtab.server.callers import AdminRoute, GuardedRoute
from trimtab.server.decoding_schema import COMPONENTS, Schema, decoding_schemas
from trimtab.server.schema.responses import ErrorBody
from trimtab.server.schema.stream import ChatChunk, StreamError, TextChunk
from trimtab.server.settings import ServerSettings

ANY_REQUEST = (400, 408, 429, 431, 500, 502, 503)
"""of the connection and of the server as a whole"""
WITH_BODY = (413, 415)
STREAMED = {"/v1/chat/completions": ChatChunk, "/v1/completions": TextChunk}
DESCRIPTIONS = {
    400: "a field is wrong, the body is no JSON, or the request is no HTTP",
    401: "no API key, or one that nobody owns",
    403: "the policy of the key rules it out",
    404: "what the request names does not exist",
    408: "the request took too long to arrive",
    409: "it does not fit what is loaded or running now",
    412: "it has changed since the version of if-match",
    413: "the body is larger than server.max_body_bytes",
    415: "the body is not application/json",
    429: "the key has used up a limit of its policy, or the connection holds too many requests",
    431: "the headers are larger than server.max_header_bytes, or too many",
    500: "something failed here, a guide for instance",
    502: "another server, which runs the base model or a guide, gave no answer that can be used",
    503: "the queue is full, the server shuts down, or its engine, a guide or another server is out of order",
}
RETRY_AFTER = {"description": "seconds to wait before another attempt", "schema": {"type": "integer", "minimum": 1}}
SHOULD_RETRY = {"description": "false: a retry cannot help", "schema": {"enum": ["true", "false"]}}
HEADERS = {
    401: {"www-authenticate": {"description": "how to send a key", "schema": {"const": "Bearer"}}},
    409: {"retry-after": RETRY_AFTER},
    412: {"etag": {"description": "its version now, in quotes", "schema": {"type": "string"}}},
    429: {"retry-after": RETRY_AFTER},
    500: {"x-should-retry": SHOULD_RETRY},
    502: {"x-should-retry": SHOULD_RETRY},
    503: {"retry-after": RETRY_AFTER},
}
REQUEST_ID = {
    "description": "yours if you sent one, else a new one",
    "required": True,
    "schema": {"type": "string", "minLength": 1, "maxLength": 128},
}
EXAMPLES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 16},
    "/v1/completions": {"prompt": "Once upon a time", "max_tokens": 16},
    "/v1/score": {"pairs": [{"prompt": "How was the film?", "answer": "I loved it."}]},
    "/v1/classify": {"input": "I loved it."},
    "/tokenize": {"prompt": "Hello!"},
    "/detokenize": {"tokens": [0, 1]},
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Statuses of one route, for its decorator; those that every route has need no mention."""
    return {status: {"model": ErrorBody} for status in statuses}


def install(app: FastAPI, settings: ServerSettings) -> None:
    """Let `app` describe itself completely; the document is made when it is first asked for."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, settings)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _document(app: FastAPI, settings: ServerSettings) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary="A frozen language model, steered request by request while it decodes.",
        routes=app.routes,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas |= decoding_schemas() | _chunk_schemas()
    for name in ("ChatRequest", "CompletionRequest"):
        _narrow(schemas[name]["properties"], settings)
    document["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "where the operator has set keys"},
        "admin": {"type": "http", "scheme": "bearer", "description": "the operator's own key"},
    }
    for path, operation, route in _operations(app, document):
        _complete(path, operation, route)
    return document


def _operations(app: FastAPI, document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], APIRoute]]:
    """Every operation of the document: its path, itself, and the route behind it."""
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        if isinstance(route, APIRoute) and route.include_in_schema:
            path = cast(str, context.path_format)
            for method in route.methods or ():
                yield path, document["paths"][path][method.lower()], route


def _complete(path: str, operation: dict[str, Any], route: APIRoute) -> None:
    """Fill in names, statuses, headers, streams, security and an example."""
    operation["operationId"] = route.name
    operation["summary"], _, rest = operation.pop("description").partition("\n")
    if rest.strip():
        operation["description"] = rest.strip()
    responses = operation["responses"]
    responses.pop("422", None)
    statuses = ANY_REQUEST + WITH_BODY * ("requestBody" in operation)
    for kind, scheme in ((GuardedRoute, "key"), (AdminRoute, "admin")):
        if isinstance(route, kind):
            statuses += (401,)
            operation["security"] = [{scheme: []}]
    error = {"application/json": {"schema": {"$ref": COMPONENTS + ErrorBody.__name__}}}
    for status in statuses:
        responses.setdefault(str(status), {"content": error})
    for status, response in responses.items():
        code = int(status)
        response["description"] = DESCRIPTIONS.get(code, HTTPStatus(code).phrase)
        response["headers"] = {"x-request-id": REQUEST_ID, **HEADERS.get(code, {}), **response.get("headers", {})}
    operation["responses"] = dict(sorted(responses.items()))
    if path in STREAMED:
        responses["200"]["content"]["text/event-stream"] = {"itemSchema": _event(STREAMED[path])}
        responses["200"]["description"] = "the answer; with `stream: true` as server-sent events, the last `[DONE]`"
    if path in EXAMPLES:
        operation["requestBody"]["content"]["application/json"]["example"] = EXAMPLES[path]


def _event(chunk: type[BaseModel]) -> Schema:
    """One event of a stream: a chunk, an error, or the end."""
    values = [{"$ref": COMPONENTS + each.__name__} for each in (chunk, StreamError)]
    value = {"type": "string", "contentMediaType": "application/json", "contentSchema": {"anyOf": values}}
    return {"type": "object", "properties": {"data": {"anyOf": [{"const": "[DONE]"}, value]}}, "required": ["data"]}


def _chunk_schemas() -> dict[str, Schema]:
    models = [(each, "serialization") for each in (*STREAMED.values(), StreamError)]
    _, definitions = models_json_schema(cast(Any, models), ref_template=COMPONENTS + "{model}")
    return cast(dict[str, Schema], definitions["$defs"])


def _narrow(properties: dict[str, Schema], settings: ServerSettings) -> None:
    """Give request fields the ranges of SamplingParams and of the settings."""
    sampling = SamplingParams.model_json_schema()["properties"]
    sampling["top_k"] = {**sampling["top_k"], "minimum": -1, "description": "keep the k likeliest; 0 and -1 keep all"}
    sampling["stop"] = {"anyOf": [_TEXT, {**sampling["stop"], "items": _TEXT}]}
    sampling["logit_bias"] = {
        **sampling["logit_bias"],
        "propertyNames": {"pattern": "^[0-9]{1,18}$"},
        "description": "by token id",
    }
    longest = settings.limits.max_tokens
    if longest is not None:
        for field in _limits(sampling["max_tokens"]):
            field["maximum"] = longest
    sampling["max_completion_tokens"] = sampling["max_tokens"]
    sampling["top_logprobs"] = sampling["logprobs"]
    sampling["n"] = {"type": "integer", "minimum": 1, "maximum": settings.limits.max_n, "default": 1}
    for name, schema in sampling.items():
        if name in properties and not (name == "logprobs" and "top_logprobs" in properties):
            properties[name] = _optional(schema)
    if "prompt" in properties:
        properties["prompt"] = {"anyOf": [_TEXT, _list(_TEXT), _list(_TOKEN), _list(_list(_TOKEN))], "title": "Prompt"}
    properties["decoding"] = {"anyOf": [{"$ref": COMPONENTS + "Decoding"}, {"type": "null"}], "title": "Decoding"}


_TEXT = {"type": "string", "minLength": 1}
_TOKEN = {"type": "integer", "minimum": 0}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


def _limits(schema: Schema) -> Iterator[Schema]:
    """The branches of an optional number that have a range."""
    for branch in schema.get("anyOf", [schema]):
        if "minimum" in branch or "maximum" in branch:
            yield branch


def _optional(schema: Schema) -> Schema:
    """The field with null for its default."""
    told: Schema = {key: schema[key] for key in ("title", "description", "default") if key in schema}
    bare = {key: value for key, value in schema.items() if key not in told}
    branches = [*bare["anyOf"]] if "anyOf" in bare else [bare]
    return {**told, "anyOf": [branch for branch in branches if branch != {"type": "null"}] + [{"type": "null"}]}
