"""Profiles, and that what is erased has left the file."""

import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimtab.decoders.library import Library, Norm
from trimtab.decoders.library.errors import NotFound

PREFERENCE = {"weights": {"kind": 0.25, "höflich": 1}, "note": 'a "quoted" text'}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "library.sqlite"


@pytest.fixture
def library(path: Path) -> Iterator[Library]:
    made = Library(path)
    yield made
    made.close()


def holds(path: Path, text: str) -> bool:
    """Whether a text stands in any of the files that belong to the store."""
    return any(text.encode() in file.read_bytes() for file in path.parent.iterdir())


def test_profiles_belong_to_a_tenant(library: Library) -> None:
    profiles = library.profiles
    profiles.put("t", "u", PREFERENCE)
    profiles.put("t", "b", {})
    profiles.put(None, "u", {"text": "short"})
    assert profiles.get("t", "u") == PREFERENCE
    assert profiles.get(None, "u") == {"text": "short"}
    assert profiles.list("t") == (("b", {}), ("u", PREFERENCE))
    profiles.put("t", "u", {"text": "long"})
    assert profiles.get("t", "u") == {"text": "long"}
    profiles.delete("t", "u")
    assert profiles.list("t") == (("b", {}),)
    assert profiles.list("nobody") == ()
    for missing in (lambda: profiles.get("t", "u"), lambda: profiles.delete("t", "u"), lambda: profiles.get("s", "b")):
        with pytest.raises(NotFound, match="no profile"):
            missing()
    assert profiles.get(None, "u") == {"text": "short"}


def test_an_erased_profile_is_in_no_file(library: Library, path: Path) -> None:
    library.profiles.put("t", "u", {"text": "an earlier secret"})
    library.profiles.put("t", "u", {"text": "the later secret"})
    library.profiles.put("t", "v", {"text": "what another likes"})
    assert holds(path, "the later secret")
    library.profiles.delete("t", "u")
    assert not holds(path, "earlier secret")
    assert not holds(path, "later secret")
    assert holds(path, "what another likes")


def test_no_trace_is_left_when_pages_are_split_and_merged(library: Library, path: Path) -> None:
    generator = random.Random(0)
    left = {f"user{i}": "".join(generator.choices("abcdefghij", k=generator.randint(20, 6000))) for i in range(150)}
    for id_, text in left.items():
        library.profiles.put("t", id_, {"text": text})
    erased = generator.sample(sorted(left), 75)
    for id_ in erased:
        library.profiles.delete("t", id_)
    data = b"".join(file.read_bytes() for file in path.parent.iterdir())
    traces = {id_ for id_, text in left.items() if any(text[i : i + 16].encode() in data for i in range(0, 20, 4))}
    assert traces == set(left) - set(erased)


def test_a_deleted_norm_is_in_no_file(library: Library, path: Path) -> None:
    for i in range(50):
        library.norms.create(Norm(id=f"n{i}", text=f"Rule {i} tells of common things.", tags=("common",)))
    library.norms.create(Norm(id="gone-id", text="Never tell Zaphodine of the treasure " * 200, tags=("goner",)))
    assert all(holds(path, trace) for trace in ("tell Zaphodine of", "gone-id", "goner", "zaphodin"))
    library.norms.delete("gone-id")
    assert not any(holds(path, trace) for trace in ("Zaphodine", "gone-id", "goner"))
    library.close()
    assert not holds(path, "zaphodin"), "its words leave the index when the library is closed"
    assert holds(path, "tells of common things")


def test_an_erasure_that_a_reader_holds_up_is_made_up_for(
    library: Library, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("trimtab.decoders.library.database.ERASING", 0.05)
    library.profiles.put("t", "u", {"text": "the secret"})
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM profiles").fetchone()
    library.profiles.delete("t", "u")
    assert library.profiles.list("t") == ()
    assert holds(path, "the secret")
    assert "is being read" in caplog.text
    reader.close()
    library.profiles.put("t", "v", {})
    assert not holds(path, "the secret")
