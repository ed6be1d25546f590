"""Tables of costs: whose they are, what a plan takes from them, and options that are told before any measuring."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import capacity
import pytest
import yaml
from typer.testing import CliRunner, Result

from trimtab.bench.capacity.costs import Cost, Table, shipped
from trimtab.server.cli import app

BEST = {"strategy": "best_of_n", "n": 4, "reward": "judge"}
ROW = Cost(
    decoding={"strategy": "best_of_n", "n": 4, "reward": "positivity"},
    prompt=48,
    answer=40,
    ticks=80,
    rows=160,
    tokens={"base": 207, "positivity": 160},
    forwards={"base": 161, "positivity": 1},
    requests=2,
)
"""twice the steps that are in the shipped table"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "costs.yaml"
    path.write_text(yaml.safe_dump(Table(measured={"model": "mine"}, rows=(ROW,)).model_dump(mode="json")))
    return path


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The script, with a server that was measured at once; without `--url` it must not come to the server."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["capacity.py", *map(str, arguments)])
        monkeypatch.setattr(capacity, "Probe", lambda url: None)
        monkeypatch.setattr(capacity.costing, "measure", lambda probe, wanted, say: [ROW])
        return capacity.main()

    return run


def planned(mix: Path, *arguments: object) -> Result:
    return CliRunner().invoke(app, ["plan", f"--mix={mix}", "--rps=1", "--gpu=h200", "--json", *map(str, arguments)])


def test_a_plan_takes_costs_of_a_file(file: Callable[..., Path], table: Path) -> None:
    entry = {"share": 1, "prompt": {"mean": 49}, "answer": {"mean": 40, "ends": "limit"}}
    asked = [{**entry, "decoding": BEST}, {**entry, "decoding": {**BEST, "strategy": "qalign", "steps": 3}}]
    del asked[1]["decoding"]["n"]
    path = file(model="llama-3.2-1b", requests=asked)

    def steps(*arguments: object) -> list[float]:
        return [each["steps"] for each in json.loads(planned(path, *arguments).stdout)["requests"]]

    own, demo = steps("--costs", table), steps()
    assert own[0] == pytest.approx(2 * demo[0], rel=0.01)
    assert own[1] == demo[1], "what the file lacks is the shipped table's"
    table.write_text("rows: 3")
    assert f"--costs {table}: measured is missing" in planned(path, "--costs", table).stderr
    assert "nothing.yaml cannot be read" in planned(path, "--costs", table.with_name("nothing.yaml")).stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--check", "--only", "serch"), "--only: unknown mix 'serch'; do you mean 'search'?"),
        (("--costs", "--only", "best_of_m"), "--only: unknown strategy 'best_of_m'; do you mean 'best_of_n'?"),
        (("--costs", "--url", "http://x"), "--costs: costs.yaml is of the demo model alone: name a file of your own"),
        (("--costs", "--model", "mine"), "--costs: costs.yaml is of the demo model alone"),
    ],
)
def test_options_are_told_before_a_server_is_asked(
    measure: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    told: str,
) -> None:
    def started(args: Any) -> Any:
        raise AssertionError("a server was asked")

    monkeypatch.setattr(capacity, "_probe", started)
    assert measure(*arguments) == 1
    assert capsys.readouterr().err.startswith(f"capacity: {told}")


def test_a_table_is_of_one_model(measure: Callable[..., int], table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = table.read_text()
    assert measure("--costs", table, "--url", "http://x", "--model", "other") == 1
    assert "holds what 'mine' did, and --model is 'other'" in capsys.readouterr().err
    assert table.read_text() == before
    assert measure("--costs", table, "--url", "http://x", "--model", "mine") == 0
    written = Table.model_validate(yaml.safe_load(table.read_text()))
    assert written.rows == (ROW,)
    assert set(written.measured) == set(shipped().measured)
