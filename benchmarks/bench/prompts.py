"""Prompts to ask: those that come with trimtab, a file's, or those of an installed package.

A line of JSON is one prompt; all keys but the text are optional:

    {"id": "tea", "category": "helpful", "language": "en", "prompt": "..."}
    {"id": "tea-2", "category": "helpful", "messages": [{"role": "system", "content": "..."}, ...]}

With `#KEY` behind the file, lines may be anybody's: a text or messages stand under that key, and of the rest only `id`,
`category` and `language` are read.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import zip_longest
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import AfterValidator, ValidationError, model_validator
from pydantic_core import ErrorDetails

from trimtab.bench.errors import BenchError
from trimtab.bench.records import Record
from trimtab.bench.sources import OWN, PACKAGE, SHAPES, Place, find, lines_of

SHOWN: Final = 20
"""bad lines that an error names one by one"""


def _written(text: str) -> str:
    if not text.strip():
        raise ValueError("empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half a surrogate pair, which is no character") from None
    return text


Text = Annotated[str, AfterValidator(_written)]


class Turn(Record):
    """One message."""

    role: Literal["system", "user", "assistant"]
    content: Text


def _open(messages: tuple[Turn, ...]) -> tuple[Turn, ...]:
    if not messages:
        raise ValueError("empty")
    if messages[-1].role != "user":
        raise ValueError(f"the last message is the {messages[-1].role}'s: end with the user's")
    return messages


class Prompt(Record):
    """One conversation to be answered."""

    id: Text
    category: Text
    language: Text = "en"
    """ISO 639-1"""
    prompt: Text | None = None
    """all that the user says, in place of messages"""
    messages: Annotated[tuple[Turn, ...], AfterValidator(_open)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_form(cls, given: Any) -> Any:
        forms = [key for key in ("prompt", "messages") if given.get(key) is not None]
        if not forms:
            raise ValueError("no prompt")
        if len(forms) > 1:
            raise ValueError("both prompt and messages: keep one")
        return given

    @property
    def conversation(self) -> tuple[dict[str, str], ...]:
        """Messages, as requests have them."""
        if self.messages is None:
            return ({"role": "user", "content": self.prompt or ""},)
        return tuple({"role": turn.role, "content": turn.content} for turn in self.messages)


class PromptSet(NamedTuple):
    """What a run asks."""

    name: str
    prompts: tuple[Prompt, ...]
    digest: str
    """12 hexadecimal digits, of the ids and conversations in their order"""


def read_prompts(source: str, limit: int | None) -> PromptSet:
    """Return the prompts of `source`: `trimtab`, FILE or `package:NAME/path/of/file`, .jsonl or .txt, maybe `#KEY`.

    With a limit they are taken `evenly`. A .txt file has a prompt on each line. Where no ids are given they are the
    numbers of the lines, and the category is the name of the file; so are ids under `#KEY` that are not different.
    Raises BenchError that names every bad line.
    """
    place = find(source)
    bad: dict[int, str] = {}
    lines = lines_of(place, bad)
    if not lines and not bad:
        raise BenchError(f"{place.where} holds no prompts: a line looks like {SHAPES[place.file.suffix]}")
    if place.file.suffix == ".txt":
        given: dict[int, dict[str, Any]] = {number: {"prompt": line} for number, line in lines.items()}
    else:
        given = _objects(lines, bad)
        if place.key is not None and given:
            given = _picked(given, place.where, place.key)
    prompts = _prompts(given, place, bad)
    if bad:
        raise BenchError(_told(place.where, bad))
    chosen = evenly(prompts, limit)
    asked = json.dumps([(prompt.id, prompt.conversation) for prompt in chosen])
    name = place.where if source.startswith(PACKAGE) or source == OWN else place.file.name
    name += f"#{place.key}" if place.key is not None else ""
    return PromptSet(name, chosen, hashlib.sha256(asked.encode()).hexdigest()[:12])


def evenly(prompts: Sequence[Prompt], limit: int | None) -> tuple[Prompt, ...]:
    """Return `limit` of the prompts in their order: categories take turns, and of each the first ones are taken.

    So fewer prompts are always part of more. Raises BenchError for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise BenchError(f"a limit of {limit} leaves no prompt: take 1 or more")
    categories: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        categories.setdefault(prompt.category, []).append(index)
    in_turn = [index for row in zip_longest(*categories.values()) for index in row if index is not None]
    return tuple(prompts[index] for index in sorted(in_turn[:limit]))


