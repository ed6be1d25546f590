"""Where prompts are: in the file that comes with trimtab, in a file of the person's, or in an installed package."""

import codecs
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

from trimtab.bench.errors import BenchError

OWN: Final = "trimtab"
OWN_FILE: Final = Path(__file__).parent / "data" / "prompts.jsonl"
PACKAGE: Final = "package:"
SHAPES: Final = {".jsonl": '{"prompt": "..."}', ".txt": "one prompt"}
"""endings of the files that can be read, and what each line of them is"""


class Place(NamedTuple):
    """Where prompts come from."""

    where: str
    """the file, as the person named it"""
    file: Path
    key: str | None = None
    """what the text stands under in lines of other people"""


def find(source: str) -> Place:
    """Return where the prompts of `trimtab`, FILE or `package:NAME/FILE`, maybe with `#KEY`, are.

    Raises BenchError for what is not there or cannot be read.
    """
    if source == OWN:
        return Place(OWN, OWN_FILE)
    where, key = source, None
    if "#" in source and not Path(source).is_file():  # a name may hold the sign itself
        where, _, key = source.rpartition("#")
    file = _in_package(where) if where.startswith(PACKAGE) else Path(where)
    if not file.is_file():
        raise BenchError(f"no file {where}: prompts come from {OWN}, a .jsonl or .txt file, or {PACKAGE}NAME/FILE")
    if file.suffix not in SHAPES:
        each = " or ".join(f"{suffix} ({shape} a line)" for suffix, shape in SHAPES.items())
        raise BenchError(f"{where}: prompts are read from {each}")
    if key is not None and file.suffix == ".txt":
        raise BenchError(f"{where} is text, each line a prompt: leave out #{key}")
    return Place(where, file, key)


def _in_package(where: str) -> Path:
    """A file of an installed package, which is not imported: its code has no part in this."""
    name, _, inside = where.removeprefix(PACKAGE).partition("/")
    if not name.isidentifier() or not inside:
        raise BenchError(f"{where}: write {PACKAGE}NAME/FILE, the name as Python imports it and the file's path in it")
    spec = find_spec(name)
    if spec is None:
        raise BenchError(f"{where}: there is no package {name}: pip install {name}, or as its distribution is called")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    for folder in folders:
        if (folder / inside).is_file():
            return folder / inside
    found = sorted(
        str(file.relative_to(folder))
        for folder in folders
        for file in folder.rglob("*")
        if file.suffix in SHAPES and file.is_file()
    )
    near = get_close_matches(inside, found, n=3, cutoff=0.0)
    hint = f"the nearest of {len(found)} are {', '.join(near)}" if near else "nor any other .jsonl or .txt file"
    raise BenchError(f"{where}: the package {name} has no file {inside}; {hint}")


def lines_of(place: Place, bad: dict[int, str]) -> dict[int, str]:
    """Return the lines that hold something, by number; `bad` gets those that are no text."""
    try:
        content = place.file.read_bytes()
    except OSError as error:
        raise BenchError(f"cannot read {place.where}: {error.strerror or error}") from None
    found: dict[int, str] = {}
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        try:
            text = line.decode().strip()
        except UnicodeDecodeError:
            bad[number] = "not UTF-8"
        else:
            if text:
                found[number] = text
    return found
