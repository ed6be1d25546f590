"""Mixture, edits and mask of a tile of logits in registers: the first step of every token pass on a GPU.

Which parts a batch uses at all is known when a kernel is compiled: an absent tensor is None. Which of them a row uses
is data: a part of weight 0, or without a row, is not read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimtab.kernels.edits import Edits
from trimtab.kernels.mixing import Aux

WARPS = 4
SLOTS = 3  # guides that one kernel adds to the base
_BIGGEST_BLOCK = 2048
_CHUNK = tl.constexpr(1024)
_NEG_INF = tl.constexpr(float("-inf"))
_BIGGEST = tl.constexpr(3.4028234663852886e38)
LOWEST = tl.constexpr(-1e38)  # a finite stand-in for -inf
_NO_ID = tl.constexpr(2147483647)


@triton.jit
def clean(x):
    """`x` with NaN as -inf and +inf as the largest float32."""
    return tl.where(x == x, tl.where(x < _BIGGEST, x, _BIGGEST), _NEG_INF)


@triton.jit
def steered(
    logits, row, offs, low, high, inside, MIXES: tl.constexpr, JUDGED: tl.constexpr, CAREFUL: tl.constexpr
):  # fmt: skip
    """Logits of the base, of the mixture, and of the base as judged for plausibility, at `offs`, all float32.

    `logits` are the arguments of `sources`, tied together. `inside` says which of `offs` exist; they lie in [`low`,
    `high`), and the others are -inf in the mixture. The mixture is edited and masked, and so is the base as judged, if
    `JUDGED`. NaN and +inf are still there. `MIXES`: the base takes part in the mixture.

    Unless `CAREFUL` the mixture is a plain sum: where it is not what `trimtab.kernels.mixing.mix` says it is NaN or
    +inf, or the base is not finite; and the base is `LOWEST` where it does not exist, so that it still can be finite.
    """
    base, slots, edits, mask = logits
    ids_ptr, mul_ptr, add_ptr, n_edits = edits
    base_ptr, base_stride, weight_ptr = base
    missing = _NEG_INF if CAREFUL else LOWEST
    own = tl.load(base_ptr + row * base_stride + offs, mask=inside, other=missing).to(tl.float32)
    barred = ~inside
    z = tl.zeros_like(own)
    if MIXES:
        z, barred = _part(barred, own, row, weight_ptr, CAREFUL)
    a, b, c = slots
    z, barred = _add_slot(z, barred, a, row, offs, inside, CAREFUL)
    z, barred = _add_slot(z, barred, b, row, offs, inside, CAREFUL)
    z, barred = _add_slot(z, barred, c, row, offs, inside, CAREFUL)
    if CAREFUL:
        barred = barred & (z == z)
    mask_ptr, mask_stride = mask
    z = tl.where(barred, _NEG_INF, z)
    judged = own
    if ids_ptr is not None:
        first, last = _edit_range(ids_ptr + 2 * row * n_edits, n_edits, low, high)
        if last > first:
            at = _lower_bound(ids_ptr + 2 * row * n_edits, first, last, offs)
            ids = tl.load(ids_ptr + 2 * (row * n_edits + at), mask=at < last, other=_NO_ID)
            mul = tl.load(mul_ptr + row * n_edits + at, mask=ids == offs, other=1.0)
            z *= tl.where(z > 0.0, 1.0 / mul, mul)
            if JUDGED:
                judged *= tl.where(judged > 0.0, 1.0 / mul, mul)
            add = tl.load(add_ptr + row * n_edits + at, mask=ids == offs, other=0.0)
            z += add
            if JUDGED:
                judged += add
    if mask_ptr is not None:
        words = tl.load(mask_ptr + row * mask_stride + (offs >> 5), mask=inside, other=0)
        hidden = ((words >> (offs & 31)) & 1) == 0
        z = tl.where(hidden, _NEG_INF, z)
        if JUDGED:
            judged = tl.where(hidden, _NEG_INF, judged)
    return own, z, judged


@triton.jit
def _add_slot(z, barred, slot, row, offs, inside, CAREFUL: tl.constexpr):
    """Add a guide's part to `z`; where the guide is at -inf, say so in `barred` instead, if `CAREFUL`."""
    ptr, stride, index_ptr, weight_ptr = slot
    if ptr is not None:
        part = row
        if index_ptr is not None:
            part = tl.load(index_ptr + row).to(tl.int64)
            inside = inside & (tl.zeros_like(offs) + part >= 0)
        if weight_ptr is not None:
            inside = inside & (tl.zeros_like(z) + tl.load(weight_ptr + row) != 0.0)
        x = tl.load(ptr + part * stride + offs, mask=inside, other=0.0).to(tl.float32)
        x, barred = _part(barred, x, row, weight_ptr, CAREFUL)
        z += x
    return z, barred


