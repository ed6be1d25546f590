"""A server of the benchmark's own: `trimtab serve` as a child, from before it to its end."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from trimtab.bench.errors import BenchError

LAST_WORDS = 12
"""lines of the server's log that an error shows"""
GRACE = 5.0
"""seconds after which it is asked to end more firmly"""


@dataclass(frozen=True, slots=True)
class Child:
    """A running server."""

    url: str
    pid: int
    ended: Callable[[], str | None]
    """its last words, if it has ended"""


@contextmanager
def served(model: str = "demo", settings: Mapping[str, object] | None = None) -> Iterator[Child]:
    """Serve a model on a free port; raises BenchError with its last words.

    `settings`, by names such as engine.dtype, win over those of the environment. The child is in a session of its own:
    Ctrl-C in the terminal reaches the benchmark alone, which then ends it.
    """
    command = [sys.executable, "-P", "-c", "from trimtab.server.cli import app; app()"]
    command += ["serve", "--port", "0", "--model", model]
    own = {f"TRIMTAB_{name.upper().replace('.', '__')}": str(value) for name, value in (settings or {}).items()}
    environment = {"TRIMTAB_SERVER__LOG__LEVEL": "warning", **os.environ, **own}
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            found = next((hit for line in process.stdout if (hit := re.search(r"http://\S+:\d+", line))), None)
            if found is None:
                raise BenchError(f"the server did not start:\n{_last_words(log)}")
            try:
                yield Child(found[0], process.pid, lambda: None if process.poll() is None else _last_words(log))
            except Exception:
                if words := _last_words(log):
                    print(f"the server's last words:\n{words}", file=sys.stderr)
                raise
        finally:
            _end(process)


def _end(process: "subprocess.Popen[str]") -> None:
    """Ask it to end, then, if answers that nobody waits for keep it, to end at once."""
    for stop in (process.terminate, process.terminate, process.kill):  # these do nothing once it has ended
        stop()
        try:
            process.wait(GRACE)
            return
        except subprocess.TimeoutExpired:
            continue


def _last_words(log: TextIO) -> str:
    log.seek(0)
    return "\n".join(log.read().splitlines()[-LAST_WORDS:])
