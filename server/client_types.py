"""`trimtab strategies --python`: the client's decoding objects, written from the same JSON Schemas that are served."""

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trimtab.server.strategies import budget_schema, described, described_rules, preference_schema

Schema = Mapping[str, Any]

WIDTH = 120
HEADER = "Written by `make docs` from the registry: change it there."
PACKAGE = "trimtab.clients.decoding"
ANY = "Mapping[str, Any]"
REWARD = "Expression"
"""title of the object that may also be a guide's name"""
SUMMARIES = {
    "objects": "Objects that parameters of strategies are made of.",
    "rules": "Rules that `select` may name.",
    "search": "Strategies that work on whole answers.",
    "steer": "Strategies that shape the next token.",
    "prompt": "Strategies that change what the models read.",
}
BASES = {"search": "Search", "steer": "Steer", "prompt": "PromptPart"}
"""class of the strategies of a kind"""
STANDARD = (
    ("collections.abc", ("Mapping", "Sequence")),
    ("dataclasses", ("dataclass",)),
    ("typing", ("Annotated", "Any", "ClassVar", "Literal")),
)
OWN = (("base", ("Part", "Rule")), ("strategy", ("PromptPart", "Search", "Steer")))
PLAIN = {"integer": "int", "number": "float", "string": "str", "boolean": "bool"}


def write(folder: Path) -> None:
    """Write the generated modules into the folder of the client's decoding objects."""
    for name, text in modules().items():
        (folder / name).write_text(text, encoding="utf-8")


def modules() -> dict[str, str]:
    """The text of every generated module, by its file's name."""
    strategies, rules = described(), described_rules()
    named = {kind: [each for each in strategies if each["kind"] == kind] for kind in BASES}
    rule_titles = {each["schema"]["title"] for each in rules}
    objects = _objects([each["schema"] for each in strategies], rule_titles)
    classes = {
        "objects": [_class(schema, "Part") for schema in objects.values()],
        "rules": [_class(each["schema"], "Rule", each["name"], each["summary"]) for each in rules],
        **{
            kind: [_class(each["schema"], base, each["name"], each["summary"]) for each in named[kind]]
            for kind, base in BASES.items()
        },
    }
    files = {f"{name}.py": _module(name, texts, list(objects)) for name, texts in classes.items()}
    titles = {
        "objects": [*objects, "Reward"],
        "rules": [each["schema"]["title"] for each in rules],
        **{kind: [each["schema"]["title"] for each in named[kind]] for kind in named},
    }
    return files | {"__init__.py": _exports(titles)}


def _objects(schemas: Iterable[Schema], apart: set[str]) -> dict[str, Schema]:
    """The object schemas that others refer to, by name, and the budget."""
    found: dict[str, Schema] = {"Budget": budget_schema(), "Preference": preference_schema()}
    for schema in schemas:
        for name, each in schema.get("$defs", {}).items():
            if name not in apart:
                found[name] = next((form for form in each.get("anyOf", ()) if form.get("type") == "object"), each)
    return dict(sorted(found.items()))


def _module(name: str, classes: list[str], objects: Iterable[str]) -> str:
    """A module's text, with the imports that its classes use."""
    code = "\n\n\n".join(classes)
    if name == "objects":
        code += f'\n\n\nReward = str | {REWARD} | {ANY}\n"""the name of a guide, or what several are worth together"""'
    names_used = set(re.findall(r"\w+", re.sub(r'"[^"\n]*"', "", code)))
    defined = set(objects) | {"Reward"} if name == "objects" else set()
    imports = [
        *STANDARD,
        *((f"{PACKAGE}.{module}", names) for module, names in (*OWN, ("objects", (*objects, "Reward")))),
    ]
    lines = []
    for module, names in sorted(imports, key=lambda each: (each[0].startswith(PACKAGE), each[0])):
        if used := [each for each in names if each in names_used - defined]:
            lines.append(f"from {module} import {', '.join(used)}")
    own = next(index for index, line in enumerate(lines) if PACKAGE in line)
    head = "\n".join([f'"""{SUMMARIES[name]} {HEADER}"""', "", *lines[:own], "", *lines[own:]])
    return f"{head}\n\n\n{code}\n"


def _class(schema: Schema, base: str, name: str | None = None, summary: str | None = None) -> str:
    """One dataclass; `name` is what it is called over the wire."""
    text = summary or " ".join(schema["description"].partition("\n\n")[0].split())
    head = f"class {schema['title']}({base}):"
    lines = ["@dataclass(frozen=True, slots=True, kw_only=True)", head, *_docstring(text)]
    if name is not None:
        lines += ["", f"    name: ClassVar[str] = {json.dumps(name)}"]
    required = schema.get("required", ())
    fields = {key: each for key, each in schema["properties"].items() if "const" not in each}
    if fields:
        lines.append("")
    for key, each in fields.items():
        lines += _field(key, each, key in required)
    return "\n".join(lines)


