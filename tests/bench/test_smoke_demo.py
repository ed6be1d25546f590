"""The whole benchmark, small, on the real demo model: its own server, a report and a profile."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from trimtab.bench.records import Row
from trimtab.server.frontier import Frontier

pytestmark = [pytest.mark.demo, pytest.mark.timeout(600)]

SETTINGS = """
- {name: genarm, decoding: {strategy: genarm, arm: positivity-arm}}
- {name: best, decoding: {strategy: best_of_n, n: 3, reward: positivity}, curve: [1]}
- {name: urial, decoding: {strategy: urial}}
- {name: vas, decoding: {strategy: vas, value: positivity-td, beta: 100, k: 20}}
"""


def test_a_small_run_ends_with_a_report_and_a_profile(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    command = [sys.executable, "-c", "from trimtab.server.cli import app; app()", "bench"]
    command += [
        "--settings",
        "settings.yaml",
        "--limit",
        "4",
        "--max-tokens",
        "12",
        "--timed",
        "2",
        "--concurrency",
        "4",
    ]
    command += ["--out", "run", "--report", "report", "--profile", "profile.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["rows"], told["failed"], told["model"]) == (6, [], "demo")
    assert told["seconds"] < 120
    rows = [Row.model_validate_json(line) for line in (tmp_path / "run" / "rows.jsonl").read_text().splitlines()]
    assert [(row.setting, row.level, row.answers) for row in rows] == [
        ("base", "base", 16), ("genarm", "token", 4), ("best n=1", "answer", 4), ("best", "answer", 4),
        ("urial", "prompt", 4), ("vas", "token", 4),
    ]  # fmt: skip
    for row in rows:
        assert row.reward is not None
        assert row.gold is not None
        assert row.e2e_ms is not None
        assert (row.peak_memory_mib or 0.0) > 500
    assert all((tmp_path / name).stat().st_size > 0 for name in told["written"])
    assert {"report.md", "report.html"} <= {Path(name).name for name in told["written"]}
    assert Frontier.read(tmp_path / "profile.json")