@triton.jit
def _part(barred, x, row, weight_ptr, CAREFUL: tl.constexpr):
    """The row's weight times `x`; if `CAREFUL`, 0 where the weight is 0 or `x` is -inf, and `barred` also there."""
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + row)
        if CAREFUL:
            x = tl.where(tl.zeros_like(x) + weight != 0.0, x, 0.0)  # the interpreter compares no mixed widths
    if CAREFUL:
        out = x == _NEG_INF
        barred = barred | out
        x = tl.where(out, 0.0, x)
    if weight_ptr is not None:
        x *= weight
    return x, barred


@triton.jit
def _edit_range(ids_ptr, n_edits, low, high):
    """Where the sorted ids in [`low`, `high`) begin and end; of an id's two words the first is read."""
    first = 0
    last = 0
    start = 0
    while start < n_edits:
        e = start + tl.arange(0, _CHUNK)
        ids = tl.load(ids_ptr + 2 * e, mask=e < n_edits, other=_NO_ID)
        below = tl.sum((ids < low).to(tl.int32) + ((ids < high).to(tl.int32) << 16), axis=0)  # two counts in one sum
        first += below & 0xFFFF
        last += below >> 16
        start += _CHUNK
    return first, last


@triton.jit
def _lower_bound(ids_ptr, first, last, offs):
    """For each of `offs` the first place in [`first`, `last`] whose id is not smaller."""
    step = 1
    while 2 * step <= last - first:
        step *= 2
    at = tl.zeros_like(offs) + first
    while step > 0:
        probe = at + step
        ids = tl.load(ids_ptr + 2 * (probe - 1), mask=probe <= last, other=_NO_ID)
        at = tl.where(ids < offs, probe, at)
        step = step // 2
    return at


