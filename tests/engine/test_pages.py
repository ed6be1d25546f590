"""Page tables against a plain list: sharing, copying, trimming and eviction never change what a row holds."""

from array import array

import numpy as np
import pytest

from trimtab.engine.pages import OutOfPages, PagePool, PageTable


def tokens_of(*values: int) -> "array[int]":
    return array("q", values)


class Rows:
    """Page tables with a store that keeps the token ids themselves."""

    def __init__(self, pages: int, size: int) -> None:
        self.pool = PagePool(pages, size)
        self.store = np.full((pages, size), -1)

    def append(self, table: PageTable, tokens: "array[int]", new: "array[int]") -> None:
        table.reserve(len(tokens) + len(new))
        self.copy()
        for offset, token in enumerate(new, start=len(tokens)):
            self.store[table.pages[offset // self.pool.page_size], offset % self.pool.page_size] = token
        tokens.extend(new)
        table.stored(tokens, len(tokens))

    def copy(self) -> None:
        for source, target in self.pool.copies:
            self.store[target] = self.store[source]
        self.pool.copies.clear()

    def read(self, table: PageTable) -> list[int]:
        return self.store[table.pages].reshape(-1)[: table.length].tolist()


@pytest.mark.parametrize("seed", range(20))
def test_random_forks_trims_and_frees_keep_every_row_intact(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = Rows(pages=64, size=int(rng.integers(1, 6)))
    live: list[tuple[PageTable, array[int]]] = []
    for _ in range(300):
        action = rng.choice(["new", "fork", "append", "trim", "free"], p=[0.15, 0.2, 0.4, 0.15, 0.1])
        try:
            if action == "new" or not live:
                # A vocabulary of two tokens and short prompts make cache hits frequent.
                prompt = array("q", rng.integers(0, 2, rng.integers(1, 12)).tolist())
                table = PageTable(rows.pool)
                live.append((table, prompt))
                found = table.match(prompt)
                new, prompt[:] = prompt[found:], prompt[:found]
                rows.append(table, prompt, new)
                continue
            index = int(rng.integers(len(live)))
            table, tokens = live[index]
            if action == "fork":
                live.append((table.fork(), tokens[:]))
            elif action == "append":
                rows.append(table, tokens, array("q", rng.integers(0, 2, rng.integers(1, 7)).tolist()))
            elif action == "trim":
                keep = int(rng.integers(0, len(tokens) + 1))
                table.trim(keep)
                del tokens[keep:]
            else:
                table.free()
                del live[index]
        except OutOfPages:
            table, _ = live.pop(int(rng.integers(len(live))))
            table.free()
            rows.copy()
        for table, tokens in live:
            assert rows.read(table) == tokens[: table.length].tolist()
            assert table.length <= len(tokens)
        live = [(table, tokens[: table.length]) for table, tokens in live]
        rows.pool.check([table for table, _ in live])
    for table, _ in live:
        table.free()
    rows.pool.check([])


def test_a_shared_partial_page_is_copied_by_the_writer_only() -> None:
    rows = Rows(pages=16, size=4)
    table, tokens = PageTable(rows.pool), tokens_of()
    rows.append(table, tokens, tokens_of(1, 2, 3, 4, 5))
    twin, twin_tokens = table.fork(), tokens[:]
    assert twin.pages == table.pages
    rows.append(twin, twin_tokens, tokens_of(9))
    assert twin.pages[0] == table.pages[0], "a full page stays shared"
    assert twin.pages[1] != table.pages[1]
    assert rows.read(table) == [1, 2, 3, 4, 5]
    assert rows.read(twin) == [1, 2, 3, 4, 5, 9]


def test_match_finds_full_pages_of_freed_rows_and_stops_at_the_first_difference() -> None:
    rows = Rows(pages=16, size=2)
    table, tokens = PageTable(rows.pool), tokens_of()
    rows.append(table, tokens, tokens_of(1, 2, 3, 4, 5))
    table.free()
    assert rows.pool.used == 0
    assert PageTable(rows.pool).match(tokens_of(1, 2, 3, 4, 5, 6)) == 4
    assert PageTable(rows.pool).match(tokens_of(1, 2, 9, 4)) == 2
    assert PageTable(rows.pool).match(tokens_of(3, 4)) == 0, "the hash is chained: a page depends on what precedes it"
    assert PageTable(rows.pool, salt=b"other").match(tokens_of(1, 2, 3, 4)) == 0


def test_a_trimmed_page_is_not_found_under_its_old_tokens() -> None:
    rows = Rows(pages=16, size=2)
    table, tokens = PageTable(rows.pool), tokens_of()
    rows.append(table, tokens, tokens_of(1, 2, 3, 4))
    table.trim(3)
    rows.append(table, tokens_of(1, 2, 3), tokens_of(7))
    other = PageTable(rows.pool)
    assert other.match(tokens_of(1, 2, 3, 4)) == 2
    again = PageTable(rows.pool)
    assert again.match(tokens_of(1, 2, 3, 7)) == 4
    assert rows.read(again) == [1, 2, 3, 7]


def test_the_least_recently_used_cached_page_is_given_up_first() -> None:
    rows = Rows(pages=3, size=1)
    for token in (1, 2):
        table = PageTable(rows.pool)
        rows.append(table, tokens_of(), tokens_of(token))
        table.free()
    rows.append(PageTable(rows.pool), tokens_of(), tokens_of(3))
    assert PageTable(rows.pool).match(tokens_of(1)) == 0
    assert PageTable(rows.pool).match(tokens_of(2)) == 1


def test_sharing_can_be_switched_off() -> None:
    pool = PagePool(8, 2, share=False)
    table = PageTable(pool)
    table.reserve(2)
    table.stored(tokens_of(1, 2), 2)
    assert PageTable(pool).match(tokens_of(1, 2)) == 0


def test_check_sees_a_leak() -> None:
    pool = PagePool(8, 2)
    PageTable(pool).reserve(2)
    with pytest.raises(AssertionError, match="page"):
        pool.check([])
