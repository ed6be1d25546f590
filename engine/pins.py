"""Which pages hold constant prefixes of prompts, as digests: a pool gives these pages up after all others.

Pins refer to no page: nobody waits for pages that they hold, and nothing is preempted for them.
"""

from collections import Counter, OrderedDict
from collections.abc import Sequence

PREFIXES = 64
"""Prefixes held at most; callers can make up any number of them (salts, texts of their own)."""

SHARE = 4
"""At most one page in so many may be pinned, so that prefixes of ordinary prompts stay in the cache, too."""


class Pins:
    """Prefixes by the chained hashes of their pages, the least recently used first, in a pool of `pages` pages."""

    def __init__(self, pages: int) -> None:
        self._room = pages // SHARE
        self._held: OrderedDict[bytes, tuple[bytes, ...]] = OrderedDict()  # by the hash of the last page
        self._uses: Counter[bytes] = Counter()  # prefixes that a page belongs to

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._uses

    def hold(self, digests: Sequence[bytes]) -> list[bytes]:
        """Pin a prefix, as much of its beginning as there is room for; the digests that are pinned no longer."""
        digests = tuple(digests[: self._room])
        if not digests:
            return []
        if digests[-1] in self._held:
            self._held.move_to_end(digests[-1])
            return []
        self._held[digests[-1]] = digests
        self._uses.update(digests)
        dropped: list[bytes] = []
        while len(self._held) > PREFIXES or len(self._uses) > self._room:
            _, oldest = self._held.popitem(last=False)
            dropped += self._drop(oldest)
        return dropped

    def clear(self) -> list[bytes]:
        """Pin nothing; the digests that were pinned."""
        dropped = list(self._uses)
        self._held.clear()
        self._uses.clear()
        return dropped

    def _drop(self, digests: Sequence[bytes]) -> list[bytes]:
        self._uses.subtract(digests)
        gone = [digest for digest in digests if not self._uses[digest]]
        for digest in gone:
            del self._uses[digest]
        return gone
