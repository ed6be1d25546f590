"""The soak of benchmarks/soak.py, short: every answer is as documented, and nothing is left behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import soak

pytestmark = pytest.mark.soak


def test_a_mixed_load_leaves_nothing() -> None:
    command = [
        sys.executable,
        soak.__file__,
        "--minutes",
        "0.33",
        "--clients",
        "24",
        "--memory",
        "0.25",
        "--health",
        "1",
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=150, cwd=Path(soak.__file__).parent)
    assert run.returncode == 0, run.stdout + run.stderr
    told = json.loads(run.stdout.splitlines()[-1])
    rows = {row["what"]: row for row in told["rows"]}
    assert all(row["met"] is not False for row in rows.values())
    assert rows["answered as asked"]["value"] > 50
    assert rows["left by the client"]["value"] > 0
