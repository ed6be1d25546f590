"""Pages of keys and values as integers: who refers to which page, and which pages later prompts may share.

No tensor is touched here. A `PagePool` counts references and remembers full pages by a chained hash of the tokens
they hold; a `PageTable` is one sequence's ordered list of pages. Page 0 is the trash page: padded rows write there.
"""

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b

from trimtab.engine.pins import Pins

TRASH_PAGE = 0


class OutOfPages(Exception):
    """Every page of `pool` is referred to by a live sequence."""

    def __init__(self, pool: "PagePool") -> None:
        super().__init__()
        self.pool = pool


class PagePool:
    """Reference counts, the free list and the prefix cache of `pages` pages of `page_size` tokens each."""

    def __init__(self, pages: int, page_size: int, *, share: bool = True) -> None:
        self.page_size = page_size
        self.total = pages - 1
        self.references = [0] * pages
        self.copies: list[tuple[int, int]] = []
        """(source, target) page copies that the store must do before the next forward; the store empties it"""
        self.forks = 0
        self._share = share
        self._free = list(range(pages - 1, TRASH_PAGE, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # unreferenced but hashed, least recently used first
        self._kept: OrderedDict[int, None] = OrderedDict()  # the same, of pinned prefixes: given up after those
        self._pins = Pins(self.total)
        self.pinned = 0
        """stored pages of constant prefixes, whether a sequence refers to them now or not"""
        self._page_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    @property
    def available(self) -> int:
        """Pages that can be allocated now; cached ones count, since they are given up on demand."""
        return len(self._free) + self.cached

    @property
    def cached(self) -> int:
        return len(self._cached) + len(self._kept)

    @property
    def used(self) -> int:
        return self.total - self.available

    def table(self, salt: bytes = b"") -> "PageTable":
        """An empty table; `salt` starts the hashes of its pages."""
        return PageTable(self, salt)

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def allocate(self) -> int:
        """Take a page with one reference; the least recently used cached page is given up if none is free."""
        if self._free:
            page = self._free.pop()
        elif idle := self._cached or self._kept:
            page, _ = idle.popitem(last=False)
            self.forget(page)
        else:
            raise OutOfPages(self)
        self.references[page] = 1
        return page

    def retain(self, page: int) -> None:
        self.references[page] += 1
        self._cached.pop(page, None)
        self._kept.pop(page, None)

    def release(self, page: int) -> None:
        self.references[page] -= 1
        if self.references[page] == 0:
            digest = self._hash_of.get(page)
            if digest is None:
                self._free.append(page)
            else:
                (self._kept if digest in self._pins else self._cached)[page] = None

    def lookup(self, digest: bytes) -> int | None:
        """The page that holds the prefix `digest`, without taking a reference."""
        return self._page_of.get(digest)

    def remember(self, page: int, digest: bytes) -> None:
        """Let later prompts find this full page; the first page of a prefix wins."""
        if self._share and digest not in self._page_of and page not in self._hash_of:
            self._page_of[digest] = page
            self._hash_of[page] = digest
            self.pinned += digest in self._pins

    def pin(self, digests: Sequence[bytes]) -> None:
        """Give the pages of a constant prefix up last from now on."""
        new = {digest for digest in digests if digest not in self._pins}
        dropped = self._pins.hold(digests)
        self.pinned += sum(digest in self._page_of for digest in new if digest in self._pins)
        self.pinned -= sum(digest in self._page_of for digest in dropped if digest not in new)
        self._move(dropped, self._kept, self._cached)
        self._move((digest for digest in digests if digest in self._pins), self._cached, self._kept)

    def unpin(self) -> None:
        """Treat all prefixes alike again, until they are pinned anew."""
        self._move(self._pins.clear(), self._kept, self._cached)
        self.pinned = 0

    def _move(self, digests: Iterable[bytes], source: dict[int, None], target: dict[int, None]) -> None:
        for digest in digests:
            page = self._page_of.get(digest)
            if page is not None and page in source:
                del source[page]
                target[page] = None

    @contextmanager
    def unshared(self) -> Iterator[None]:
        """Pages that are filled within are not remembered: no later prompt finds them, and they are free afterwards."""
        share, self._share = self._share, False
        try:
            yield
        finally:
            self._share = share

    def forget(self, page: int) -> None:
        digest = self._hash_of.pop(page, None)
        if digest is not None:
            del self._page_of[digest]
            self.pinned -= digest in self._pins

    def check(self, tables: Iterable["PageTable"]) -> None:
        """Raise AssertionError unless references equal the live tables' and every page is in exactly one place."""
        expected = Counter(page for table in tables for page in table.pages)
        for page in range(1, self.total + 1):
            assert self.references[page] == expected[page], f"page {page}: {self.references[page]} != {expected[page]}"
        idle = [*self._free, *self._cached, *self._kept]
        assert len(set(idle)) == len(idle) == self.total - len(expected), "a page is lost or listed twice"
        assert all(self.references[page] == 0 for page in idle), "an idle page has references"
        assert all(self._page_of[digest] == page for page, digest in self._hash_of.items())
        assert self.pinned == sum(digest in self._pins for digest in self._page_of), "pins are miscounted"
        for pages, pinned in ((self._cached, False), (self._kept, True)):
            assert all((self._hash_of[page] in self._pins) is pinned for page in pages), "a pin is in the wrong place"


class PageTable:
    """The pages of one sequence in one pool. `length` tokens of it have their keys and values stored."""

    def __init__(self, pool: PagePool, salt: bytes = b"") -> None:
        self.pool = pool
        self.pages: list[int] = []
        self.length = 0
        self._salt = salt
        self._digests: list[bytes] = []  # chained hash after each full page

    def fork(self) -> "PageTable":
        """A second table over the same pages; the first to write into a shared page copies it."""
        other = PageTable(self.pool, self._salt)
        other.pages, other.length, other._digests = self.pages.copy(), self.length, self._digests.copy()
        for page in other.pages:
            self.pool.retain(page)
        self.pool.forks += 1
        return other

    def match(self, tokens: "array[int]") -> int:
        """Take the cached pages of the longest known prefix of `tokens`, which must not be stored yet; its length."""
        assert not self.pages, "match starts from an empty table"
        size = self.pool.page_size
        for start in range(0, len(tokens) - size + 1, size):
            digest = self._digest(tokens[start : start + size])
            page = self.pool.lookup(digest)
            if page is None:
                break
            self.pool.retain(page)
            self.pages.append(page)
            self._digests.append(digest)
            self.length += size
        return self.length

    def reserve(self, length: int) -> None:
        """Make positions `self.length` to `length - 1` writable; OutOfPages leaves a valid, shorter reservation."""
        size = self.pool.page_size
        written = min(len(self.pages), self.pool.pages_for(length)) if length > self.length else 0
        for index in range(self.length // size, written):
            page = self.pages[index]
            if self.pool.references[page] > 1:
                copy = self.pool.allocate()
                if index * size < self.length:  # pages behind hold nothing yet
                    self.pool.copies.append((page, copy))
                self.pool.release(page)
                self.pages[index] = copy
            else:
                self.pool.forget(page)
        while len(self.pages) < self.pool.pages_for(length):
            self.pages.append(self.pool.allocate())

    def stored(self, tokens: "array[int]", length: int) -> None:
        """The first `length` of `tokens` are now stored; full pages become findable."""
        self.length = length
        size = self.pool.page_size
        while len(self._digests) < length // size:
            start = len(self._digests) * size
            digest = self._digest(tokens[start : start + size])
            self.pool.remember(self.pages[start // size], digest)
            self._digests.append(digest)

    def pin(self, length: int) -> None:
        """Let the pool give up the full pages of the first `length` tokens, which are stored, after all others."""
        self.pool.pin(self._digests[: length // self.pool.page_size])

    def trim(self, length: int) -> None:
        """Forget everything after the first `length` tokens."""
        self.length = min(self.length, length)
        keep = self.pool.pages_for(self.length)
        # Ends first, since the cache gives up what was released first, and finds nothing without its beginning.
        for page in reversed(self.pages[keep:]):
            self.pool.release(page)
        del self.pages[keep:]
        del self._digests[self.length // self.pool.page_size :]

    def free(self) -> None:
        self.trim(0)

    def _digest(self, tokens: "array[int]") -> bytes:
        parent = self._digests[-1] if self._digests else self._salt
        return blake2b(parent + b"|" + tokens.tobytes(), digest_size=16).digest()
