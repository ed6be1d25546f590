"""Errors about names and fields of files that people write."""

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """That a name is unknown, with the nearest one, or all."""
    names = list(known)
    near = get_close_matches(name, names, 1)
    return f"unknown {what} {name!r}; " + (f"do you mean {near[0]!r}?" if near else f"known: {', '.join(names)}")


def reasons(error: ValidationError, model: type[BaseModel], where: str) -> Iterator[str]:
    """A line for each thing that is wrong with a file, by field."""
    for each in error.errors():
        place = [part for part in each["loc"] if not (isinstance(part, str) and part in _TAGS)]
        path = ".".join(map(str, place)) or "the file"
        if each["type"] == "extra_forbidden":
            yield f"{where}: {path}: {unknown('key', str(place[-1]), _fields(model, place[:-1]))}"
        elif each["type"] == "missing":
            yield f"{where}: {path} is missing"
        else:
            yield f"{where}: {path}: {each['msg'].removeprefix('Value error, ')}"


_TAGS = ("str", "Size")
"""how pydantic calls the branches of a union in a path"""


def _fields(model: type[BaseModel], path: Iterable[Any]) -> list[str]:
    """The fields of the object at `path`."""
    here: Any = model
    for part in path:
        if isinstance(here, type) and issubclass(here, BaseModel) and part in here.model_fields:
            here = here.model_fields[part].annotation
        here = next((each for each in _models(here)), here)
    return list(here.model_fields) if isinstance(here, type) and issubclass(here, BaseModel) else []


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models anywhere in a type."""
    if isinstance(annotation, type) and not isinstance(annotation, Mapping) and not get_args(annotation):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for inner in get_args(annotation):
        yield from _models(inner)
