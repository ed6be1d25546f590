"""Captured decode forwards against plain ones: a stand-in for CUDA graphs runs the same forward over static buffers."""

from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from again import Again
from device import DEVICE
from tiny import VOCAB, tiny_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from trimtab.engine.graphs import MAX_FRAMES, CudaCapture, DecodeGraphs, Frame
from trimtab.engine.guides.adapters import LowRank
from trimtab.engine.kv import Plan, Step
from trimtab.engine.lm_head import Edit
from trimtab.engine.packing import PackedMatmul
from trimtab.engine.pages import PagePool, PageTable
from trimtab.engine.plan import PLAIN, Variant
from trimtab.engine.runner import Chunk, ModelRunner
from trimtab.engine.variants import RowTerms, find_linears

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
ONE = Variant(adapter="one")
CALM = Variant(vectors=(("calm", 2.0),))


class Frozen(Again):
    """Replays under the terms of its capture, as a CUDA graph does: only what lies in buffers can have changed."""

    terms: RowTerms

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        held = self._state()

        def frozen() -> None:
            now = self._state()
            self._set(*held)
            run()
            self._set(*now)

        return super().capture(frozen)

    def _state(self) -> tuple[Any, dict[int, Any]]:
        return self.terms._added, {key: term.rows for key, (_, term) in self.terms._terms.items()}

    def _set(self, added: Any, rows: dict[int, Any]) -> None:
        self.terms._added = added
        for key, (host, term) in self.terms._terms.items():
            term.rows = rows.get(key)
            if isinstance(host, PackedMatmul):
                host.term = None if term.rows is None else term


class Refusing(Again):
    def __init__(self, when: str) -> None:
        super().__init__()
        self._when = when

    def warm(self, run: Callable[[], None]) -> None:
        if self._when == "warm":
            raise RuntimeError("called a synchronizing CUDA operation\nmore")
        super().warm(run)

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")


class Unsynchronised(TorchDispatchMode):
    """Refuses operations whose result the host has to see, as torch's debug mode does on a GPU."""

    WAITING = frozenset(
        f"aten::{name}" for name in ("_local_scalar_dense", "equal", "is_nonzero", "item", "masked_select", "nonzero")
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().split(".")[0] in self.WAITING:
            raise RuntimeError(f"{func.name()} waits for the device")
        return func(*args, **(kwargs or {}))


class Watched(Again):
    def warm(self, run: Callable[[], None]) -> None:
        with Unsynchronised():
            super().warm(run)


class Rows:
    """The same sequences in a runner with graphs and in one without."""

    def __init__(self, captured: ModelRunner, plain: ModelRunner) -> None:
        self.runners = (captured, plain)
        self.lanes: list[tuple[PageTable, PageTable, array[int], Variant]] = []

    def add(self, length: int, variant: Variant = PLAIN) -> int:
        tokens = array(
            "q", torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(length)).tolist()
        )
        tables = []
        for runner in self.runners:
            table = PageTable(runner.pool, variant.salt)
            table.reserve(length)
            runner.prefill([Chunk(table, tokens, variant)])
            table.stored(tokens, length)
            tables.append(table)
        self.lanes.append((tables[0], tables[1], tokens, variant))
        return len(self.lanes) - 1

    def fork(self, lane: int) -> int:
        first, second, tokens, variant = self.lanes[lane]
        self.lanes.append((first.fork(), second.fork(), tokens[:], variant))
        return len(self.lanes) - 1

    def free(self, lane: int) -> None:
        for table in self.lanes[lane][:2]:
            table.free()

    def step(self, lanes: list[int], *, count: int = 1, seed: int = 0) -> None:
        """Decode `count` tokens of each lane in both runners and compare all logits and hidden states."""
        given = np.random.default_rng(seed).integers(0, VOCAB, (len(lanes), count)).tolist()
        found = []
        for side, runner in enumerate(self.runners):
            chunks = []
            for lane, new in zip(lanes, given, strict=True):
                table, tokens, variant = self.lanes[lane][side], self.lanes[lane][2], self.lanes[lane][3]
                table.reserve(len(tokens) + count)
                chunks.append(Chunk(table, new, variant))
            found.append(runner.decode(chunks))
        torch.testing.assert_close(found[0].logits, found[1].logits, **CLOSE)
        torch.testing.assert_close(found[0].hidden, found[1].hidden, **CLOSE)
        for lane, new in zip(lanes, given, strict=True):
            first, second, tokens, _ = self.lanes[lane]
            tokens.extend(new)
            first.stored(tokens, len(tokens))
            second.stored(tokens, len(tokens))


