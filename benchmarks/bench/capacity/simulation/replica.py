"""One replica: requests that share its steps, and a queue before it."""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush

Rate = Callable[[int], float]
"""requests per second, of mean size, that leave with so many under way"""


@dataclass(slots=True)
class Request:
    """One request on its way."""

    number: int
    arrived: float
    size: float
    """of the mean request's"""
    prefix: int


@dataclass(slots=True)
class Replica:
    """Requests under way move on together, each at rate(n) / n: processor sharing.

    Time is kept in shares: what a request that is always under way would have had by now. A request ends when that has
    grown by its size, so that a change of the rate moves no request.
    """

    rate: Rate
    slots: int
    speed: float
    up: bool = True
    draining: bool = False
    version: int = 0
    """of the plan for its next end; an end of an older one counts nothing"""
    shared: float = 0.0
    """share that one request has had since the replica's beginning"""
    moved: float = 0.0
    """time up to which `shared` is told"""
    busy: float = 0.0
    """work done, in mean requests"""
    under_way: list[tuple[float, int, Request]] = field(default_factory=list)
    """heap by the share at which they end"""
    queue: deque[Request] = field(default_factory=deque)
    held: OrderedDict[int, None] = field(default_factory=OrderedDict)
    """prefixes it has read, the one used last at the end"""

    @property
    def load(self) -> int:
        """Requests that are here."""
        return len(self.under_way) + len(self.queue)

    def move(self, now: float) -> None:
        """Let time pass."""
        if count := len(self.under_way):
            done = self.speed * self.rate(count) * (now - self.moved)
            self.shared += done / count
            self.busy += done
        self.moved = now

    def add(self, request: Request, size: float) -> None:
        """Take a request, whose size here may be less than elsewhere."""
        request.size = size
        if len(self.under_way) < self.slots:
            self._begin(request)
        else:
            self.queue.append(request)

    def end(self) -> Request:
        """The request that ends now; the next in line takes its place."""
        request = heappop(self.under_way)[2]
        if self.queue:
            self._begin(self.queue.popleft())
        return request

    def next_end(self) -> float | None:
        """When the next request ends if nothing changes; None: nothing is under way."""
        if not self.under_way:
            return None
        count = len(self.under_way)
        left = max(0.0, self.under_way[0][0] - self.shared)
        return self.moved + left * count / (self.speed * self.rate(count))

    def fail(self) -> tuple[list[Request], list[Request]]:
        """Lose everything; what had begun, and what had not."""
        begun, waiting = [entry[2] for entry in self.under_way], list(self.queue)
        self.under_way, self.queue, self.held = [], deque(), OrderedDict()
        return begun, waiting

    def reads(self, prefix: int, kept: int) -> bool:
        """Note a prefix; whether it was there already."""
        found = prefix in self.held
        self.held[prefix] = None
        self.held.move_to_end(prefix)
        if len(self.held) > kept:
            self.held.popitem(last=False)
        return found

    def _begin(self, request: Request) -> None:
        heappush(self.under_way, (self.shared + request.size, request.number, request))
