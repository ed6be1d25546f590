"""Norms in the store: what is accepted, what changes them, and that nobody's change is lost."""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from trimtab.decoders.library import Asked, Library, Norm, NormPatch
from trimtab.decoders.library import schema as library_schema
from trimtab.decoders.library.errors import Conflict, Exists, LibraryError, Locked, NotFound, Unusable
from trimtab.engine.errors import InvalidRequest

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def library() -> Iterator[Library]:
    made = Library()
    yield made
    made.close()


def norm(id_: str = "a", text: str = "Be kind.", **fields: Any) -> Norm:
    return Norm(id=id_, text=text, **fields)


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"id": ""}, "id"),
        ({"id": "-a"}, "id"),
        ({"id": "a/b"}, "id"),
        ({"id": "a b"}, "id"),
        ({"id": "a\n"}, "id"),
        ({"id": "ä"}, "id"),
        ({"id": "a" * 129}, "id"),
        ({"text": ""}, "text"),
        ({"text": " \n "}, "text"),
        ({"text": "x" * 20_001}, "text"),
        ({"text": "a\0b"}, "text"),
        ({"text": "a\x1b[2J"}, "text"),
        ({"text": "a\ud800"}, "text"),
        ({"tags": ["x" * 65]}, "tags"),
        ({"tags": [""]}, "tags"),
        ({"tags": ["a\nb"]}, "tags"),
        ({"tags": [" a"]}, "tags"),
        ({"tags": [str(i) for i in range(33)]}, "tags"),
        ({"locale": "d"}, "locale"),
        ({"locale": "de_AT"}, "locale"),
        ({"topic": "a\tb"}, "topic"),
        ({"tenant": ""}, "tenant"),
        ({"valid_from": "2026-01-01T00:00:00"}, "valid_from"),
        ({"valid_from": "20261231"}, "a date is written as"),
        ({"valid_from": 5}, "a date is written as"),
        ({"valid_from": "0001-01-01T00:00:00+14:00"}, "valid_from"),
        ({"valid_from": NEW_YEAR, "valid_until": NEW_YEAR}, "valid_from must come before valid_until"),
        ({"author": "me"}, "author"),
    ],
)
def test_what_a_norm_cannot_be(fields: dict[str, Any], where: str) -> None:
    with pytest.raises(ValidationError, match=where):
        Norm(**{"id": "a", "text": "Be kind.", **fields})


def test_what_is_stored_comes_back(library: Library) -> None:
    noon = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    whole = norm(
        "A.b_c:d-" + "9" * 120,
        "Grüße,\n\t" + "x" * 19_990 + "😀",
        tags=[*(f"{i:064}" for i in range(30)), "ärzte", "ärzte"],
        locale="de-AT",
        tenant="Käufer & Co.",
        topic="health",
        valid_from=noon,
        valid_until=noon + timedelta(microseconds=1),
    )
    created = library.norms.create(whole)
    got = library.norms.get(whole.id)
    assert got == created
    assert {name: getattr(got, name) for name in Norm.model_fields} == whole.model_dump()
    assert got.version == 1
    assert got.tags == whole.tags
    assert len(got.tags) == 31
    assert got.valid_from is not None
    assert (got.valid_from, got.valid_from.utcoffset()) == (noon, timedelta(0))
    assert abs(got.updated - datetime.now(UTC)) < timedelta(minutes=1)


def test_the_life_of_a_norm(library: Library) -> None:
    norms = library.norms
    norms.create(norm(text="Be kind.", topic="shop"))
    with pytest.raises(Exists, match="'a'"):
        norms.create(norm())
    assert norms.replace(norm(text="Be short.")).version == 2
    assert norms.get("a").topic is None
    assert norms.patch("a", NormPatch(tags=("x",), topic="bank")).version == 3
    patched = norms.patch("a", NormPatch(topic=None), version=3)
    assert (patched.text, patched.tags, patched.topic, patched.version) == ("Be short.", ("x",), None, 4)
    assert norms.get("a") == patched
    norms.delete("a", version=4)
    for gone in (
        lambda: norms.get("a"),
        lambda: norms.replace(norm()),
        lambda: norms.patch("a", NormPatch(text="x")),
        lambda: norms.delete("a"),
    ):
        with pytest.raises(NotFound, match="'a'"):
            gone()


def test_a_version_that_is_gone_never_matches_again(library: Library) -> None:
    norms = library.norms
    for expected in (1, 2, 3):
        assert norms.create(norm()).version == expected
        norms.delete("a")
    norms.load([norm()])
    assert norms.get("a").version == 4
    for change in (
        lambda: norms.replace(norm(text="mine"), version=1),
        lambda: norms.patch("a", NormPatch(text="mine"), version=3),
        lambda: norms.delete("a", version=5),
    ):
        with pytest.raises(Conflict, match="at version 4") as caught:
            change()
        assert caught.value.current == 4
    assert norms.get("a").text == "Be kind."


def test_a_patch_must_fit_what_is_there(library: Library) -> None:
    library.norms.create(norm(valid_until=NEW_YEAR))
    with pytest.raises(InvalidRequest, match="before valid_until"):
        library.norms.patch("a", NormPatch(valid_from=NEW_YEAR))
    assert library.norms.get("a").version == 1
    for field in ("text", "tags"):
        with pytest.raises(ValidationError, match=field):
            NormPatch(**{field: None})


