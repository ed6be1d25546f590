"""The way to the server, which may go away for a while."""

import time
from collections.abc import Callable
from typing import TypeVar

from trimtab.bench.checks import Server, changed, examine
from trimtab.bench.errors import BenchError, ServerGone
from trimtab.bench.progress import say
from trimtab.bench.records import Conditions
from trimtab.clients.client import ClientError, TrimtabClient

T = TypeVar("T")

TRIES = 3
"""times that a call is made while the server goes away each time"""
SILENCE = 10.0
"""seconds in which a server tells of itself"""
PAUSE = 0.5
"""seconds between two looks for a server that is away"""


def lost(error: ClientError) -> bool:
    """Whether an error says that the server is away, and nothing of the request.

    The connection broke, it is shutting down, or a proxy before it found nobody.
    """
    return error.code == "draining" or (error.code is None and error.status in (None, 502, 503, 504))


class Link:
    """Clients of one server. A server that went away is waited for, and has to be the same when it is back."""

    def __init__(self, url: str, api_key: str | None, patience: float, ended: Callable[[], str | None]) -> None:
        """`patience` in seconds; `ended` tells the last words of a server that will not come back by itself."""
        self.client = TrimtabClient(url, api_key=api_key)
        self.load = TrimtabClient(url, api_key=api_key, retries=0)
        """for what is measured: it is not asked twice under one clock"""
        self._probe = TrimtabClient(url, api_key=api_key, retries=1, timeout=SILENCE)
        self._patience = patience
        self._ended = ended

    def close(self) -> None:
        """Close the connections."""
        for client in (self.client, self.load, self._probe):
            client.close()

    def memory(self) -> float:
        """What the server holds now, MiB: on a GPU, or else of the machine's; 0 if it does not tell."""
        try:
            told = self._probe.machine()["memory_mib"]
            return told["gpu"] or told["resident"] or 0.0
        except ClientError:
            return 0.0  # the requests of the run meet the same trouble, and are told of it

    def wait(self, agreed: Conditions) -> None:
        """Return when the server takes requests again.

        Raises ServerGone after too long, and BenchError for a server that is another one than the run began with.
        """
        say(f"the server is gone; waiting up to {self._patience:g} s for it")
        until = time.monotonic() + self._patience
        while (server := self._server()) is None:
            if (words := self._ended()) is not None:
                raise ServerGone(f"the server has ended:\n{words}")
            if time.monotonic() > until:
                raise ServerGone(f"the server did not come back within {self._patience:g} s")
            time.sleep(PAUSE)
        if told := changed(agreed, server):
            raise BenchError(
                "the server that came back is another one; start the one before, or choose another --out\n"
                + "\n".join(told)
            )
        say("the server is back")

    def ask(self, call: Callable[[], T], agreed: Conditions) -> T:
        """What a call returns, made again when the server was away; raises BenchError for one that fails."""
        for _ in range(TRIES):
            try:
                return call()
            except ClientError as error:
                if not lost(error):
                    raise BenchError(f"{error}; what was measured is kept: the same command goes on") from error
                self.wait(agreed)
        raise ServerGone(f"the server went away {TRIES} times")

    def _server(self) -> Server | None:
        """What the server says of itself; None while it takes no requests."""
        try:
            return examine(self._probe)
        except BenchError:
            return None
