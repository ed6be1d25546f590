"""Blocks as one HTML file that needs nothing beside it: plots within, no script."""

import re
from collections.abc import Sequence
from html import escape

from trimtab.bench.report.blocks import Block, Figure, Heading, Items, Table, Text
from trimtab.bench.report.canvas import COLOURS, GRID, INK, PAPER, SOFT, Drawing
from trimtab.bench.report.picture import Plot

# What stands for a colour of the plots: a dark theme gives it another value.
THEME = {
    INK: "ink",
    SOFT: "soft",
    GRID: "line",
    PAPER: "paper",
    COLOURS["token"]: "blue",
    COLOURS["answer"]: "orange",
    COLOURS["prompt"]: "green",
}

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --soft: #6e6e73; --line: #e4e4e8; --paper: #ffffff;
  --blue: #0072b2; --orange: #d55e00; --green: #009e73; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #ececee; --soft: #a1a1a6; --line: #38383b;
  --paper: #161618; --blue: #4fb0ea; --orange: #f0853a; --green: #2cc296; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
figure { margin: 1rem 0 2rem; }
figure svg { display: block; width: 100%; height: auto; }
figcaption, caption, .note { color: var(--soft); font-size: .9rem; }
p, li, figcaption { max-width: 52rem; } .note { margin-top: -1rem; }
.wide { overflow-x: auto; margin: 1.5rem 0; }
table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .4rem; white-space: nowrap; }
th.words, td.words { text-align: left; } td.long { white-space: normal; min-width: 20rem; overflow-wrap: anywhere; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
  vertical-align: bottom; }
thead th { white-space: normal; }
th:first-child { text-align: left; font-weight: 400; } th.strong:first-child, thead th:first-child { font-weight: 700; }
@page { size: A4 landscape; margin: 12mm; }
@media print { body { max-width: none; margin: 0; font-size: 11px; } figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; } figure svg { max-width: 200mm; } .wide { overflow: visible; }
  table { font-size: 8px; } th, td { padding: .1rem .3rem; } }
"""


def html(blocks: Sequence[Block]) -> str:
    """The whole document."""
    title = next(block.text for block in blocks if isinstance(block, Heading))
    body = "\n".join(_block(block) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _block(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Text(text):
            return f"<p>{escape(text)}</p>"
        case Items(items):
            return "<ul>\n" + "\n".join(f"<li>{escape(item)}</li>" for item in items) + "\n</ul>"
        case Table():
            return _table(block)
        case Figure(plot):
            if plot.drawing is None:
                return f"<p>No plot: {escape(plot.missing)}.</p>"
            caption = f"<figcaption>{escape(plot.reading)}</figcaption>"
            return f"<figure>\n{_inline(plot, plot.drawing)}\n{caption}\n</figure>"


def _table(table: Table) -> str:
    long = {column for column in table.words if any(len(line[column]) > 40 for line in table.lines)}
    kinds = {column: f' class="words{" long" if column in long else ""}"' for column in table.words}
    heads = [f'<th scope="col"{kinds.get(column, "")}>{escape(name)}</th>' for column, name in enumerate(table.head)]
    lines = []
    for place, (name, *cells) in enumerate(table.lines):
        strong = ' class="strong"' if place in table.strong else ""
        numbers = "".join(f"<td{kinds.get(column, '')}>{escape(cell)}</td>" for column, cell in enumerate(cells, 1))
        lines.append(f'<tr><th scope="row"{strong}>{escape(name)}</th>{numbers}</tr>')
    rows, caption = "\n".join(lines), escape(table.caption)
    note = f'\n<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{caption}">\n<table>\n<caption>{caption}</caption>\n'
        f"<thead><tr>{''.join(heads)}</tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody>\n</table></div>{note}"
    )


def _inline(plot: Plot, drawing: Drawing) -> str:
    """The drawing as an element with a name and a description, ids of its own and the colours of the page."""
    svg = drawing.svg.decode()
    head, _, body = svg[svg.index("<svg") :].partition(">")
    view = re.search(r'viewBox="[^"]+"', head)
    assert view is not None
    for useless in (r"<title>.*?</title>", r"<metadata>.*?</metadata>", r"<!--.*?-->"):
        body = re.sub(rf"\s*{useless}", "", body, flags=re.DOTALL)
    for reference in ('id="', 'href="#', "url(#"):
        body = body.replace(reference, f"{reference}{plot.name}-")
    for colour, name in THEME.items():
        body = body.replace(f": {colour}", f": var(--{name})")
    return (
        f'<svg role="img" aria-labelledby="{plot.name}-title {plot.name}-desc" {view.group()} '
        f'xmlns:xlink="http://www.w3.org/1999/xlink" xmlns="http://www.w3.org/2000/svg">\n'
        f'<title id="{plot.name}-title">{escape(plot.title)}</title>\n'
        f'<desc id="{plot.name}-desc">{escape(plot.reading)}</desc>{body.rstrip()}'
    )
