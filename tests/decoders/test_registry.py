"""The registry is the one list of strategies: what is generated from it is up to date."""

from pathlib import Path

from trimtab.decoders.registry import markdown_table, strategies
from trimtab.server.strategies import markdown

ROOT = Path(__file__).parents[2]


def test_the_table_of_the_docs_is_the_registrys_and_auto() -> None:
    assert (ROOT / "docs" / "strategies.md").read_text() == markdown(), "run `make docs`"
    assert markdown().startswith(markdown_table())


def test_every_strategy_describes_itself() -> None:
    for name, strategy in strategies().items():
        told = strategy.describe()
        assert told["name"] == name
        assert told["summary"].endswith(".")
        assert set(told["needs"]) <= {"lm", "reward", "value", "vector"}
        assert told["schema"]["additionalProperties"] is False


def test_kinds_and_the_temperatures_of_papers_are_told() -> None:
    told = {name: strategy.describe() for name, strategy in strategies().items()}
    searches = {path.stem for path in (ROOT / "decoders" / "search").glob("*.py")} & told.keys()
    assert {name for name, each in told.items() if each["kind"] == "search"} == searches
    greedy = {name for name, each in told.items() if each["temperature"] == 0.0}
    assert greedy == {"args", "deal", "nudging", "ppo_mcts", "tqstar"}
    assert "lm" in told["genarm"]["needs"]
    assert all("temperature 0" in told[name]["summary"] for name in greedy - {"deal"})  # which draws nothing
