"""The TypeScript types against the API that they were written from; no Node.js is needed to know."""

from pathlib import Path

import pytest

from trimtab import clients
from trimtab.engine.errors import TrimtabError
from trimtab.server import typescript

TYPES = Path(clients.__file__).with_name("trimtab.d.ts")


def test_the_types_are_those_of_the_api_now() -> None:
    head = TYPES.read_text(encoding="utf-8").splitlines()[:2]
    assert typescript.TOOL in head[0]
    assert head[1] == typescript.mark(typescript.source(typescript.document())), "run `make types`"


def test_every_strategy_is_a_type() -> None:
    text = TYPES.read_text(encoding="utf-8")
    assert 'strategy: "best_of_n";' in text
    assert 'method: "genarm";' in text


def test_what_has_no_place_in_types_does_not_age_them() -> None:
    told = typescript.document()
    told["info"]["version"] = "9.9"
    told["paths"]["/version"]["get"]["responses"]["200"]["headers"] = {"x-new": {"schema": {"type": "string"}}}
    assert typescript.source(told) == typescript.source(typescript.document())
    told["components"]["schemas"]["ChatRequest"]["properties"]["title"] = {"title": "Title", "type": "string"}
    assert typescript.mark(typescript.source(told)) != typescript.mark(typescript.source(typescript.document()))
    assert '"title": {\n      "type": "string"' in typescript.source(told)


def test_without_node_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(TrimtabError, match=r"install Node\.js"):
        typescript.types("{}")