def test_a_thousand_patches_at_once_are_all_there(library: Library) -> None:
    """Every thread patches another field; then all count one number up, each retrying on a conflict."""
    fields: list[dict[str, Any]] = [{"text": "t"}, {"tags": ("x",)}, {"topic": "t"}, {"locale": "de"}, {"tenant": "t"}]
    library.norms.create(norm())
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda i: library.norms.patch("a", NormPatch(**fields[i % 5])).version, range(1000)))
    assert sorted(versions) == list(range(2, 1002))
    got = library.norms.get("a")
    assert (got.text, got.tags, got.topic, got.locale, got.tenant) == ("t", ("x",), "t", "de", "t")

    library.norms.patch("a", NormPatch(text="0"))

    def count(_: int) -> None:
        while True:
            now = library.norms.get("a")
            try:
                library.norms.patch("a", NormPatch(text=str(int(now.text) + 1)), version=now.version)
            except Conflict:
                continue
            return

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(200)))
    assert library.norms.get("a").text == "200"


def test_an_import_is_all_or_nothing(library: Library) -> None:
    norms = library.norms
    norms.load([norm("a"), norm("b"), norm("c")])
    assert norms.load([norm("a"), norm("b", "new"), norm("d")]) == (1, 1, 1)
    assert [(each.id, each.text, each.version) for each in norms.dump()] == [
        ("a", "Be kind.", 1),
        ("b", "new", 2),
        ("c", "Be kind.", 1),
        ("d", "Be kind.", 1),
    ]

    def broken() -> Iterator[Norm]:
        yield norm("e")
        raise ValueError("line 2")

    with pytest.raises(ValueError, match="line 2"):
        norms.load(broken())
    with pytest.raises(NotFound):
        norms.get("e")


def test_lists_come_in_pages_and_by_what_norms_say(library: Library) -> None:
    made = [
        norm("a", "Kind words.", tags=("x", "y"), tenant="t"),
        norm("b", "Short words.", tags=("y",), locale="de"),
        norm("c", "Kind and short.", tags=("z",), topic="shop", valid_until=NEW_YEAR),
    ]
    library.norms.load(made)

    def ids(**options: Any) -> str:
        return "".join(each.id for each in library.norms.list(**options))

    assert ids() == "abc"
    assert (ids(limit=2), ids(after="b"), ids(after="c")) == ("ab", "c", "")
    assert (ids(tags=("y",)), ids(tags=("x", "z")), ids(tags=("w",))) == ("ab", "ac", "")
    assert (ids(tenant="t"), ids(locale="de"), ids(topic="shop"), ids(tenant="u")) == ("a", "b", "c", "")
    assert (ids(q="kind"), ids(q="SHORT kind"), ids(q='"'), ids(q="kind OR")) == ("ac", "c", "abc", "")


def test_dump_reads_every_page(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.decoders.library.norms.PAGE", 3)
    library.norms.load([norm(f"n{i}") for i in range(8)])
    assert [each.id for each in library.norms.dump()] == [f"n{i}" for i in range(8)]


def test_what_is_no_store_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("these are notes, and no database at all" * 100)
    with pytest.raises(Unusable, match="is no SQLite database"):
        Library(text)
    assert text.read_text().startswith("these are notes")

    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE people (name TEXT)")
    connection.close()
    with pytest.raises(Unusable, match="database of something else"):
        Library(other)

    with pytest.raises(Unusable, match="there is no folder"):
        Library(tmp_path / "nowhere" / "norms.sqlite")
    with pytest.raises(Unusable, match="is a folder"):
        Library(tmp_path)

    newer = tmp_path / "newer.sqlite"
    Library(newer).close()
    monkeypatch.setattr(library_schema, "VERSION", 0)
    with pytest.raises(Unusable, match="newer trimtab"):
        Library(newer)


def test_an_sqlite_without_full_text_search_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            return super().execute(sql.replace("'fts5'", "'no such module'"), *values)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **options: connect(*a, **options, factory=Bare))
    with pytest.raises(Unusable, match="FTS5"):
        Library()


def test_a_file_that_stays_locked_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.decoders.library.database.PATIENCE", 0.1)
    library = Library(tmp_path / "norms.sqlite")
    library.norms.create(norm())
    other = sqlite3.connect(tmp_path / "norms.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Locked, match="locked by another process"):
        library.norms.patch("a", NormPatch(text="x"))
    assert library.norms.retrieve(Asked("kind")).found, "readers do not wait for writers"
    other.execute("ROLLBACK")
    other.close()
    assert library.norms.patch("a", NormPatch(text="x")).version == 2
    library.close()


def test_a_file_is_kept_and_a_temporary_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "norms.sqlite"
    with pytest.raises(LibraryError, match="is closed"):
        _closed(Library(path)).norms.get("a")
    library = Library(path)
    library.norms.create(norm())
    library.profiles.put("t", "u", {"text": "short"})
    library.close()
    again = Library(path)
    assert again.norms.get("a").text == "Be kind."
    assert again.profiles.get("t", "u") == {"text": "short"}
    again.close()

    temporary = Library()
    folder = temporary._database.path.parent
    temporary.norms.create(norm())
    assert folder.exists()
    _closed(temporary).close()
    assert not folder.exists()


def _closed(library: Library) -> Library:
    library.close()
    return library
