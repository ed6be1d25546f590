"""Several processes at one file: nothing acknowledged is lost, not even when one is killed, and all see each other."""

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from threading import Thread

import numpy as np

from trimtab.decoders.library import Asked, Library, Norm, NormPatch

# Writes from four threads until it is killed or a thread has made its share; says each norm once it is stored.
WRITER = """
import sys
from pathlib import Path
from threading import Lock, Thread
from trimtab.decoders.library import Library, Norm, NormPatch

path, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
library, speaking = Library(path), Lock()

def work(thread):
    for i in range(count):
        id_ = f"{name}-{thread}-{i}"
        library.norms.create(Norm(id=id_, text=f"first {id_}", tags=("new",)))
        if i % 3 == 0:
            library.norms.patch(id_, NormPatch(text=f"second {id_}", tags=("old",)))
        if i % 5 == 4:
            library.norms.delete(id_)
        library.norms.patch("shared", NormPatch(topic=id_))
        with speaking:
            print(id_, flush=True)

threads = [Thread(target=work, args=(thread,)) for thread in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
library.close()
"""


def start(path: Path, name: str, count: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def said(process: "subprocess.Popen[str]", lines: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline().strip() for _ in range(lines)]


def finished(process: "subprocess.Popen[str]") -> list[str]:
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return out.split()


def check(path: Path, library: Library, acknowledged: list[str]) -> None:
    """Every acknowledged norm is as it was left, every table agrees with every other, and the index with the texts."""
    there = {norm.id: norm for norm in library.norms.dump()}
    for id_ in acknowledged:
        i = int(id_.rpartition("-")[2])
        if i % 5 == 4:
            assert id_ not in there
            continue
        changed = i % 3 == 0
        assert (there[id_].text, there[id_].tags, there[id_].version) == (
            f"{'second' if changed else 'first'} {id_}",
            ("old",) if changed else ("new",),
            2 if changed else 1,
        )
    with sqlite3.connect(path) as c:
        assert c.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        c.execute("INSERT INTO words (words) VALUES ('integrity-check')")
        assert (
            c.execute("SELECT rowid, text FROM words").fetchall() == c.execute("SELECT key, text FROM norms").fetchall()
        )
        tags = c.execute("SELECT key, json_extract(tags, '$[0]') FROM norms WHERE tags != '[]' ORDER BY key").fetchall()
        assert tags == c.execute("SELECT key, tag FROM tags ORDER BY key").fetchall()
    c.close()


def test_two_processes_and_many_threads_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "norms.sqlite"
    library = Library(path)
    library.norms.create(Norm(id="shared", text="a"))
    processes = [start(path, name, 15) for name in ("p", "q")]
    patches = 100
    threads = [
        Thread(target=lambda: [library.norms.patch("shared", NormPatch(locale="de")) for _ in range(patches // 2)])
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    acknowledged = [id_ for process in processes for id_ in finished(process)]
    for thread in threads:
        thread.join()
    assert len(acknowledged) == 2 * 4 * 15
    assert library.norms.get("shared").version == 1 + patches + len(acknowledged)
    check(path, library, acknowledged)
    library.close()


def test_a_killed_writer_loses_nothing_that_it_said(tmp_path: Path) -> None:
    path = tmp_path / "norms.sqlite"
    with_shared = Library(path)
    with_shared.norms.create(Norm(id="shared", text="a"))
    acknowledged: list[str] = []
    for turn, lines in enumerate((5, 23, 40)):
        process = start(path, f"p{turn}", 100_000)
        acknowledged += said(process, lines)
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate(timeout=60)
        acknowledged += [
            line for line in rest.splitlines(keepends=False) if line.count("-") == 2 and rest.endswith("\n")
        ]
        check(path, with_shared, acknowledged)
        with_shared.norms.patch("shared", NormPatch(topic="still writable"))
    assert len(acknowledged) >= 68
    with_shared.close()
    again = Library(path)
    check(path, again, acknowledged)
    again.close()


def test_files_are_made_once_by_whoever_comes_first(tmp_path: Path) -> None:
    processes = [start(tmp_path / "norms.sqlite", name, 0) for name in "pqr"]
    assert [finished(process) for process in processes] == [[], [], []]
    Library(tmp_path / "norms.sqlite").close()


def test_what_another_process_writes_is_in_force_at_once(tmp_path: Path) -> None:
    """Words and vectors alike; the second library stands for a process, since the two share nothing but the file."""
    one, other = Library(tmp_path / "norms.sqlite"), Library(tmp_path / "norms.sqlite")
    east, north = np.eye(2, dtype=np.float32)

    def by_words(query: str) -> str:
        return "".join(each.norm.id for each in one.norms.retrieve(Asked(query)).found)

    def by_vector(query: np.ndarray, model: str = "m") -> str:
        asked = Asked("", embedding=query, model=model, share=1.0)
        return "".join(each.norm.id for each in one.norms.retrieve(asked).found)

    def embed(library: Library, model: str = "m") -> int:
        return library.norms.embed_missing(
            model, lambda texts: np.stack([east if "sun" in t else north for t in texts])
        )

    assert (by_words("sun"), by_vector(east)) == ("", "")
    other.norms.load([Norm(id="a", text="the sun"), Norm(id="b", text="the moon")])
    assert (by_words("sun"), by_vector(east)) == ("a", "")
    assert embed(other) == 2
    assert (by_vector(east), by_vector(north)) == ("ab", "ba")
    other.norms.patch("a", NormPatch(text="the star"))
    assert (by_words("sun"), by_words("star"), by_vector(east)) == ("", "a", "b")
    assert embed(other) == 1
    other.norms.create(Norm(id="c", text="sun again"))
    assert embed(other) == 1
    assert by_vector(east) == "cab"
    other.norms.delete("c")
    other.norms.patch("b", NormPatch(tags=("x",)))
    assert (by_vector(east), embed(other)) == ("ab", 0)
    assert embed(other, "another model") == 2
    assert (by_vector(north), by_vector(north, "another model")) == ("ab", "ab")
    other.norms.patch("b", NormPatch(text="the sun"))
    assert (by_vector(north), by_vector(north, "another model")) == ("a", "a")
    one.close()
    other.close()
