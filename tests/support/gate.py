"""A barrier before one of the engine's calls: a test stops the engine in a phase instead of hoping to meet it."""

from collections.abc import Callable
from threading import Condition
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

PATIENCE = 20.0
"""seconds after which a call or a test gives up waiting"""


class Gate:
    """Lets calls through while open; closed, each call waits until it is let through."""

    def __init__(self) -> None:
        self.calls = 0
        """calls that came to the gate, the waiting one included"""
        self._allowed: float = 0
        self._changed = Condition()

    def before(self, function: Callable[P, R]) -> Callable[P, R]:
        """The function behind the gate."""

        def gated(*args: P.args, **kwargs: P.kwargs) -> R:
            with self._changed:
                self.calls += 1
                self._changed.notify_all()
                assert self._changed.wait_for(lambda: self.calls <= self._allowed, PATIENCE), "the gate stayed closed"
            return function(*args, **kwargs)

        return gated

    def reach(self, call: int) -> None:
        """Let earlier calls through and wait until this one (counted from 1) stands at the gate."""
        with self._changed:
            self._allowed = call - 1
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self.calls == call, PATIENCE), f"only {self.calls} calls came"

    def open(self) -> None:
        """Let everything through from now on."""
        with self._changed:
            self._allowed = float("inf")
            self._changed.notify_all()
