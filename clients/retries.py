"""When a request is sent again, and after how long."""

import random
from dataclasses import dataclass

from trimtab.clients.errors import ClientError

LONGEST_WAIT = 60.0
"""seconds; a server that asks for more is not waited for"""
TIMES = 2
"""tries after the first"""
SLOWEST = 8.0
"""seconds between two tries where the server asks for nothing"""


@dataclass(frozen=True, slots=True)
class Retries:
    """At most `times` more tries, `first` seconds apart and then twice as long each time."""

    times: int = TIMES
    first: float = 0.5

    def wait(self, tried: int, failure: ClientError) -> float | None:
        """Seconds until the next try after `tried` before this one; None: there is none.

        Waits are spread at random, so that clients that were turned away together do not come back together: half of
        a wait of our own, and a quarter on top of one that the server asks for.
        """
        if tried >= self.times or not failure.may_retry:
            return None
        if failure.retry_after is not None:
            return None if failure.retry_after > LONGEST_WAIT else failure.retry_after * random.uniform(1.0, 1.25)
        return min(self.first * 2.0**tried, SLOWEST) * random.uniform(0.5, 1.0)