def random_factors(model: PreTrainedModel, seed: int) -> LowRank:
    draw = torch.Generator().manual_seed(seed)
    factors = {}
    for path, place in find_linears(model).items():
        if path.endswith(("q_proj", "down_proj", "lm_head")):
            outer, inner = place.shape
            factors[path] = 0.3 * torch.randn(2, inner, generator=draw), 0.3 * torch.randn(outer, 2, generator=draw)
    return LowRank(factors)


def runners(
    architecture: str = "llama", *, rows: int = 8, page_size: int = 4, capture: Again | None = None
) -> tuple[ModelRunner, ModelRunner]:
    """One with graphs, over kernels that read static inputs; one without."""
    capture = capture or Again()
    captured = ModelRunner(
        tiny_model(architecture).to(DEVICE),
        PagePool(200, page_size),
        graph_rows=rows,
        capture=capture,
        backend="triton",
    )
    return captured, ModelRunner(tiny_model(architecture).to(DEVICE), PagePool(200, page_size), backend="torch")


def test_steps_of_changing_batches_equal_plain_ones() -> None:
    """Ragged lengths, forks that copy pages, rows that leave and whose pages others take: stale inputs never show."""
    capture = Again()
    rows = Rows(*runners(capture=capture))
    for length in (13, 2, 7):
        rows.add(length)
    rows.step([0, 1, 2], seed=1)
    rows.fork(0)
    rows.fork(0)
    rows.step([0, 3, 4, 2, 1], seed=2)
    rows.step([0, 3, 4, 2, 1], seed=3)
    rows.free(0)
    rows.add(9)
    for seed in range(4, 7):
        rows.step([5, 4, 2], seed=seed)
    rows.step([1], seed=7)
    assert capture.warmed == 3, "buckets of 4, 8 and 1 rows"
    assert capture.captured == 2
    assert capture.replayed == 1 + 3


@pytest.mark.parametrize("architecture", ["mistral", "gpt2"])
def test_windows_and_other_architectures_are_captured_as_well(architecture: str) -> None:
    capture = Again()
    rows = Rows(*runners(architecture, capture=capture))
    rows.add(15)
    rows.add(3)
    for seed in range(3):
        rows.step([0, 1], seed=seed)
    assert capture.replayed == 2


def test_several_tokens_of_a_sequence_are_rows_of_one_graph() -> None:
    capture = Again()
    rows = Rows(*runners(capture=capture))
    rows.add(6)
    rows.add(3)
    for seed in range(3):
        rows.step([0, 1], count=3, seed=seed)
    assert (capture.warmed, capture.captured) == (1, 1)


def test_tables_that_outgrow_their_graph_get_a_wider_one() -> None:
    capture = Again()
    rows = Rows(*runners(page_size=1, capture=capture))
    rows.add(30)
    for seed in range(4):
        rows.step([0], seed=seed)
    assert (capture.warmed, capture.captured) == (2, 2)


def test_rows_with_adapters_and_vectors_use_graphs_of_their_own_kind() -> None:
    capture = Frozen()
    both = runners(capture=capture)
    capture.terms = both[0].terms
    rows = Rows(*both)
    rows.add(5)
    rows.add(6)
    rows.step([0, 1], seed=0)
    rows.step([0, 1], seed=1)
    for runner in both:
        runner.terms.add_adapter("one", random_factors(runner.model, 1))
        direction = torch.randn(48, generator=torch.Generator().manual_seed(2))
        runner.terms.add_vector("calm", {1: direction})
    adapted, calm = rows.add(4, ONE), rows.add(7, CALM)
    rows.step([0, 1], seed=2)
    assert (capture.warmed, capture.captured) == (1, 1), "plain rows go on with theirs"
    for seed, lanes in enumerate(([0, adapted], [adapted, 1], [1, calm], [calm, 0], [adapted, calm], [calm, adapted])):
        rows.step(lanes, seed=seed)
    assert (capture.warmed, capture.captured) == (4, 4), "who has the adapter changes, the launches do not"
    for runner in both:
        runner.terms.add_adapter("two", random_factors(runner.model, 3))
    rows.step([0, adapted], seed=9)
    rows.step([0, rows.add(5, Variant(adapter="two"))], seed=10)
    assert capture.warmed == 5, "the stacks have moved: what was captured over them is not replayed"


def test_a_restored_model_forgets_its_graphs() -> None:
    capture = Again()
    both = runners(capture=capture)
    rows = Rows(*both)
    rows.add(5)
    rows.step([0])
    rows.step([0])
    both[0].restore()
    rows.step([0])
    assert (capture.warmed, capture.captured, capture.settled) == (2, 1, 1)