def _docstring(text: str) -> list[str]:
    line = f'    """{text}"""'
    if len(line) <= WIDTH:
        return [line]
    first, *more = textwrap.wrap(text, WIDTH - 8)
    return [f'    """{first}', *(f"    {each}" for each in more), '    """']


def _field(name: str, schema: Schema, required: bool) -> list[str]:
    """A field with what it is and, if there is room, the server's default; laid out as the formatter does."""
    kind = _type(schema)
    if not required and not kind.endswith(" | None"):
        kind += " | None"
    end = "]" if required else "] = None"
    texts = [str(schema["description"]) + _default(schema), str(schema["description"])]
    for text in texts:
        line = f"    {name}: Annotated[{kind}, {_quoted(text)}{end}"
        if len(line) <= WIDTH:
            return [line]
    told = _quoted(texts[-1])
    head = f"    {name}: Annotated[{kind}, {told}] = ("
    if not required and len(head) <= WIDTH:
        return [head, "        None", "    )"]
    if len(f"        {kind}, {told}") <= WIDTH:
        return [f"    {name}: Annotated[", f"        {kind}, {told}", f"    {end}"]
    return [f"    {name}: Annotated[", f"        {kind},", f"        {told},", f"    {end}"]


def _default(schema: Schema) -> str:
    """What a field is if it is not given; of texts, where it is a single word."""
    default = schema.get("default")
    if isinstance(default, str):
        shown = default if default.isidentifier() else ""
    else:
        shown = "" if default is None or isinstance(default, Mapping) else json.dumps(default, ensure_ascii=False)
    return f"; {shown} if not given" if shown and '"' not in shown else ""


def _quoted(text: str) -> str:
    return repr(text) if '"' in text and "'" not in text else json.dumps(text, ensure_ascii=False)


def _type(schema: Schema) -> str:
    """The Python type of a JSON Schema; raises ValueError for a form that no parameter has had yet."""
    if "oneOf" in schema:
        return "Rule"  # one of several, told apart by their names
    if forms := schema.get("anyOf"):
        return " | ".join(_in_order(_type(form) for form in forms))
    if "$ref" in schema:
        title = schema["$ref"].rpartition("/")[2]
        return "Reward" if title == REWARD else title
    if "const" in schema or "enum" in schema:
        return f"Literal[{', '.join(map(json.dumps, schema.get('enum', [schema.get('const')])))}]"
    kind = schema.get("type")
    if kind == "null":
        return "None"
    if kind == "array":
        items = _type(schema["items"])
        return f'Sequence["{items}"]' if items == "Reward" else f"Sequence[{items}]"
    if kind == "object":
        (inner,) = schema.get("patternProperties", {"": schema.get("additionalProperties")}).values()
        return f"Mapping[str, {_type(inner)}]"
    if kind in PLAIN:
        return PLAIN[kind]
    raise ValueError(f"no Python type for {dict(schema)!r}")


def _in_order(kinds: Iterable[str]) -> Iterator[str]:
    """Each once, None last."""
    yield from sorted(dict.fromkeys(kinds), key=lambda kind: kind == "None")


def _exports(titles: Mapping[str, list[str]]) -> str:
    imports = {"base": ["Rule"], "strategy": ["Auto", "PromptPart", "Search", "Steer", "Strategy"], **titles}
    lines = [f'"""The `decoding` of a request as typed objects. {HEADER}"""', ""]
    for module, names in sorted(imports.items()):
        line = f"from {PACKAGE}.{module} import {', '.join(_sorted(names))}"
        if len(line) > WIDTH:
            line = f"from {PACKAGE}.{module} import (\n" + "".join(f"    {name},\n" for name in _sorted(names)) + ")"
        lines.append(line)
    everything = sorted((name for names in imports.values() for name in names), key=lambda n: (not n.isupper(), n))
    wrapped = textwrap.wrap(" ".join(f'"{name}",' for name in everything), WIDTH - 4)
    return "\n".join([*lines, "", "__all__ = [", *(f"    {each}" for each in wrapped), "]  # fmt: skip"]) + "\n"


def _sorted(names: Iterable[str]) -> list[str]:
    """In the linter's order of imports: constants, that is names in capitals, before classes."""
    return sorted(names, key=lambda name: (not name.isupper(), name.lower()))
