"""What the calls to a remote server have come to."""

from dataclasses import dataclass, field

from trimtab.engine.tally import SECONDS, Tally

LONG = (*SECONDS, 30.0, 60.0, 120.0)
"""seconds: bounds of how long calls take"""


@dataclass(slots=True)
class RemoteStats:
    """Counts of one server; written by the thread of the event loop, read by scrapes."""

    calls: int = 0
    """that have ended, well or not; one that was tried again counts once"""
    retries: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    """attempts by kind: connect, lost, timeout, limited (429), unavailable (502, 503, 504), refused (other 4xx),
    failed (other 5xx), garbage"""
    hedges: int = 0
    """calls that were sent a second time because the first answer was late"""
    in_flight: int = 0
    waiting: int = 0
    """calls for which there is no connection yet"""
    seconds: Tally = field(default_factory=lambda: Tally(LONG))
    """of calls that succeeded, waiting not counted"""
    lost: bool = False
    """the server has gone away, or changed, and was not seen again"""

    def failed(self, kind: str) -> None:
        """Count one failure."""
        self.failures[kind] = self.failures.get(kind, 0) + 1
