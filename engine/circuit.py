"""Which guides are asked at all: one that failed again and again is left alone for a while (Nygard, Release It!, 2007).

After so many failures in a row a guide's circuit opens: requests that need it are refused at once. When its time is
over, one request is let through. Its success closes the circuit; its failure, or silence, leaves it open for as long
again.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from threading import Lock
from time import monotonic

from trimtab.engine.errors import GuideUnavailable


@dataclass(slots=True)
class _Circuit:
    """What is known of a guide whose last call failed."""

    failures: int = 0
    """requests in a row that it failed"""
    last: object = None
    """the request that it failed last"""
    until: float | None = None
    """when the next request is let through, in seconds of the clock; None: closed"""


class Circuits:
    """One circuit per guide. The engine's thread reports what happens; any thread may ask."""

    def __init__(
        self, failures: int, retry_after: float, gauge: dict[str, int], clock: Callable[[], float] = monotonic
    ) -> None:
        """`gauge` gets 1 for each guide whose circuit is open, and 0 once it is closed again."""
        self._most = failures
        self._pause = retry_after
        self._gauge = gauge
        self._clock = clock
        self._failing: dict[str, _Circuit] = {}
        self._lock = Lock()

    @property
    def quiet(self) -> bool:
        """Whether no guide's last call failed, so that no success changes anything."""
        return not self._failing

    def enter(self, guides: Collection[str]) -> None:
        """Let a request that needs `guides` pass; raises GuideUnavailable where one of them is left alone."""
        if self.quiet:
            return
        with self._lock:
            now = self._clock()
            open_ = {name: each for name in guides if (each := self._failing.get(name)) and each.until is not None}
            for name, circuit in open_.items():
                assert circuit.until is not None
                if circuit.until > now:
                    raise GuideUnavailable(name, circuit.failures, retry_after=circuit.until - now)
            for circuit in open_.values():  # this request tries them; the next one may, if nothing is heard of it
                circuit.until = now + self._pause

    def failed(self, guide: str, request: object) -> None:
        """Note that the guide itself failed a request, on however many answers; mistakes of callers are none."""
        with self._lock:
            circuit = self._failing.setdefault(guide, _Circuit())
            if circuit.last is request:
                return
            circuit.last = request
            circuit.failures += 1
            if circuit.failures >= self._most:
                circuit.until = self._clock() + self._pause
                self._gauge[guide] = 1

    def succeeded(self, guides: Iterable[str]) -> None:
        """Note that guides gave what they were asked for."""
        if self.quiet:
            return
        with self._lock:
            for guide in guides:
                self._forget(guide)

    def forget(self, guide: str) -> None:
        """A guide was loaded or unloaded: what was known of its name counts no more."""
        with self._lock:
            self._forget(guide)
            self._gauge.pop(guide, None)

    def _forget(self, guide: str) -> None:
        circuit = self._failing.pop(guide, None)
        if circuit is not None and circuit.until is not None:
            self._gauge[guide] = 0