def test_edits_and_large_batches_run_as_they_are() -> None:
    capture = Again()
    captured, plain = runners(rows=2, capture=capture)
    rows = Rows(captured, plain)
    for length in (5, 4, 3):
        rows.add(length)
    rows.step([0, 1, 2])
    assert capture.warmed == 0
    table = rows.lanes[0][0]
    table.reserve(table.length + 1)
    edited = captured.decode([Chunk(table, [5])], [Edit(torch.tensor([0]), lambda hidden: hidden * 2)])
    assert edited.unedited.shape == (1, VOCAB)
    assert capture.warmed == 0


@pytest.mark.parametrize("architecture", ["gemma3_text", "gpt2", "gpt_neox", "llama", "olmo2", "phi3", "qwen3"])
def test_no_forward_waits_for_the_device(architecture: str, caplog: pytest.LogCaptureFixture) -> None:
    rows = Rows(*runners(architecture, capture=Watched()))
    rows.add(5)
    rows.step([0])
    assert not caplog.records


def test_a_model_that_looks_at_its_positions_goes_on_without_graphs(caplog: pytest.LogCaptureFixture) -> None:
    """A rotation that is scaled by the longest row, as rope type `dynamic`, asks for that length in every forward."""
    both = runners(capture=Watched())
    for runner in both:
        runner.model.model.rotary_emb.register_forward_hook(lambda module, args, cos: bool(cos[0].max() > 9) or None)
    rows = Rows(*both)
    rows.add(5)
    for seed in range(3):
        rows.step([0], seed=seed)
    (record,) = caplog.records
    assert "is_nonzero waits" in record.message


@pytest.mark.parametrize("when", ["warm", "capture"])
def test_a_forward_that_cannot_be_captured_goes_on_without(when: str, caplog: pytest.LogCaptureFixture) -> None:
    rows = Rows(*runners(capture=Refusing(when)))
    rows.add(5)
    for seed in range(3):
        rows.step([0], seed=seed)
    (record,) = caplog.records
    assert record.message.startswith("a model decodes without CUDA graphs: ")
    assert "more" not in record.message


def test_results_are_views_that_the_next_step_overwrites() -> None:
    graphs = echo(Again())
    first, _ = graphs.run(plan(2, 1), np.array([[3], [4]]), "plain")
    assert first.tolist() == [[3.0], [4.0]]
    second, _ = graphs.run(plan(1, 1), np.array([[9]]), "plain")
    assert second.tolist() == [[9.0]]
    assert first.tolist() == [[9.0], [4.0]]


def test_padding_reads_and_writes_the_trash_page_whatever_was_there_before() -> None:
    frame = Frame(4, 32, torch.device("cpu"))
    frame.fill(plan(4, 20, fill=7), np.full((4, 1), 7))
    frame.fill(plan(1, 2, fill=5), np.full((1, 1), 5))
    step = frame.step
    assert frame.ids.tolist() == step.positions.tolist() == [[5], [0], [0], [0]]
    assert step.slots.tolist() == [5, 0, 0, 0]
    assert step.attention.own.tolist() == step.attention.positions.tolist() == [[5], [0], [0], [0]]
    assert step.attention.blocks.sum() == 2 * 5


def test_buckets_fit_closely_and_end_at_the_largest_batch() -> None:
    graphs = echo(Again(), rows=100)
    assert sorted({graphs.bucket(rows) for rows in range(1, 101)}) == [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 100]
    assert all(graphs.bucket(rows) >= rows for rows in range(1, 101))


def test_the_graph_that_was_unused_for_longest_is_given_up() -> None:
    capture = Again()
    graphs = echo(capture)
    for signature in [*range(MAX_FRAMES), 0, MAX_FRAMES]:
        graphs.run(plan(1, 1), np.array([[1]]), signature)
    assert capture.warmed == MAX_FRAMES + 1
    assert capture.settled == 1
    for signature in (0, 1):
        graphs.run(plan(1, 1), np.array([[1]]), signature)
    assert capture.warmed == MAX_FRAMES + 2, "0 was used again, 1 was not"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graphs_give_what_plain_steps_give() -> None:
    model = tiny_model("llama").to(DEVICE)
    captured = ModelRunner(model, PagePool(200, 4), graph_rows=8, capture=CudaCapture())
    rows = Rows(captured, ModelRunner(tiny_model("llama").to(DEVICE), PagePool(200, 4), backend="torch"))
    for length in (13, 2, 7):
        rows.add(length)
    for seed in range(4):
        rows.step([0, 1, 2], seed=seed)
        rows.step([2, 0], seed=seed)


def echo(capture: Again, rows: int = 4) -> DecodeGraphs:
    """A model that gives its ids for logits and its positions for hidden states."""

    def forward(ids: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        return ids.float(), step.positions.float()

    return DecodeGraphs(forward, capture, rows=rows, device=torch.device("cpu"))


def plan(rows: int, width: int, fill: int = 0) -> Plan:
    column = np.full((rows, 1), fill)
    return Plan(column, column[:, 0], np.full((rows, width), fill), column)
