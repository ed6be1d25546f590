"""How much each caller may use: requests and rows at the same time, requests and model tokens per minute.

Model tokens are known when a request has ended, and are charged then: who has spent more than there was waits until
the minutes have made up for it.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from trimtab.server.callers import Caller
from trimtab.server.errors import ApiError
from trimtab.server.policy import Limits
from trimtab.server.schema.admin import CallerUse

MINUTE = 60.0


@dataclass(slots=True)
class _Bucket:
    """What is left of an amount per minute, refilled evenly; below 0 after more was taken than there was."""

    level: float = math.inf
    """until the first use, when it is full"""
    at: float = 0.0

    def refill(self, per_minute: float, now: float) -> None:
        """Bring it up to `now`; a limit that was lowered holds from here on."""
        self.level = min(per_minute, self.level + (now - self.at) * per_minute / MINUTE)
        self.at = now

    def wait(self, amount: float, per_minute: float) -> float:
        """Seconds until it holds `amount`."""
        return max(0.0, (amount - self.level) * MINUTE / per_minute)


@dataclass(slots=True)
class _Use:
    """What one caller uses now, and has left."""

    requests: int = 0
    rows: int = 0
    model_tokens: int = 0
    """since the start"""
    starts: _Bucket = field(default_factory=_Bucket)
    tokens: _Bucket = field(default_factory=_Bucket)


@dataclass(slots=True)
class Lease:
    """What one request holds until all its `parts` have ended; belongs to the event loop's thread."""

    quotas: "Quotas"
    caller: Caller
    parts: int
    rows: int = 0

    def occupy(self, rows: int) -> None:
        """Take the rows that the request decodes at most; raises a 429, or a 403 for more than it can ever have."""
        self.quotas.occupy(self, rows)

    def end(self, model_tokens: int) -> None:
        """One part has ended after so many model tokens."""
        self.parts -= 1
        self.quotas.charge(self.caller, model_tokens)
        if self.parts == 0:
            self.quotas.release(self)

    def abandon(self) -> None:
        """The request never began."""
        self.parts = 0
        self.quotas.release(self)


class Quotas:
    """The use of all callers; `spent` hears of every charge. All methods belong to the event loop's thread."""

    def __init__(self, spent: Callable[[str, int], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._spent = spent
        self._clock = clock
        self._uses: defaultdict[str, _Use] = defaultdict(_Use)

    def enter(self, caller: Caller, parts: int) -> Lease:
        """Let a request of `parts` prompts begin; raises a 429."""
        use = self._uses[caller.name]
        if caller.policy is not None:
            self._check(use, caller.policy.limits)
        use.requests += 1
        return Lease(self, caller, parts)

    @contextmanager
    def held(self, caller: Caller) -> Iterator[None]:
        """Count a request that costs no model tokens while the block runs; raises a 429."""
        lease = self.enter(caller, 1)
        try:
            yield
        finally:
            lease.end(0)

    def occupy(self, lease: Lease, rows: int) -> None:
        """Note the rows of a request that has begun; raises a 429 or a 403."""
        use, policy = self._uses[lease.caller.name], lease.caller.policy
        most = None if policy is None else policy.limits.rows
        if policy is not None:
            policy.check_rows(rows)
        if most is not None and use.rows + rows > most:
            raise _limited(f"the requests of this key may decode {most} sequences at a time", 1.0)
        use.rows += rows
        lease.rows = rows

    def charge(self, caller: Caller, model_tokens: int) -> None:
        """Take model tokens from what the caller has left."""
        self._spent(caller.name, model_tokens)
        self._uses[caller.name].model_tokens += model_tokens
        limits = None if caller.policy is None else caller.policy.limits
        if limits is not None and limits.model_tokens_per_minute is not None:
            bucket = self._uses[caller.name].tokens
            bucket.refill(limits.model_tokens_per_minute, self._clock())
            bucket.level -= model_tokens

    def release(self, lease: Lease) -> None:
        """Give back what a request held."""
        use = self._uses[lease.caller.name]
        use.requests -= 1
        use.rows -= lease.rows

    def describe(self) -> dict[str, CallerUse]:
        """What each caller uses now."""
        return {name: CallerUse.model_validate(use, from_attributes=True) for name, use in self._uses.items()}

    def _check(self, use: _Use, limits: Limits) -> None:
        now = self._clock()
        if limits.concurrent is not None and use.requests >= limits.concurrent:
            raise _limited(f"this key may have {limits.concurrent} requests at a time", 1.0)
        if limits.model_tokens_per_minute is not None:
            use.tokens.refill(limits.model_tokens_per_minute, now)
            if use.tokens.level <= 0:
                wait = use.tokens.wait(1.0, limits.model_tokens_per_minute)
                raise _limited(f"this key may spend {limits.model_tokens_per_minute} model tokens per minute", wait)
        if limits.requests_per_minute is not None:
            use.starts.refill(limits.requests_per_minute, now)
            if use.starts.level < 1:
                wait = use.starts.wait(1.0, limits.requests_per_minute)
                raise _limited(f"this key may send {limits.requests_per_minute} requests per minute", wait)
            use.starts.level -= 1


def _limited(limit: str, wait: float) -> ApiError:
    seconds = max(1, math.ceil(wait))
    return ApiError(
        429,
        f"{limit}: try again in {seconds} s",
        code="rate_limit_exceeded",
        headers={"retry-after": str(seconds)},
    )
