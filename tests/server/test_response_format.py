"""The shapes of `response_format`, what of them is refused, and the grammar that each stands for."""

from typing import Any

import pytest
from pydantic import ValidationError

from trimtab.engine.grammar import Grammar
from trimtab.server.errors import param_name
from trimtab.server.schema.response_format import ResponseFormat

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "null"}}}


def wanted(**json_schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": json_schema}


@pytest.mark.parametrize(
    ("given", "grammar"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, Grammar.json_object()),
        (wanted(name="n", schema=SCHEMA), Grammar.json_schema(SCHEMA)),
        (wanted(name="n", schema=SCHEMA, strict=True, description="d"), Grammar.json_schema(SCHEMA)),
        (wanted(name="n", schema=SCHEMA, strict=False), Grammar.json_schema(SCHEMA)),
        (wanted(name="n", schema={}), Grammar.json_schema({})),
    ],
)
def test_what_a_format_stands_for(given: dict[str, Any], grammar: Grammar | None) -> None:
    assert ResponseFormat.model_validate(given).grammar() == grammar


def test_properties_keep_their_order() -> None:
    turned = {**SCHEMA, "properties": dict(reversed(SCHEMA["properties"].items()))}
    assert Grammar.json_schema(turned) != Grammar.json_schema(SCHEMA)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({}, "type"),
        ({"type": "xml"}, "type"),
        ({"type": "text", "schema": SCHEMA}, "schema"),
        ({"type": "json_schema"}, "json_schema"),
        ({"type": "json_object", "json_schema": {"name": "n", "schema": SCHEMA}}, "json_schema"),
        (wanted(name="n"), "json_schema.schema"),
        (wanted(name="n", schema=None), "json_schema.schema"),
        (wanted(name="n", schema=[]), "json_schema.schema"),
        (wanted(name="n", definition=SCHEMA), "json_schema.definition"),
        (wanted(schema=SCHEMA), "json_schema.name"),
        (wanted(name="two words", schema=SCHEMA), "json_schema.name"),
        (wanted(name="n", schema=SCHEMA, lenient=True), "json_schema.lenient"),
        (wanted(name="n", schema=SCHEMA, strict="yes"), "json_schema.strict"),
    ],
)
def test_what_is_refused_is_named(given: dict[str, Any], param: str) -> None:
    with pytest.raises(ValidationError) as refused:
        ResponseFormat.model_validate(given)
    first = refused.value.errors()[0]
    context = first.get("ctx", {})
    assert param_name([*first["loc"], *([context["param"]] if "param" in context else [])]) == param


def test_the_schema_of_the_schema_has_the_name_of_the_wire() -> None:
    described = ResponseFormat.model_json_schema()
    assert described["$defs"]["JsonSchema"]["required"] == ["name", "schema"]
