"""The folder of a run: what was asked for, every answer as it came, scores, and rows at the end.

    run.json       what the run measures and under which conditions; a run that goes on must agree with it
    drawn.jsonl    the answers that settings with a curve chose from
    answers.jsonl  answers as they came, without scores
    scores.jsonl   their scores, written when the cell that they belong to was measured
    memory.jsonl   the server's largest memory, cell by cell
    rows.jsonl     what came out; a folder that has it is complete

A kill can only leave half a line at the end of a file behind, which is dropped.
"""

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, TypeVar

from pydantic import BaseModel, ValidationError

from trimtab.bench.errors import BenchError
from trimtab.bench.plan import Plan
from trimtab.bench.records import Answer, Considered, Record, Row

Key = tuple[str, int, str, int]
"""setting, concurrency, prompt and repetition of an answer"""
M = TypeVar("M", bound=BaseModel)


class Drawn(Record):
    """An answer that a search chose from."""

    text: str
    tokens: int
    rewards: dict[str, float | None]
    """by guide"""


class Pool(Record):
    """All answers that one search chose from: a line of `drawn.jsonl`."""

    key: Key
    drawn: tuple[Drawn, ...]


class Scores(Record):
    """What one answer is worth: a line of `scores.jsonl`."""

    key: Key
    reward: float | None
    gold: float | None
    considered: tuple[Considered, ...] = ()


class Memory(Record):
    """A line of `memory.jsonl`."""

    setting: str
    concurrency: int
    held: float
    """MiB"""


def key_of(answer: Answer) -> Key:
    """What no two answers of a run share."""
    return answer.setting, answer.concurrency, answer.prompt, answer.seed


@contextmanager
def opened(path: Path, say: Callable[[str], None]) -> Iterator["Folder"]:
    """The folder, made if need be, and held against another run; `say` tells of half lines. Raises BenchError."""
    made = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise BenchError(f"--out {path} cannot be a run's folder ({error.strerror}): choose another one") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it however the process ends
        except BlockingIOError:
            raise BenchError(f"another run writes to {path}: wait for it, or choose another --out") from None
        folder = Folder(path, say)
        try:
            yield folder
        finally:
            folder.close()
            if made and not any(path.iterdir()):
                path.rmdir()
    finally:
        os.close(handle)


class Folder:
    """The files of one run. Use `opened`, which keeps two runs apart."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path = path
        self._say = say
        self._files: dict[str, TextIO] = {}
        self.drawn = {each.key: each.drawn for each in self._lines("drawn.jsonl", Pool)}
        self.scores = {each.key: each for each in self._lines("scores.jsonl", Scores)}
        came = {key_of(each): each for each in self._lines("answers.jsonl", Answer)}
        complete = (path / "rows.jsonl").exists()
        self.answers = {key: each for key, each in came.items() if complete or each.error is None}
        """as they came; a run that goes on asks anew what failed before"""

    @property
    def plan(self) -> Plan | None:
        """What the run measures; None before it began."""
        file = self.path / "run.json"
        return _parsed(Plan, file.read_bytes(), str(file)) if file.exists() else None

    @property
    def rows(self) -> list[Row] | None:
        """What came out; None unless the run is complete."""
        return self._lines("rows.jsonl", Row) or None

    @property
    def part(self) -> int:
        """Number of the next start."""
        return 1 + max((answer.part for answer in self.answers.values()), default=-1)

    @property
    def unscored(self) -> list[Answer]:
        """Answers that came to their end and have no scores yet."""
        return [each for key, each in self.answers.items() if each.error is None and key not in self.scores]

    @property
    def peaks(self) -> dict[tuple[str, int], float]:
        """MiB by setting and concurrency."""
        peaks: dict[tuple[str, int], float] = {}
        for each in self._lines("memory.jsonl", Memory):
            cell = each.setting, each.concurrency
            peaks[cell] = max(peaks.get(cell, 0.0), each.held)
        return peaks

    def scored(self) -> list[Answer]:
        """All answers, with their scores."""
        return [self._with_scores(key, answer) for key, answer in self.answers.items()]

    def check(self, plan: Plan) -> None:
        """Raise BenchError unless the folder holds no run, or one that this would go on with."""
        before = self.plan
        if before is not None and (told := before.differences(plan)):
            raise BenchError(f"{self.path} holds another run: choose another --out\n" + "\n".join(told))

    def begin(self, plan: Plan) -> None:
        """Write what the run measures, if it is not there."""
        if self.plan is None:
            _replace(self.path / "run.json", plan.model_dump_json(indent=2) + "\n")

    def add(self, answer: Answer, drawn: Sequence[Drawn]) -> None:
        """Keep an answer, and what it was chosen from if that is to be scored."""
        key = key_of(answer)
        if drawn:
            self.drawn[key] = tuple(drawn)
            self._append("drawn.jsonl", Pool(key=key, drawn=self.drawn[key]))
        self.answers[key] = answer
        self._append("answers.jsonl", answer)

    def score(self, scores: Scores) -> None:
        """Keep what an answer is worth."""
        self.scores[scores.key] = scores
        self._append("scores.jsonl", scores)

    def remember(self, setting: str, concurrency: int, held: float) -> None:
        """Keep the memory that the server had taken by the end of a cell, or of a part of it."""
        self._append("memory.jsonl", Memory(setting=setting, concurrency=concurrency, held=held))

    def finish(self, rows: Sequence[Row]) -> None:
        """Write the rows; the run is complete."""
        _replace(self.path / "rows.jsonl", "".join(row.model_dump_json() + "\n" for row in rows))

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def _with_scores(self, key: Key, answer: Answer) -> Answer:
        scores = self.scores.get(key)
        if scores is None:
            return answer
        told = {"reward": scores.reward, "gold": scores.gold, "considered": scores.considered}
        return answer.model_copy(update=told)

    def _lines(self, name: str, kind: type[M]) -> list[M]:
        """The records of a file. Half a line at its end is cut off, so that the next one stands by itself."""
        file = self.path / name
        if not file.exists():
            return []
        *whole, rest = file.read_bytes().split(b"\n")
        if rest:
            self._say(f"{file}: its last line was written in part and is dropped")
            os.truncate(file, sum(len(line) + 1 for line in whole))
        return [_parsed(kind, line, f"{file}, line {number}") for number, line in enumerate(whole, 1)]

    def _append(self, name: str, record: Record) -> None:
        if name not in self._files:
            self._files[name] = (self.path / name).open("a", encoding="utf-8")
        self._files[name].write(record.model_dump_json() + "\n")
        self._files[name].flush()


def _parsed(kind: type[M], line: bytes, where: str) -> M:
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise BenchError(
            f"{where} is no {kind.__name__} of this version ({place}: {first['msg']}): choose another --out"
        ) from None


def _replace(file: Path, text: str) -> None:
    """Write a file as a whole, or not at all."""
    half = file.with_name(f".{file.name}")
    half.write_text(text, encoding="utf-8")
    half.replace(file)