@triton.jit(do_not_specialize=["n_edits", "mask_stride"])
def mix_tiles(
    base_ptr, base_stride, weight_ptr,
    a_ptr, a_stride, a_index_ptr, a_weight_ptr,
    b_ptr, b_stride, b_index_ptr, b_weight_ptr,
    c_ptr, c_stride, c_index_ptr, c_weight_ptr,
    ids_ptr, mul_ptr, add_ptr, n_edits,
    mask_ptr, mask_stride,
    out_ptr, out_stride, V, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (B, S): write a tile of the mixture as float32."""
    row = tl.program_id(0).to(tl.int64)
    low = tl.program_id(1) * BLOCK
    offs = low + tl.arange(0, BLOCK)
    logits = (
        (base_ptr, base_stride, weight_ptr),
        (
            (a_ptr, a_stride, a_index_ptr, a_weight_ptr),
            (b_ptr, b_stride, b_index_ptr, b_weight_ptr),
            (c_ptr, c_stride, c_index_ptr, c_weight_ptr),
        ),
        (ids_ptr, mul_ptr, add_ptr, n_edits),
        (mask_ptr, mask_stride),
    )
    _, z, _ = steered(logits, row, offs, low, tl.minimum(low + BLOCK, V), offs < V, True, False, True)
    tl.store(out_ptr + row * out_stride + offs, z, mask=offs < V)


@dataclass(frozen=True, eq=False)
class _Part:
    """One term of a mixture."""

    logits: Tensor  # (R, V)
    index: Tensor | None  # (B,) int32, the row of `logits` that a batch row adds, -1 none; None: its own
    weights: Tensor | None  # (B,) float32; None: 1


def block_size(vocab_size: int) -> int:
    """Entries per tile: a function of the vocabulary alone, because sums are rounded tile by tile."""
    return min(_BIGGEST_BLOCK, max(64, 1 << (vocab_size - 1).bit_length()))


def sources(
    base: Tensor,
    base_weight: Tensor | None,
    aux: Sequence[Aux],
    edits: Edits | None,
    bitmask: Tensor | None,
    reference: Tensor | None = None,
) -> dict[str, Any]:
    """What kernels over `steered` tiles are given of the logits, by name; `reference` replaces the base, unmixed.

    More guides than a kernel takes are added up by launches of their own.
    """
    parts = _parts(base, base_weight, aux)
    while len(parts) > SLOTS + (reference is None):
        parts[: SLOTS + 1] = [_Part(_mixed(_arguments(parts[0], parts[1 : SLOTS + 1], None, None), base), None, None)]
        reference = base if reference is None else reference
    if reference is None:
        return _arguments(parts[0], parts[1:], edits, bitmask) | {"MIXES": True}
    return _arguments(_Part(reference, None, None), parts, edits, bitmask) | {"MIXES": False}


def mix_triton(
    base: Tensor,
    base_weight: Tensor | None,
    aux: Sequence[Aux],
    edits: Edits | None = None,
    bitmask: Tensor | None = None,
) -> Tensor:
    """Return what `trimtab.kernels.mixing.mix` does, (B, V) float32, edited and masked, in one launch.

    Beyond three slots of guides every further three cost a launch.
    """
    parts = _parts(base, base_weight, aux)
    while len(parts) > SLOTS + 1:
        parts[: SLOTS + 1] = [_Part(_mixed(_arguments(parts[0], parts[1 : SLOTS + 1], None, None), base), None, None)]
    return _mixed(_arguments(parts[0], parts[1:], edits, bitmask), base)


def _parts(base: Tensor, base_weight: Tensor | None, aux: Sequence[Aux]) -> list[_Part]:
    guides = [_Part(each.logits, slot.index, slot.weights) for each in aux for slot in each.placement.slots]
    return [_Part(base, None, base_weight), *guides]


def _arguments(base: _Part, slots: Sequence[_Part], edits: Edits | None, bitmask: Tensor | None) -> dict[str, Any]:
    own = _by_row(base.logits)
    named: dict[str, Any] = {"base_ptr": own, "base_stride": own.stride(0), "weight_ptr": base.weights}
    for name, part in zip_longest("abc", slots):
        logits = None if part is None else _by_row(part.logits)
        named |= {
            f"{name}_ptr": logits,
            f"{name}_stride": 0 if logits is None else logits.stride(0),
            f"{name}_index_ptr": part and part.index,
            f"{name}_weight_ptr": part and part.weights,
        }
    changes: list[Tensor | None] = [None] * 3
    if edits is not None and edits.ids.shape[1] > 0:  # the low words of the ids, and the high ones, which are 0
        changes = [edits.ids.contiguous().view(torch.int32), edits.mul.contiguous(), edits.add.contiguous()]
    named |= dict(zip(("ids_ptr", "mul_ptr", "add_ptr"), changes, strict=True))
    return named | {
        "n_edits": edits.ids.shape[1] if edits is not None else 0,
        "mask_ptr": bitmask,
        "mask_stride": 0 if bitmask is None else bitmask.stride(0),
        "V": base.logits.shape[1],
    }


def _by_row(logits: Tensor) -> Tensor:
    return logits if logits.stride(1) == 1 or logits.shape[1] == 1 else logits.contiguous()


def _mixed(arguments: dict[str, Any], like: Tensor) -> Tensor:
    """Launch `mix_tiles`; the result has rows of `like`'s shape."""
    rows, vocab_size = like.shape
    padded = triton.cdiv(vocab_size, 16) * 16  # rows that start at multiples of 16 are read 128 bits at a time
    out = torch.empty(rows, padded, device=like.device)[:, :vocab_size]
    if rows:
        block = block_size(vocab_size)
        grid = (rows, triton.cdiv(vocab_size, block))
        mix_tiles[grid](**arguments, out_ptr=out, out_stride=padded, BLOCK=block, num_warps=WARPS)
    return out
