"""On which streams the forwards of one tick run, and what waits for what; the GPU is a list of notes."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from trimtab.engine.reader import Reader


class Stream:
    def __init__(self, notes: list[tuple[str, ...]], name: str) -> None:
        self.notes, self.name = notes, name

    def wait_stream(self, other: "Stream") -> None:
        self.notes.append((self.name, "waits for", other.name))


class Stub:
    """A model whose runner is on some device."""

    def __init__(self, device: str) -> None:
        self.runner = self
        self.device = torch.device(device)


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    notes: list[tuple[str, ...]] = []
    names = iter("abcdef")

    @contextmanager
    def run_on(stream: Stream) -> Iterator[None]:
        notes.append(("on", stream.name))
        yield

    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream(notes, "main"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda: Stream(notes, next(names)))
    monkeypatch.setattr(torch.cuda, "stream", run_on)
    return notes


def forwards(reader: Reader, models: list[Stub]) -> None:
    with reader._side_by_side(models) as on_its_stream:  # type: ignore[arg-type]
        for model in models:
            with on_its_stream(model):  # type: ignore[arg-type]
                pass


def test_models_start_together_and_what_follows_waits_for_all(notes: list[tuple[str, ...]]) -> None:
    reader, models = Reader({}), [Stub("cuda"), Stub("cuda")]
    both = [("a", "waits for", "main"), ("b", "waits for", "main"), ("on", "a"), ("on", "b")]
    for _ in range(2):
        notes.clear()
        forwards(reader, models)
        assert notes == [*both, ("main", "waits for", "a"), ("main", "waits for", "b")]


def test_a_failed_forward_is_waited_for_as_well(notes: list[tuple[str, ...]]) -> None:
    reader = Reader({})
    with pytest.raises(ZeroDivisionError), reader._side_by_side([Stub("cuda"), Stub("cuda")]):  # type: ignore[list-item]
        raise ZeroDivisionError
    assert notes[-1] == ("main", "waits for", "b")


@pytest.mark.parametrize("models", [[Stub("cuda")], [Stub("cpu"), Stub("cpu")]])
def test_one_model_and_the_cpu_need_no_streams(notes: list[tuple[str, ...]], models: list[Stub]) -> None:
    forwards(Reader({}), models)
    assert notes == []
