"""The JSON Schema of `decoding`, put together from the schemas of strategies, rules of selection and budgets."""

from typing import Any, get_args

from trimtab.decoders.spec import MAX_PARTS, Trace
from trimtab.server.auto import AUTO
from trimtab.server.auto import schema as auto_schema
from trimtab.server.strategies import budget_schema, described, described_rules, preference_schema

Schema = dict[str, Any]

COMPONENTS = "#/components/schemas/"


def decoding_schemas() -> dict[str, Schema]:
    """Components of an OpenAPI document by name; `Decoding` is the object itself.

    Rules that span several fields are no part of it: such a request is a 400 that names the field.
    """
    found: dict[str, Schema] = {
        "Budget": _adopted(budget_schema(), {}),
        "Preference": _adopted(preference_schema(), {}),
    }
    shared = {
        "preference": _ref("Preference"),
        "prompt": {"type": "array", "items": _ref("PromptPart"), "maxItems": MAX_PARTS, "default": []},
        "steer": {"type": "array", "items": _ref("SteeringPart"), "maxItems": MAX_PARTS, "default": []},
        "trace": {"enum": [*get_args(Trace), None], "default": None},
        "select": {"anyOf": [_ref("Selection"), {"type": "null"}], "default": None},
        "budget": _ref("Budget"),
    }
    strategies: list[str] = []
    parts: dict[str, list[str]] = {"steer": [], "prompt": []}
    for each in described():
        parameters = _adopted(each["schema"], found)
        name = parameters["title"]
        chosen = _tagged(parameters, "strategy", each["name"], required=each["name"] != "sample")
        beside = dict(shared)
        if (own := chosen["properties"].get("preference")) is not None:  # of the strategy, under the same name
            beside["preference"] = {"anyOf": [*own.get("anyOf", [own]), _ref("Preference")]}
        found[f"{name}Decoding"] = {**chosen, "properties": {**chosen["properties"], **beside}}
        strategies.append(f"{name}Decoding")
        if each["kind"] in parts:
            found[f"{name}Part"] = _tagged(parameters, "method", each["name"], required=True)
            parts[each["kind"]].append(f"{name}Part")
    chooses = _adopted(auto_schema(), found)
    found["AutoDecoding"] = _tagged(chooses, "strategy", AUTO, required=True)
    strategies.append("AutoDecoding")
    found["Decoding"] = {
        "title": "Decoding",
        "description": "A strategy with its parameters, and keys that all strategies share; absent: plain sampling.",
        "oneOf": [_ref(name) for name in strategies],
    }
    found["SteeringPart"] = {
        "title": "SteeringPart",
        "description": "A part that shapes the next token, beside any strategy.",
        "oneOf": [_ref(name) for name in parts["steer"]],
    }
    found["PromptPart"] = {
        "title": "PromptPart",
        "description": "A part that changes what the models read, beside any strategy.",
        "oneOf": [_ref(name) for name in parts["prompt"]],
    }
    return found | _selection()


def _selection() -> dict[str, Schema]:
    """The rules; one that needs no parameter may be given by its name alone."""
    rules: dict[str, Schema] = {}
    named: list[str] = []
    answering: list[str] = []
    for each in described_rules():
        schema = _adopted(each["schema"], {})
        component = f"{schema['title']}Rule"
        rules[component] = _tagged(schema, "rule", each["name"], required=True)
        if "then" not in schema["properties"]:
            answering.append(component)
        if len(rules[component]["required"]) == 1:
            named.append(each["name"])
    for schema in rules.values():
        if "then" in schema["properties"]:
            plain = [name for name in named if name != schema["properties"]["rule"]["const"]]
            schema["properties"]["then"] = {"anyOf": [{"enum": plain}, *map(_ref, answering)]}
    rules["Selection"] = {
        "title": "Selection",
        "description": "How a search finds the choices among its answers: a rule with its parameters, or its name.",
        "anyOf": [{"enum": named}, *map(_ref, list(rules))],
    }
    return rules


def _adopted(schema: Schema, found: dict[str, Schema]) -> Schema:
    """The schema with its definitions moved to `found`."""
    own = {key: value for key, value in schema.items() if key != "$defs"}
    for name, definition in schema.get("$defs", {}).items():
        found[name] = _repointed(definition)
    return dict(_repointed(own))


def _repointed(value: Any) -> Any:
    """The value with every reference to a definition turned into one to a component."""
    if isinstance(value, dict):
        return {
            key: each.replace("#/$defs/", COMPONENTS) if key == "$ref" else _repointed(each)
            for key, each in value.items()
            if key != "discriminator"  # its mapping names definitions, and tags are constants already
        }
    if isinstance(value, list):
        return [_repointed(each) for each in value]
    return value


def _tagged(schema: Schema, key: str, name: str, *, required: bool) -> Schema:
    """An object schema whose `key` is the constant `name`."""
    properties = {key: {"const": name, "type": "string"}}
    if not required:
        properties[key]["default"] = name
    properties |= {field: each for field, each in schema.get("properties", {}).items() if field != key}
    needed = [key] * required + [field for field in schema.get("required", ()) if field != key]
    return {**schema, "properties": properties, **({"required": needed} if needed else {})}


def _ref(name: str) -> Schema:
    return {"$ref": COMPONENTS + name}
