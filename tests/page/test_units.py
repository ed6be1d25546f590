"""What of the playground needs no browser: its own tests, run by Node.js."""

import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).with_name("unit")


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js: apt-get install nodejs")
def test_the_pages_own_tests_pass() -> None:
    files = sorted(UNIT.glob("*.test.js"))
    assert files
    done = subprocess.run(["node", "--test", *files], capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
