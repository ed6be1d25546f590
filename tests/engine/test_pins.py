"""Pinned prefixes: found again after a flood of other prompts, given up last, within bounds, and never in the way."""

from array import array
from collections.abc import Iterator

import pytest
from toy import Toy, random_table

from trimtab.engine.pages import OutOfPages, PagePool, PageTable
from trimtab.engine.pins import PREFIXES, SHARE, Pins
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.settings import EngineSettings

TABLE = random_table(7)
PREFIX = [1, 2, 3, 4, 5, 6, 1, 3]  # two pages of a toy's four tokens
PAGES = 33
"""of a toy's pool: 32 and the trash page, of which eight may be pinned"""


def short(tokens: int = 2, seed: int = 0) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, seed=seed)


def small_toy(pages: int = PAGES, **changes: object) -> Toy:
    settings = {"max_rows": 8, "guides": {}, **changes}
    return Toy(TABLE, pages=pages, settings=EngineSettings.model_validate(settings))


def others() -> Iterator[list[int]]:
    """Prompts of five pages that have no page in common."""
    for a in range(7):
        for b in range(7):
            yield [a, b, *(a, b, 0, 6) * 5][:20]


def flood(toy: Toy, requests: int = 40) -> None:
    """More prompts than the pool holds, one after the other."""
    for prompt, _ in zip(others(), range(requests), strict=False):
        toy.run(prompt, short())
    assert 5 * requests > toy.runner.pool.total


def cached(toy: Toy, prompt: list[int], **changes: object) -> int:
    return toy.run(prompt, short(), **changes).usage.cached_tokens


def test_a_pinned_prefix_is_found_after_a_flood_and_an_ordinary_one_is_not() -> None:
    for pinned, expected in ((len(PREFIX), len(PREFIX)), (0, 0)):
        toy = small_toy()
        assert cached(toy, [*PREFIX, 2, 2], pinned=pinned) == 0
        flood(toy)
        toy.runner.pool.check([])
        assert toy.runner.pool.pinned == pinned // 4
        assert cached(toy, [*PREFIX, 5, 5, 5], pinned=pinned) == expected


def test_a_page_that_the_prefix_ends_in_is_not_pinned() -> None:
    toy = small_toy()
    toy.run([*PREFIX, 2, 2, 2], short(), pinned=len(PREFIX) + 1)
    assert toy.runner.pool.pinned == len(PREFIX) // 4


def test_the_answer_is_the_same_from_pinned_pages() -> None:
    toy, fresh = small_toy(), small_toy()
    toy.run([*PREFIX, 2], short(), pinned=len(PREFIX))
    flood(toy)
    again = toy.run([*PREFIX, 4, 1], short(12), pinned=len(PREFIX))
    assert again.usage.cached_tokens == len(PREFIX)
    assert again.choices[0].token_ids == fresh.run([*PREFIX, 4, 1], short(12)).choices[0].token_ids


def test_a_request_that_needs_the_whole_pool_takes_the_pins_and_ends() -> None:
    taken = []
    for pinned in (len(PREFIX), 0):
        toy = small_toy()
        toy.run([*PREFIX, 2], short(), pinned=pinned)
        assert toy.runner.pool.pinned == pinned // 4
        whole = toy.run([6, 5, 4, 3], short(4 * (PAGES - 1) - 4))
        assert whole.choices[0].finish_reason == "length"
        taken.append(whole.usage.preemptions)
        assert toy.runner.pool.pinned == 0
        assert cached(toy, [*PREFIX, 2], pinned=pinned) == 0
        assert toy.runner.pool.pinned == pinned // 4, "pinned again by the next request"
    assert taken[0] == taken[1]


def test_pins_let_nobody_wait_and_preempt_nobody() -> None:
    """Two requests that fill the pool together, beside a prefix that nobody reads now."""
    half = 4 * (PAGES - 1) // 2
    taken = []
    for pinned in (len(PREFIX), 0):
        toy = small_toy()
        toy.run([*PREFIX, 2], short(), pinned=pinned)
        handles = [toy.submit([6, 5, 4, token], short(half - 4, seed=token)) for token in (1, 2)]
        toy.engine.tick()
        assert not toy.engine.scheduler.waiting
        toy.finish()
        taken.append([toy.result(handle).usage.preemptions for handle in handles])
    assert taken[0] == taken[1]


def test_a_prompt_as_large_as_the_pool_is_admitted_beside_pins() -> None:
    toy = small_toy()
    toy.run([*PREFIX, 2], short(), pinned=len(PREFIX))
    small = toy.submit([1], short(4))
    large = toy.submit([2] * (4 * (PAGES - 4)), short())
    toy.engine.tick()
    assert not toy.engine.scheduler.waiting, "pages of pins are as good as free ones"
    toy.finish()
    assert [toy.result(handle).choices[0].finish_reason for handle in (small, large)] == ["length"] * 2


