"""The report of a run, written from its rows alone: Markdown, one HTML file, and plots as SVG and PNG."""

from collections.abc import Sequence
from pathlib import Path

from trimtab.bench.errors import BenchError
from trimtab.bench.records import Row

try:
    import matplotlib  # noqa: F401
except ModuleNotFoundError as missing:
    if missing.name != "matplotlib":
        raise
    raise BenchError("--report needs the package matplotlib: pip install 'trimtab[bench]'") from None

from trimtab.bench.report.document import document
from trimtab.bench.report.html import html
from trimtab.bench.report.markdown import markdown
from trimtab.bench.report.plots import plots
from trimtab.bench.report.view import look


def write_report(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write `report.md`, `report.html` and the plots into a folder; returns the files.

    The same rows give the same bytes, as long as matplotlib is the same. Raises BenchError without rows, and where the
    folder cannot be written.
    """
    view = look(rows)
    drawn = plots(view)
    blocks = document(view, drawn)
    files = {"report.md": markdown(blocks).encode(), "report.html": html(blocks).encode()}
    for plot in drawn:
        if plot.drawing is not None:
            files |= {f"{plot.name}.svg": plot.drawing.svg, f"{plot.name}.png": plot.drawing.png}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise BenchError(f"cannot write the report into {folder}: {error.strerror or error}") from None
    return [folder / name for name in files]
