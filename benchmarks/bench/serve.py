"""A server of the run's own: `trimtab serve` as a child, from before the run to its end."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
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
    ended: Callable[[], str | None]
    """its last words, if it has ended"""


@contextmanager
def served(model: str = "demo") -> Iterator[Child]:
    """Serve a model on a free port, with the settings of the environment; raises BenchError with its last words.

    The child is in a session of its own: Ctrl-C in the terminal reaches the benchmark alone, which then ends it.
    """
    command = [sys.executable, "-P", "-c", "from trimtab.server.cli import app; app()"]
    command += ["serve", "--port", "0", "--model", model]
    environment = {"TRIMTAB_SERVER__LOG__LEVEL": "warning", **os.environ}
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
            yield Child(found[0], lambda: None if process.poll() is None else _last_words(log))
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
