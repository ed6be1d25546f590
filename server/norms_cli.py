"""`trimtab norms`: a store of norms filled, written out and looked at from the command line, beside a server or not."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.engine.errors import TrimtabError

if TYPE_CHECKING:
    from trimtab.decoders.library import Norms

app = typer.Typer(name="norms", help="Import, export and list norms.", no_args_is_help=True)

PAGE = 1000
LibraryOption = Annotated[Path, typer.Option(help="file of norms and profiles, as server.library names it")]


@app.command(name="import")
def load(
    file: Annotated[typer.FileText, typer.Argument(help="norms as lines of JSON; - is standard input")],
    library: LibraryOption,
) -> None:
    """Add norms, and replace those of the same ids: every line or none."""
    from trimtab.server.jsonl import read_norms

    with _norms(library) as norms:
        done = norms.load(read_norms(file))
    typer.echo(f"{done.created} created, {done.replaced} replaced, {done.unchanged} as they were")


@app.command()
def export(
    library: LibraryOption,
    file: Annotated[typer.FileTextWrite, typer.Argument(help="where to; - is standard output")] = "-",  # type: ignore[assignment]
) -> None:
    """Write every norm as a line of JSON."""
    from trimtab.server.jsonl import written

    with _norms(library, made=False) as norms:
        file.writelines(written(norms.dump()))


@app.command(name="list")
def show(
    library: LibraryOption,
    q: Annotated[str | None, typer.Option(help="words to find in texts")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="any of which a norm has")] = None,
) -> None:
    """List norms: id, version, tags and text."""
    with _norms(library, made=False) as norms:
        after: str | None = None
        while page := norms.list(after=after, limit=PAGE, q=q, tags=tag or ()):
            for norm in page:
                typer.echo(f"{norm.id}\t{norm.version}\t{','.join(norm.tags)}\t{' '.join(norm.text.split())}")
            after = page[-1].id


@contextmanager
def _norms(path: Path, *, made: bool = True) -> Iterator["Norms"]:
    """The norms of a file, which is made if `made` allows it; what goes wrong ends the program with one line."""
    from trimtab.decoders.library import Library

    try:
        if not made and not path.exists():
            raise TrimtabError(f"there is no file {path}: `trimtab norms import` makes one")
        with closing(Library(path)) as library:
            yield library.norms
    except TrimtabError as error:
        typer.echo(f"trimtab: {error}", err=True)
        raise typer.Exit(1) from None
