"""Norms as lines of JSON: how they are imported and exported, over HTTP and from the command line."""

from collections.abc import Iterable, Iterator

from pydantic import ValidationError
from pydantic_core import from_json

from trimtab.decoders.library import Norm
from trimtab.engine.errors import InvalidRequest

MEDIA = "application/jsonl"
NAMES = (MEDIA, "application/x-ndjson", "application/x-jsonlines")
"""media types of such lines"""
RESERVED = ("embed", "export", "import", "search")
"""ids that no norm may have: paths of /admin/norms"""


def read_norms(lines: Iterable[str | bytes]) -> Iterator[Norm]:
    """The norm of every line that is not blank; InvalidRequest that names the first line that holds none."""
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        norm = _norm(line, number)
        if norm.id in seen:
            raise _wrong(number, f"line {seen[norm.id]} has the id {norm.id!r} already")
        seen[norm.id] = number
        yield norm


def written(norms: Iterable[Norm]) -> Iterator[str]:
    """A line for each norm, without what the store adds to it, so that it can be imported again."""
    fields = set(Norm.model_fields)
    for norm in norms:
        yield norm.model_dump_json(include=fields, exclude_defaults=True) + "\n"


def check_id(id_: str) -> None:
    """Raise InvalidRequest for an id that is a path of its own."""
    if id_ in RESERVED:
        raise InvalidRequest(f"no norm can have the id {id_!r}: take another one", param="id", code="invalid_value")


def _norm(line: str | bytes, number: int) -> Norm:
    try:
        norm = Norm.model_validate(from_json(line, allow_inf_nan=False))
        check_id(norm.id)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        told = first["msg"].removeprefix("Value error, ")
        raise _wrong(number, f"{where}: {told}" if where else told) from None
    except InvalidRequest as error:
        raise _wrong(number, str(error)) from None
    except ValueError as error:
        raise _wrong(number, f"not valid JSON: {error}") from None
    return norm


def _wrong(number: int, message: str) -> InvalidRequest:
    return InvalidRequest(f"line {number}: {message}", param=f"line {number}", code="invalid_value")
