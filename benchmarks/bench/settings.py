"""The settings that a run compares, from a YAML list: `{name, decoding, family, strength, curve}`."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from trimtab.bench.errors import BenchError
from trimtab.bench.estimates import curve_settings
from trimtab.bench.records import BASE, Level, Setting

BUILT_IN = ("demo",)
"""names of the lists that come with trimtab, `data/NAME.yaml`"""
PLAIN = Setting(name=BASE)


def read_settings(source: str, only: Collection[str] = ()) -> tuple[Setting, ...]:
    """The settings of a file or of a built-in list, plain sampling first; of those that `only` names, if it names any.

    Raises BenchError that names the file, the entry and the key of everything that is wrong.
    """
    where, text = _text(source)
    try:
        entries = json.loads(json.dumps(yaml.safe_load(text), allow_nan=False))
    except yaml.YAMLError as error:
        raise BenchError(f"{where} is no YAML: {error}") from None
    except (TypeError, ValueError) as error:
        raise BenchError(f"{where} holds what a request cannot, as a date or .inf: {error}") from None
    if not isinstance(entries, list) or not entries:
        raise BenchError(f"{where} holds no list of settings: write `- name: args` and `  decoding: {{...}}` for each")
    wrong: list[str] = []
    settings = [PLAIN]
    for number, entry in enumerate(entries, 1):
        try:
            settings.append(Setting.model_validate(entry))
        except ValidationError as error:
            wrong += [f"{where}, entry {_called(number, entry)}: {each}" for each in _reasons(error, entry)]
            continue
        wrong += [f"{where}, entry {_called(number, entry)}: {each}" for each in _odd(settings)]
    if wrong:
        raise BenchError("\n".join(wrong))
    return _chosen(where, settings, only)


def level(setting: Setting, kinds: Mapping[str, str]) -> Level:
    """What a setting works on; `kinds` are those of the server's strategies. A part that steers counts over a prompt's.

    A strategy that the server does not know is refused when it is asked for; it counts as one for whole answers.
    """
    decoding, kind = setting.decoding, kinds.get(setting.strategy, "search")
    if kind == "search" and setting.strategy != "sample":
        return "answer"
    if kind == "steer" or (kind == "search" and decoding.get("steer")):
        return "token"
    return "prompt" if kind == "prompt" or decoding.get("prompt") else "base"


def words(value: object) -> Iterator[str]:
    """Every text in a decoding, the keys of objects too: the names of guides are among them."""
    match value:
        case str():
            yield value
        case Mapping():
            for key, each in value.items():
                yield str(key)
                yield from words(each)
        case list() | tuple():
            for each in value:
                yield from words(each)


def _text(source: str) -> tuple[str, str]:
    """What a list is called, and the list."""
    if source in BUILT_IN:
        return source, (resources.files("trimtab.bench") / "data" / f"{source}.yaml").read_text(encoding="utf-8")
    try:
        return source, Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(
            f"the settings {source!r} cannot be read ({error}): give a YAML file, or {' or '.join(BUILT_IN)}"
        ) from None


def _called(number: int, entry: Any) -> str:
    name = entry.get("name") if isinstance(entry, Mapping) else None
    return f"{number} ({name})" if isinstance(name, str) and name else str(number)


def _reasons(error: ValidationError, entry: Any) -> Iterator[str]:
    known = list(Setting.model_fields)
    if not isinstance(entry, Mapping):
        yield f"is {entry!r}: write an object with the keys {', '.join(known)}"
        return
    for each in error.errors():
        key = ".".join(map(str, each["loc"]))
        if each["type"] == "extra_forbidden":
            near = get_close_matches(key, known, 1)
            yield f"unknown key {key!r}; " + (f"do you mean {near[0]!r}?" if near else f"known: {', '.join(known)}")
        else:
            yield f"key {key!r}: {each['msg']}"


def _odd(settings: Sequence[Setting]) -> Iterator[str]:
    """What is wrong with the last of the settings although each of its keys is well formed."""
    *before, last = settings
    n = last.decoding.get("n")
    if last.curve and last.strategy != "best_of_n":
        yield f"key 'curve': it is for best_of_n, and this is {last.strategy}"
        return
    for key in ("select", "budget"):
        if last.curve and key in last.decoding:
            yield f"key 'curve': it is told for the best by reward among all answers, so leave decoding.{key} out"
    if last.curve and not isinstance(n, int):
        yield "key 'curve': give decoding.n, the largest number of answers, from which those of the curve follow"
        return
    if last.curve and not set(last.curve) <= set(range(1, n or 1)):
        yield f"key 'curve': {list(last.curve)} go beyond 1 to {(n or 1) - 1}, the numbers below decoding.n"
    if len(set(last.curve)) < len(last.curve):
        yield f"key 'curve': {list(last.curve)} has a number twice"
    taken = {name for each in before for name in _names(each)}
    for name in _names(last):
        if name == BASE:
            yield f"key 'name': {BASE!r} is plain sampling, which every run measures: choose another name"
        elif name in taken:
            yield f"key 'name': {name!r} is taken by an entry before: choose another one"


def _names(setting: Setting) -> list[str]:
    """The setting's own, and those under which the numbers of its curve are timed."""
    return [setting.name, *(each.name for each in curve_settings(setting))]


def _chosen(where: str, settings: Sequence[Setting], only: Collection[str]) -> tuple[Setting, ...]:
    known = [each.name for each in settings]
    for name in only:
        if name not in known:
            near = get_close_matches(name, known, 1)
            told = f"do you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            raise BenchError(f"--only {name}: {where} has no such setting; {told}")
    return tuple(each for each in settings if not only or each.name in only or each.name == BASE)
