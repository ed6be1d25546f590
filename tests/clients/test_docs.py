"""The examples of docs/client.md, run one after the other against a tiny server."""

import ast
import re
from pathlib import Path

import pytest

from trimtab.clients import aio, client
from trimtab.clients.chat import HELP

PAGE = Path(__file__).parents[2] / "docs" / "client.md"
GUIDES = {
    "positivity-vector": "calm",
    "positivity-arm": "arm",
    "positivity": "taste",
    "brevity": "brief",
    "demo": "base",
}
"""names of the demo model and its guides: those of the tiny one"""


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def translated(source: str, url: str) -> str:
    """The example as it stands, with the names and the address of the tiny server."""
    for name, tiny in GUIDES.items():
        source = source.replace(f'"{name}"', f'"{tiny}"')
    return source.replace("http://127.0.0.1:8000", url)


def test_every_example_runs(tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for each in (client.TrimtabClient, aio.AsyncTrimtabClient):
        monkeypatch.setattr(each.__init__, "__defaults__", (tiny,))
    names: dict[str, object] = {}
    sources = examples()
    assert len(sources) == 6
    for source in sources:
        exec(compile(ast.parse(translated(source, tiny)), str(PAGE), "exec"), names)
        assert capsys.readouterr().out


def test_every_command_of_the_chat_is_told() -> None:
    told = PAGE.read_text(encoding="utf-8")
    assert all(command in told for command in re.findall(r"^(/\w+)", HELP, re.MULTILINE))
