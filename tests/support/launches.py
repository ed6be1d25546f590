"""The launches of Triton kernels that are compiled without a GPU, and what their kernels may need.

A launch is a call of an operator's public function with example tensors, so that signatures, constants and options are
those of the code. Only shapes, strides and types count: the tensors are never read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trimtab.kernels.candidates import best_candidates
from trimtab.kernels.edits import Edits
from trimtab.kernels.finish_candidates import finish_candidates
from trimtab.kernels.mixing import Aux, Placement
from trimtab.kernels.philox import Keys
from trimtab.kernels.row_adapters import AdapterRows, AdapterStacks, add_row_adapters
from trimtab.kernels.row_vectors import add_row_vectors
from trimtab.kernels.steer_sample import steer_sample
from trimtab.kernels.survivors import RowParams

LARGE, SMALL = 151_936, 49_152  # vocabularies: of Qwen, of SmolLM2
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@dataclass(frozen=True)
class Launch:
    """A call that launches kernels, and what holds for it beyond the budgets of its kernels."""

    run: Callable[[], object]
    aligned: bool = True
    """rows begin at multiples of 16 bytes: kernels that read rows must use 128-bit loads"""
    per_element: float | None = None
    """most SASS instructions per element of kernels with a tile; only without loops does this tell anything"""


@dataclass(frozen=True)
class Budget:
    """Most that any launch of a kernel may need, per thread, on any target."""

    registers: int = 255
    """below this bound a register file of 65,536 holds 65,536 / registers threads at once"""
    spills: int = 4
    wide: bool = True
    """it reads rows of logits, weights or pages, and must do so 128 bits at a time"""
    tile: str | None = None
    """the constant that says how many elements a block reads; instructions per element are counted by it:
    those of the whole kernel, over the elements that one thread works on"""


def logits(vocab: int = LARGE, dtype: torch.dtype = BF16, rows: int = 8, *, stride: int | None = None) -> Tensor:
    """(rows, vocab), whose rows are `stride` elements apart."""
    return torch.zeros(rows, stride or vocab, dtype=dtype)[:, :vocab]


def params(
    rows: int = 8, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> RowParams:
    return RowParams(
        temperature=torch.full((rows,), temperature),
        top_k=torch.full((rows,), top_k),
        top_p=torch.full((rows,), top_p),
        min_p=torch.full((rows,), min_p),
    )


def keys(rows: int = 8) -> Keys:
    return Keys(*torch.zeros(3, rows, dtype=torch.int64))


def guides(base: Tensor, count: int) -> list[Aux]:
    """Guides that every row of `base` has."""
    placement = Placement.of(range(len(base)), [1.0] * len(base), len(base), "cpu")
    return [Aux(torch.zeros_like(base), placement) for _ in range(count)]


def edits(base: Tensor, count: int = 40) -> Edits:
    shape = len(base), count
    return Edits(torch.full(shape, base.shape[1]), torch.ones(shape), torch.zeros(shape))


def bitmask(base: Tensor) -> Tensor:
    return torch.zeros(len(base), -(-base.shape[1] // 32), dtype=torch.int32)


def sample(base: Tensor, guided: int = 0, *, statistics: bool = True, **options: Any) -> Callable[[], object]:
    """A pass of the sampler; `options` are those of `params`, and of `steer_sample`, where True makes an example."""
    rows = len(base)
    measured = torch.ones(rows, dtype=torch.bool) if statistics else None
    sampling = {name: options.pop(name) for name in ("temperature", "top_k", "top_p", "min_p") if name in options}
    examples = {"edits": edits, "bitmask": bitmask, "alpha": per_row, "base_weight": per_row, "reference": torch.clone}
    extra = {name: examples[name](base) for name in options}

    def run() -> object:
        aux = guides(base, guided)
        return steer_sample(
            base, params(rows, **sampling), keys(rows), aux=aux, measured=measured, backend="triton", **extra
        )

    return run


def mixture(base: Tensor, guided: int, *, edited: bool = False) -> Callable[[], object]:
    def run() -> object:
        from trimtab.kernels.mixing_triton import mix_triton

        changes = (edits(base), bitmask(base)) if edited else (None, None)
        return mix_triton(base, per_row(base), guides(base, guided), *changes)

    return run


def per_row(base: Tensor) -> Tensor:
    return torch.full((len(base),), 0.5)


def best(z: Tensor, k: int) -> Callable[[], object]:
    return lambda: best_candidates(z, k, backend="triton")


def finish(k: int, *, base_best: bool = False, **sampling: float) -> Callable[[], object]:
    z, valid, ids = torch.zeros(8, k), torch.ones(8, k, dtype=torch.bool), torch.zeros(8, k, dtype=torch.int64)
    best = torch.zeros(8, dtype=torch.int64) if base_best else None
    return lambda: finish_candidates(z, z, valid, ids, params(**sampling), keys(), base_best=best, backend="triton")


def adapters(
    tokens: int, rank: int, inner: int = 4096, outer: int = 4096, dtype: torch.dtype = BF16, *, scaled: bool = False
) -> Callable[[], object]:
    """Two adapters of one product, for a decode step or a prompt of `tokens`."""

    def run() -> object:
        stacks = AdapterStacks(inner, outer, dtype, "cpu")
        for number in range(2):
            stacks.add(number, torch.zeros(rank, inner, dtype=dtype), torch.zeros(rank, outer, dtype=dtype))
        numbers = [0] * tokens
        x, y = (torch.zeros(tokens, size, dtype=dtype) for size in (inner, outer))
        scales = torch.ones(tokens, rank) if scaled else None
        rows = AdapterRows(numbers, torch.zeros(tokens, dtype=torch.int32), scales)
        return add_row_adapters(y, x, stacks, rows, "triton")

    return run


def vectors(size: int, dtype: torch.dtype, *, indexed: bool) -> Callable[[], object]:
    index = torch.zeros(8, dtype=torch.int32) if indexed else None
    hidden, sums = torch.zeros(8, 1, size, dtype=dtype), torch.zeros(8, size, dtype=dtype)
    return lambda: add_row_vectors(hidden, sums, index, "triton")


def attention(
    query: tuple[int, int, int, int],
    kv_heads: int,
    dtype: torch.dtype = BF16,
    *,
    page: int = 16,
    splits: int | None = None,
) -> Callable[[], object]:
    """`query` is (B, heads, q, D) over rows of up to 4,096 columns."""
    rows, _, queries, dim = query
    width = 4096 // page
    blocks, positions = torch.zeros(rows, width, dtype=torch.int32), torch.zeros(rows, queries, dtype=torch.int32)

    def run() -> object:
        from trimtab.kernels.paged_attention_triton import paged_attention_triton

        pages = torch.zeros(2, page, 2, kv_heads, dim, dtype=dtype)
        asked = torch.zeros(query, dtype=dtype)
        return paged_attention_triton(asked, pages, blocks, positions, positions, splits=splits)

    return run


BUDGETS: dict[str, Budget] = {
    "stats_partial": Budget(registers=128, tile="BLOCK"),
    "select": Budget(),
    "mix_tiles": Budget(registers=128, tile="BLOCK"),
    "attend_pages": Budget(),
    "merge_splits": Budget(registers=128, wide=False),
    "group_maxima": Budget(registers=64, tile="BLOCK"),
    "select_best": Budget(wide=False),
    "finish_listed": Budget(wide=False),
    "shrink": Budget(),
    "expand_add": Budget(),
    "add_vectors": Budget(registers=64),
}
LAUNCHES: dict[str, Launch] = {
    "sample, bf16": Launch(sample(logits())),
    "sample, bf16, one guide": Launch(sample(logits(), 1), per_element=45),
    "sample, bf16, 2 guides": Launch(sample(logits(), 2)),
    "sample, bf16, 4 guides": Launch(sample(logits(), 4)),
    "sample, bf16, one guide, token alone": Launch(sample(logits(), 1, statistics=False)),
    "sample, fp32, one guide": Launch(sample(logits(dtype=FP32), 1)),
    "sample, fp16, small vocabulary": Launch(sample(logits(SMALL, FP16), 1)),
    "sample, bf16, edits and mask": Launch(sample(logits(), 1, edits=True, bitmask=True)),
    "sample, bf16, alpha": Launch(sample(logits(), 1, alpha=True, base_weight=True, edits=True, bitmask=True)),
    "sample, bf16, reference": Launch(sample(logits(), 1, reference=True)),
    "sample, bf16, top-k and top-p": Launch(sample(logits(), 1, top_k=50, top_p=0.9)),
    "sample, fp32, all filters": Launch(
        sample(logits(dtype=FP32), 3, edits=True, bitmask=True, alpha=True, top_k=50, top_p=0.9, min_p=0.1)
    ),
    "sample, top-p, token alone": Launch(sample(logits(SMALL), top_p=0.9, statistics=False)),
    "sample, odd rows": Launch(sample(logits(SMALL + 1), 1, top_k=20), aligned=False),
    "sample, tiny vocabulary": Launch(sample(logits(257, FP32), 1, top_p=0.5), aligned=False),
    "mix, bf16, 2 guides": Launch(mixture(logits(), 2)),
    "mix, fp32, edits and mask": Launch(mixture(logits(dtype=FP32), 1, edited=True)),
    "best, bf16, k=10": Launch(best(logits(), 10)),
    "best, fp32, k=64": Launch(best(logits(dtype=FP32), 64)),
    "best, bf16, k=128": Launch(best(logits(), 128)),
    "best, fp16, k=1": Launch(best(logits(SMALL, FP16), 1)),
    "best, odd rows": Launch(best(logits(SMALL + 1), 20), aligned=False),
    "finish, k=10": Launch(finish(10, base_best=True)),
    "finish, k=40": Launch(finish(40)),
    "finish, k=128, top-k and top-p": Launch(finish(128, top_k=20, top_p=0.9)),
    "finish, k=256, filters": Launch(finish(256, top_k=20, top_p=0.9, min_p=0.1)),
    "adapters, bf16, one row": Launch(adapters(1, 16)),
    "adapters, bf16, 64 rows": Launch(adapters(64, 64)),
    "adapters, bf16, prompt": Launch(adapters(512, 16)),
    "adapters, bf16, scaled": Launch(adapters(64, 64, scaled=True)),
    "adapters, fp32, scaled": Launch(adapters(8, 6, 576, 1536, FP32, scaled=True)),
    "adapters, fp32, rank 128": Launch(adapters(8, 128, 576, 1536, FP32)),
    "attention, 8B, one row": Launch(attention((1, 32, 1, 128), 8, splits=16)),
    "attention, 8B, 64 rows": Launch(attention((64, 32, 1, 128), 8, splits=1)),
    "attention, 8B, candidates": Launch(attention((8, 32, 20, 128), 8, splits=2)),
    "attention, 1B, 8 rows": Launch(attention((8, 32, 1, 64), 8, splits=8)),
    "attention, 135M, fp32": Launch(attention((8, 9, 1, 64), 3, FP32, splits=8)),
    "attention, fp16, no groups": Launch(attention((8, 12, 1, 80), 12, FP16, splits=64)),
    "attention, pages of one": Launch(attention((8, 32, 1, 128), 8, page=1, splits=1)),
    "attention, chunk of a prompt": Launch(attention((1, 32, 64, 128), 8, splits=4)),
    "vectors, bf16": Launch(vectors(4096, BF16, indexed=False)),
    "vectors, fp32, index": Launch(vectors(576, FP32, indexed=True)),
}
