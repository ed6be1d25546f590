"""Which implementation of each operator runs."""

from collections.abc import Callable

import pytest
import torch
from rows import keys, normal, row_params
from torch import Tensor

from trimtab.kernels import (
    candidates_triton,
    finish_candidates_triton,
    mixing_triton,
    paged_attention_triton,
    row_adapters_triton,
    row_vectors_triton,
    steer_sample_triton,
)
from trimtab.kernels.backend import Backend, use_triton
from trimtab.kernels.candidates import best_candidates
from trimtab.kernels.finish_candidates import finish_candidates
from trimtab.kernels.paged_attention import AttentionPlanner, paged_attention
from trimtab.kernels.row_adapters import AdapterRows, AdapterStacks, add_row_adapters
from trimtab.kernels.row_vectors import add_row_vectors
from trimtab.kernels.steer_sample import base_at, steer_sample, steered_scores


class Launched(Exception):
    """A Triton launcher was called."""


def attend(backend: Backend) -> None:
    kv, place = torch.zeros(2, 4, 2, 1, 16), torch.zeros(1, 1, dtype=torch.int64).numpy()
    plan = AttentionPlanner(kv).plan(place + 1, place, place, backend="torch")
    paged_attention(torch.zeros(1, 1, 1, 16), kv, plan, backend=backend)


def adapt(backend: Backend) -> None:
    stacks = AdapterStacks(4, 4, torch.float32, "cpu")
    stacks.add(0, torch.ones(1, 4), torch.ones(1, 4))
    rows = AdapterRows([0], torch.zeros(1, dtype=torch.int32))
    add_row_adapters(torch.zeros(1, 4), torch.ones(1, 4), stacks, rows, backend=backend)


def finish(backend: Backend) -> None:
    z, ids = normal(1, 3), torch.arange(3)[None]
    finish_candidates(z, z, z > -99, ids, row_params((1.0, 0, 1.0, 0.0)), keys(1), backend=backend)


OPERATORS: dict[str, tuple[object, str, Callable[[Backend], object]]] = {
    "steer_sample": (
        steer_sample_triton,
        "steer_sample_triton",
        lambda backend: steer_sample(normal(1, 9), row_params((1.0, 0, 1.0, 0.0)), keys(1), backend=backend),
    ),
    "base_at": (
        steer_sample_triton,
        "steer_sample_triton",
        lambda backend: base_at(normal(1, 9), torch.zeros(1, 1, dtype=torch.int64), backend=backend),
    ),
    "steered_scores": (mixing_triton, "mix_triton", lambda backend: steered_scores(normal(1, 9), backend=backend)),
    "best_candidates": (
        candidates_triton,
        "best_candidates_triton",
        lambda backend: best_candidates(normal(1, 9), 2, backend=backend),
    ),
    "finish_candidates": (finish_candidates_triton, "finish_candidates_triton", finish),
    "paged_attention": (paged_attention_triton, "paged_attention_triton", attend),
    "add_row_adapters": (row_adapters_triton, "add_row_adapters_triton", adapt),
    "add_row_vectors": (
        row_vectors_triton,
        "add_row_vectors_triton",
        lambda backend: add_row_vectors(torch.zeros(1, 1, 4), torch.ones(1, 4), backend=backend),
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_each_operator_runs_where_it_is_told_to(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, launcher, run = OPERATORS[name]

    def launch(*args: object, **kwargs: object) -> None:
        raise Launched

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(module, launcher, launch)
    for backend in ("auto", "torch", "compiled"):
        if (name, backend) != ("steer_sample", "compiled"):  # compiled for real elsewhere
            run(backend)
    with pytest.raises(Launched):
        run("triton")


def test_triton_is_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu(Tensor):
        is_cuda = True

    here, there = torch.zeros(1), torch.zeros(1).as_subclass(OnGpu)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    backends: list[Backend] = ["auto", "torch", "compiled", "triton"]
    assert [use_triton(there, backend) for backend in backends] == [True, False, True, True]
    assert [use_triton(here, backend) for backend in backends] == [False, False, False, True]
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(RuntimeError, match="need a GPU: use the torch backend"):
        use_triton(here, "triton")


def test_a_machine_without_triton_runs_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu(Tensor):
        is_cuda = True

    monkeypatch.setattr("trimtab.kernels.backend._installed", lambda: False)
    there = torch.zeros(1).as_subclass(OnGpu)
    assert not use_triton(there, "auto")
    with pytest.raises(RuntimeError, match="pip install triton"):
        use_triton(there, "triton")