def test_every_request_ends_in_a_pool_just_large_enough_for_one() -> None:
    """Each of them pins its prompt, and needs all pages itself."""
    toy = small_toy(pages=9)
    prompts = [[token, *PREFIX, token] for token in range(7)]
    handles = [toy.submit(prompt, short(32 - len(prompt), seed=1), pinned=len(prompt)) for prompt in prompts]
    toy.finish()
    assert all(toy.result(handle).choices[0].finish_reason == "length" for handle in handles)
    assert toy.runner.pool.pinned <= 8 // SHARE


def test_requests_of_other_salts_have_pins_of_their_own() -> None:
    toy = small_toy()
    for salt in (b"a", b"b"):
        assert cached(toy, [*PREFIX, 2], pinned=len(PREFIX), salt=salt) == 0
    assert toy.runner.pool.pinned == 4
    flood(toy)
    assert [cached(toy, [*PREFIX, 2], salt=salt) for salt in (b"a", b"b", b"")] == [8, 8, 0]


def test_the_least_recently_used_prefix_makes_room() -> None:
    toy = small_toy()
    prefixes = [[token, *PREFIX[1:]] for token in range(5)]  # four of them are a quarter of the pool
    for prefix in (*prefixes[:4], prefixes[0], prefixes[4]):
        toy.run([*prefix, 2], short(), pinned=len(prefix))
    assert toy.runner.pool.pinned == (PAGES - 1) // SHARE
    flood(toy)
    assert [cached(toy, [*prefix, 2]) for prefix in prefixes] == [8, 0, 8, 8, 8]


def test_adopting_other_guides_forgets_the_pins_and_keeps_the_pages() -> None:
    toy = small_toy()
    toy.run([*PREFIX, 2], short(), pinned=len(PREFIX))
    toy.engine.adopt(toy.models, toy.guides, {})
    toy.runner.pool.check([])
    assert toy.runner.pool.pinned == 0
    assert cached(toy, [*PREFIX, 2]) == len(PREFIX)
    flood(toy)
    assert cached(toy, [*PREFIX, 2]) == 0


def test_the_engine_tells_of_pinned_pages() -> None:
    toy = small_toy()
    toy.run([*PREFIX, 2], short(), pinned=len(PREFIX))
    assert (toy.stats.pages_pinned, toy.stats.pages_used) == (2, 0)


def test_without_a_prefix_cache_nothing_is_pinned() -> None:
    toy = small_toy(prefix_cache=False)
    toy.run([*PREFIX, 2], short(), pinned=len(PREFIX))
    assert toy.runner.pool.pinned == 0


def test_a_prefix_of_a_prefix_stays_when_the_longer_one_goes() -> None:
    pins = Pins(4 * SHARE)
    assert pins.hold([b"1", b"2", b"3"]) == []
    assert pins.hold([b"1", b"2"]) == []
    assert pins.hold([b"9"]) == []
    assert pins.hold([b"8"]) == [b"3"]
    assert [each in pins for each in (b"1", b"2", b"3", b"8", b"9")] == [True, True, False, True, True]
    assert pins.hold([b"7"]) == [b"1", b"2"]


def test_prefixes_are_bounded_in_number_and_in_pages() -> None:
    pins = Pins(1000 * SHARE)
    for number in range(2 * PREFIXES):
        pins.hold([b"%d" % number])
    assert [b"%d" % number in pins for number in range(2 * PREFIXES)] == [False] * PREFIXES + [True] * PREFIXES
    pins.hold([b"%d" % number for number in range(2000)])
    held = [b"%d" % number in pins for number in range(2000)]
    assert held == [True] * 1000 + [False] * 1000, "a prefix longer than the share: its beginning"


def test_a_pool_gives_up_ordinary_pages_first_then_pinned_ones_from_their_ends() -> None:
    pool = PagePool(9, 1)
    tables = {}
    for name, tokens in (("pinned", (1, 2)), ("plain", (3, 4, 5))):
        tables[name] = PageTable(pool)
        tables[name].reserve(len(tokens))
        tables[name].stored(array("q", tokens), len(tokens))
    tables["pinned"].pin(2)
    tables["pinned"].free()
    tables["plain"].free()
    pool.check([])
    live = PageTable(pool)

    def known(*tokens: int) -> int:
        table = PageTable(pool)
        found = table.match(array("q", tokens))
        table.free()
        return found

    counts = []
    for length in range(4, 9):
        live.reserve(length)
        counts.append((known(3, 4, 5), known(1, 2)))
        pool.check([live])
    assert counts == [(2, 2), (1, 2), (0, 2), (0, 1), (0, 0)]
    assert pool.available == 0
    with pytest.raises(OutOfPages):
        live.reserve(9)


def test_a_second_copy_of_a_pinned_page_is_an_ordinary_one() -> None:
    """Two prompts read at the same time store the prefix twice; the first to be known is found."""
    pool = PagePool(9, 1)
    first, second = PageTable(pool), PageTable(pool)
    for table in (first, second):
        table.reserve(1)
        table.stored(array("q", [1]), 1)
    first.free()
    second.pin(1)
    pool.check([second])
    assert (pool.pinned, pool.cached) == (1, 1)
    second.free()
    pool.check([])
    assert (pool.pinned, pool.cached) == (1, 1)