def _objects(lines: Mapping[int, str], bad: dict[int, str]) -> dict[int, dict[str, Any]]:
    """The JSON objects of the lines."""
    found: dict[int, dict[str, Any]] = {}
    for number, line in lines.items():
        try:
            given = json.loads(line)
        except json.JSONDecodeError as error:
            bad[number] = f"not JSON ({error.msg} at character {error.pos + 1})"
            continue
        except (ValueError, RecursionError) as error:  # numbers too long, lists too deep
            bad[number] = f"not JSON ({error})"
            continue
        if isinstance(given, dict):
            found[number] = given
        else:
            bad[number] = f"{type(given).__name__} instead of an object"
    return found


def _picked(lines: Mapping[int, dict[str, Any]], where: str, key: str) -> dict[int, dict[str, Any]]:
    """Lines of other people in our form."""
    keys = list(dict.fromkeys(name for line in lines.values() for name in line))
    if key not in keys:
        near = get_close_matches(key, keys, n=1)
        raise BenchError(
            f"no line of {where} has the key {key!r}: the keys are {', '.join(keys)}"
            + (f"; did you mean {where}#{near[0]}?" if near else "")
        )
    ids = {str(line["id"]) for line in lines.values() if isinstance(line.get("id"), str | int)}
    kept = ("category", "language", *(("id",) if len(ids) == len(lines) else ()))
    return {
        number: {
            **{name: str(line[name]) for name in kept if isinstance(line.get(name), str | int) and line[name] != ""},
            "messages" if isinstance(line.get(key), list) else "prompt": _said(line.get(key)),
        }
        for number, line in lines.items()
    }


def _said(value: Any) -> Any:
    """A text, or messages without what others note of them."""
    if not isinstance(value, list):
        return value
    return [
        {key: turn[key] for key in Turn.model_fields if key in turn} if isinstance(turn, dict) else turn
        for turn in value
    ]


def _prompts(lines: Mapping[int, dict[str, Any]], place: Place, bad: dict[int, str]) -> list[Prompt]:
    found: list[Prompt] = []
    first: dict[str, int] = {}
    for number, line in lines.items():
        try:
            prompt = Prompt.model_validate({"id": str(number), "category": place.file.stem, **line})
        except ValidationError as error:
            bad[number] = "; ".join(_reason(each, place, line) for each in error.errors())
            continue
        if prompt.id in first:
            bad[number] = f"line {first[prompt.id]} has the id {prompt.id!r} already"
        first.setdefault(prompt.id, number)
        found.append(prompt)
    return found


def _reason(error: ErrorDetails, place: Place, line: Mapping[str, Any]) -> str:
    """What is wrong with a line, in the words of its author."""
    path = [str(part) for part in error["loc"]]
    if path and place.key is not None and path[0] in ("prompt", "messages"):
        path[0] = place.key
    at = ".".join(path)
    match error["type"]:
        case "extra_forbidden":
            keys = Turn.model_fields if len(path) > 1 else Prompt.model_fields
            return f"unknown key {at!r}: the keys are {', '.join(keys)}"
        case "missing":
            return f"{at} is missing"
        case "literal_error":
            return f"{at}: {error['input']!r} instead of {error['ctx']['expected']}"
        case "string_type" | "tuple_type" | "model_type":
            wanted = {"string_type": "a text", "tuple_type": "a list of messages"}
            return f"{at}: {type(error['input']).__name__} instead of {wanted.get(error['type'], 'a message')}"
    told = error["msg"].removeprefix("Value error, ")
    if not at and told == "no prompt":
        return f"no {place.key or 'prompt'}{_guess(place, line)}"
    return f"{at}: {told}" if at else told


def _guess(place: Place, line: Mapping[str, Any]) -> str:
    """Where the prompt of somebody else's line may be: under its longest text."""
    texts = {key: value for key, value in line.items() if isinstance(value, str) and key not in Prompt.model_fields}
    if place.key is not None or not texts:
        return ""
    key = max(texts, key=lambda each: len(texts[each]))
    return f": if it is what stands under {key!r}, take {place.where}#{key}"


def _told(where: str, bad: Mapping[int, str]) -> str:
    shown = [f"{where}, line {number}: {bad[number]}" for number in sorted(bad)]
    more = len(shown) - SHOWN
    return "\n".join([*shown[:SHOWN], *([f"and {more} more lines"] if more > 0 else [])])
