"""The server's log: one line per request and per warning, as text or JSON, without any text of prompts and answers."""

import json
import logging
import queue
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TextIO

from opentelemetry.trace import Span

from trimtab.server.settings import LogSettings

access = logging.getLogger("trimtab.access")

QUEUE = 10_000
"""lines that may wait for a slow reader of standard error; those beyond are counted and dropped"""
PROBES = frozenset({"/health", "/ready", "/metrics"})
"""asked every few seconds: their successes are told at level debug"""
PAGE, FILES = "/", "/static/{path:path}"
"""routes of the playground; each load asks for dozens of files, so their successes are told at level debug, too"""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(slots=True)
class RequestRecord:
    """What is told of one HTTP request at its end: numbers and names, never a text and never a key.

    The middleware makes it, as `scope["trimtab.record"]`; routes and the bridge fill it in.
    """

    request_id: str
    method: str
    started: float
    """reading of time.perf_counter"""
    route: str | None = None
    """the pattern of the path; None for paths that are not served"""
    status: int | None = None
    """None if no answer was begun"""
    caller: str | None = None
    model: str | None = None
    strategy: str | None = None
    policy: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model_tokens: int = 0
    """tokens that all models processed"""
    finish: list[str] = field(default_factory=list)
    """finish reason of each choice"""
    error: str | None = None
    """code of the error body or event"""
    gone: bool = False
    """the client left before its answer was complete"""
    span: Span | None = None
    """of OpenTelemetry; None while telemetry is off"""

    def fields(self) -> dict[str, Any]:
        """What the line says; what does not apply is left out."""
        told = {
            "request_id": self.request_id,
            "method": self.method,
            "route": self.route,
            "status": 499 if self.gone and self.status is None else self.status,
            "ms": round((time.perf_counter() - self.started) * 1000, 1),
            "caller": self.caller,
            "model": self.model,
            "strategy": self.strategy,
            "policy": self.policy,
            "prompt_tokens": self.prompt_tokens or None,
            "completion_tokens": self.completion_tokens or None,
            "model_tokens": self.model_tokens or None,
            "finish": self.finish or None,
            "error": self.error,
            "gone": self.gone or None,
        }
        return {name: value for name, value in told.items() if value is not None}

    def write(self) -> None:
        """Log the request: debug for probes and files that went well, warning for what failed here, else info."""
        level = logging.INFO
        if self.status is not None and self.status >= 500:
            level = logging.WARNING
        elif self.route in {*PROBES, PAGE, FILES} and self.status in (200, 304):
            level = logging.DEBUG
        if access.isEnabledFor(level):
            access.log(level, "request", extra={"told": self.fields()})


current: ContextVar[RequestRecord | None] = ContextVar("record", default=None)
"""the record of the request that is served, where no scope is at hand"""


class Lines(logging.Formatter):
    """A log record as one line of text, or of JSON.

    Of an exception, its type and where it was raised are told. Its message may quote a prompt or an answer, so only
    `messages` shows it.
    """

    def __init__(self, *, as_json: bool, messages: bool) -> None:
        super().__init__()
        self._json = as_json
        self._messages = messages

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        told: Mapping[str, Any] = getattr(record, "told", {})
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields: dict[str, Any] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **told,
        }
        if record.exc_info and record.exc_info[1] is not None:
            fields["exception"] = list(self._causes(record.exc_info[1]))
        if self._json:
            return json.dumps(fields, ensure_ascii=True, default=str)
        parts = [f"{fields.pop(name)}" for name in ("time", "level", "logger", "message")]
        parts += [f"{name}={_value(value)}" for name, value in fields.items()]
        return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", " ".join(parts))

    def _causes(self, error: BaseException) -> Iterator[str]:
        """The exception and what caused it, each with the places it went through, the innermost last."""
        seen: set[int] = set()
        cause: BaseException | None = error
        while cause is not None and id(cause) not in seen:
            seen.add(id(cause))
            kind = type(cause)
            what = f"{kind.__module__}.{kind.__qualname__}"
            if self._messages:
                what += f": {cause}"
            places = traceback.extract_tb(cause.__traceback__)
            yield " < ".join([what, *(f"{place.filename}:{place.lineno} {place.name}" for place in reversed(places))])
            cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _value(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value)


class Writer(logging.Handler):
    """Writes lines in a thread of its own: nobody who logs waits for the reader of standard error."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(QUEUE)
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="trimtab-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Format the record and queue its line, or drop it when the queue is full."""
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        """Write what is queued, for a second at most."""
        with suppress(queue.Full):
            self._lines.put(None, timeout=1)
        self._thread.join(1)
        super().close()

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            if self._dropped:
                line += f"\n{self._dropped} lines of the log were dropped: standard error was not read"
                self._dropped = 0
            self._stream.write(line + "\n")
            if self._lines.empty():
                self._stream.flush()
        self._stream.flush()


@contextmanager
def logging_to(settings: LogSettings, stream: TextIO | None = None) -> Iterator[None]:
    """Send every logger and Python's warnings through one handler to `stream`, standard error by default."""
    level = settings.level.upper()
    handler = Writer(sys.stderr if stream is None else stream)
    handler.setFormatter(Lines(as_json=settings.format == "json", messages=settings.level == "debug"))
    root, ours = logging.getLogger(), logging.getLogger("trimtab")
    before = root.level, ours.level, root.handlers[:]
    root.handlers[:] = [handler]
    root.setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level]))
    ours.setLevel(level)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.setLevel(before[0])
        ours.setLevel(before[1])
        root.handlers[:] = before[2]
        handler.close()
