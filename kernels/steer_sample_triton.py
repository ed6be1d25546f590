"""The token pass on a GPU in two launches, whatever the rows of a batch do.

The first reads all logits once and leaves a few sums per tile of the vocabulary. The second, one program per row,
merges them, narrows the row down by its filters, and draws: a tile by its mass, then a token inside it. It reads again
only what can matter.

Sums are relative to their tile's maximum, and in base 2: a tile's mass is the sum of p = 2^d over its tokens, where d
is (z - maximum) / temperature in bits; beside it the sums of p * d and of p * (base - the base's maximum). The first
launch takes every logit for a finite number. Where one is not, the sums of its tile are not numbers, or the base's
maximum is no larger than LOWEST: the second launch takes them again, with care.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimtab.kernels.edits import Edits
from trimtab.kernels.mixing import Aux
from trimtab.kernels.mixing_triton import WARPS, block_size, sources, steered
from trimtab.kernels.ops_triton import GROUP, LOG2E, bits, finite, store_groups
from trimtab.kernels.philox import Keys
from trimtab.kernels.statistics import PACKED
from trimtab.kernels.survivors import RowParams
from trimtab.kernels.survivors_triton import SUMS, select

_SELECT_WARPS = 8


@triton.jit(do_not_specialize=["n_edits", "mask_stride"])
def stats_partial(
    base_ptr, base_stride, weight_ptr,
    a_ptr, a_stride, a_index_ptr, a_weight_ptr,
    b_ptr, b_stride, b_index_ptr, b_weight_ptr,
    c_ptr, c_stride, c_index_ptr, c_weight_ptr,
    ids_ptr, mul_ptr, add_ptr, n_edits,
    mask_ptr, mask_stride,
    temperature_ptr, sum_ptr, group_ptr, V,
    MIXES: tl.constexpr, JUDGED: tl.constexpr, FULL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (B, S): the sums of one tile, (B, SUMS, S) float32, and its group maxima (B, S * BLOCK / GROUP) float32."""
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    n_tiles = tl.num_programs(1)
    low = tile * BLOCK
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
    own, z, judged = steered(logits, row, offs, low, tl.minimum(low + BLOCK, V), offs < V, MIXES, JUDGED, False)
    at = sum_ptr + row * SUMS * n_tiles + tile
    if JUDGED:
        tl.store(at + 7 * n_tiles, tl.max(judged, axis=0))
    scale = bits(tl.load(temperature_ptr + row))
    peak = tl.max(z, axis=0)
    base_peak = tl.max(own, axis=0)
    d = (z - finite(peak)) * scale
    p = tl.exp2(d)
    base_d = (own - base_peak) * LOG2E
    base_p = tl.exp2(base_d)
    tl.store(at, peak)
    tl.store(at + 4 * n_tiles, base_peak)
    tl.store(at + n_tiles, tl.sum(p, axis=0))
    tl.store(at + 5 * n_tiles, tl.sum(base_p, axis=0))
    if FULL:
        tl.store(at + 2 * n_tiles, tl.sum(p * tl.maximum(d, -10000.0), axis=0))  # where d is so small p is 0
        tl.store(at + 3 * n_tiles, tl.sum(p * base_d, axis=0))
        tl.store(at + 6 * n_tiles, tl.sum(base_p * base_d, axis=0))
    if group_ptr is not None:
        store_groups(group_ptr + row * n_tiles * (BLOCK // GROUP), tile, z, BLOCK)


def steer_sample_triton(
    base: Tensor,
    params: RowParams,
    keys: Keys,
    *,
    base_weight: Tensor | None = None,
    aux: Sequence[Aux] = (),
    edits: Edits | None = None,
    bitmask: Tensor | None = None,
    alpha: Tensor | None = None,
    reference: Tensor | None = None,
    full: bool,
) -> Tensor:
    """Draw as `trimtab.kernels.steer_sample.steer_sample` does; return its `PACKED` columns, (B, 10) int32.

    Without `full` the statistics after the log-probabilities are nan. Nothing waits for the device.
    """
    rows, vocab_size = base.shape
    out = torch.empty(rows, len(PACKED), dtype=torch.int32, device=base.device)
    if rows == 0:
        return out
    block = block_size(vocab_size)
    n_tiles, n_groups = triton.cdiv(vocab_size, block), triton.cdiv(vocab_size, GROUP.value)
    listed = params.any_ranked or params.any_min_p
    sums = torch.empty(rows, SUMS.value, n_tiles, device=base.device)
    groups = lists = None
    if listed:
        groups = torch.empty(rows, n_tiles * block // GROUP.value, device=base.device)
        lists = torch.empty(rows, n_tiles * block // GROUP.value + 3 * block, dtype=torch.int32, device=base.device)
    columns = params.columns(base.device)
    shared = sources(base, base_weight, aux, edits, bitmask, reference) | {
        "temperature_ptr": columns.temperature,
        "sum_ptr": sums,
        "group_ptr": groups,
        "JUDGED": alpha is not None,
        "FULL": full,
        "BLOCK": block,
    }
    stats_partial[(rows, n_tiles)](**shared, num_warps=WARPS)
    select[(rows,)](
        **shared,
        top_k_ptr=columns.top_k,
        top_p_ptr=columns.top_p,
        min_p_ptr=columns.min_p,
        alpha_ptr=alpha,
        seed_ptr=keys.seeds,
        stream_ptr=keys.streams,
        position_ptr=keys.positions,
        list_ptr=lists,
        out_ptr=out,
        n_tiles=n_tiles,
        LISTED=listed,
        COLUMNS=len(PACKED),
        S_PAD=triton.next_power_of_2(n_tiles),
        N_PAD=triton.next_power_of_2(n_groups),
        num_warps=_SELECT_WARPS,
    )
    return out
