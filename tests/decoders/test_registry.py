"""The registry is the one list of strategies: what is generated from it is up to date."""

from pathlib import Path

from trimtab.decoders.registry import markdown_table, strategies

ROOT = Path(__file__).parents[2]


def test_the_table_of_the_docs_is_the_registrys() -> None:
    assert (ROOT / "docs" / "strategies.md").read_text() == markdown_table(), "run `make docs`"


def test_every_strategy_describes_itself() -> None:
    for name, strategy in strategies().items():
        told = strategy.describe()
        assert told["name"] == name
        assert told["summary"].endswith(".")
        assert set(told["schema"].get("required", [])) >= set(told["needs"])
        assert told["schema"]["additionalProperties"] is False
