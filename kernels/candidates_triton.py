"""The best entries of rows of logits, in two launches without a sort.

The first reduces every group of neighbours to its maximum. The k best entries of a row lie in the k groups of largest
maximum, ties to the lower group: an entry outside them is beaten by k maxima, or ties with one and has a higher id.
The second, one program per row, finds those groups, then the k best of their entries, and ranks them by counting.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimtab.kernels.ops_triton import kth_key, sort_key

GROUP = 64
BLOCK = 2048
_ABSENT = tl.constexpr(-2147483648)
_LOW = tl.constexpr(0xFFFFFFFF)


@triton.jit
def _clean_key(z):
    """Sort keys (int32) of float32 `z` with NaN as -inf."""
    return sort_key(tl.where(z == z, z, float("-inf")))


@triton.jit
def _places(keys, k):
    """Where each of the `k` best of `keys` goes in a list in the order given; -1 for the others. Ties: the first win.

    Up to 32,767 keys may exceed the k-th and 65,535 equal it: both counts share one scan.
    """
    kth = kth_key(keys, k)
    above, equal = keys > kth, (keys == kth) & (keys > _ABSENT)
    wanted = k - tl.sum(above.to(tl.int32), axis=0)
    counts = tl.cumsum(tl.where(above, 65536, 0) + equal.to(tl.int32), axis=0)
    n_above, n_equal = counts >> 16, counts & 0xFFFF
    chosen = above | (equal & (n_equal <= wanted))
    return tl.where(chosen, n_above + tl.minimum(n_equal, wanted) - 1, -1)


@triton.jit
def group_maxima(z_ptr, z_stride, maxima_ptr, vocab_size, n_groups, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """Keys of the maxima of a block's groups; program (row, block)."""
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(z_ptr + row * z_stride + offsets, mask=offsets < vocab_size, other=float("-inf")).to(tl.float32)
    maxima = tl.max(tl.reshape(_clean_key(z), (BLOCK // GROUP, GROUP)), axis=1)
    groups = tl.program_id(1) * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
    tl.store(maxima_ptr + row * n_groups + groups, maxima, mask=groups < n_groups)


@triton.jit
def select_best(
    z_ptr,
    z_stride,
    maxima_ptr,
    ids_ptr,
    valid_ptr,
    vocab_size,
    n_groups,
    k,
    GROUP: tl.constexpr,
    K_PAD: tl.constexpr,
    GROUPS_PAD: tl.constexpr,
):
    """The `k` best of a row, k <= vocab_size: `ids_ptr` (R, k) int64, best first, and `valid_ptr` (R, k) int8.

    The row of `ids_ptr` first holds the chosen groups, then the chosen entries in ascending order: threads of a program
    pass values on through memory, with barriers between.
    """
    row = tl.program_id(0).to(tl.int64)
    z_ptr += row * z_stride
    ids_ptr += row * k
    slots = tl.arange(0, K_PAD)

    groups = tl.arange(0, GROUPS_PAD)
    maxima = tl.load(maxima_ptr + row * n_groups + groups, mask=groups < n_groups, other=_ABSENT)
    n_chosen = tl.minimum(k, n_groups)
    places = _places(maxima, n_chosen)
    tl.store(ids_ptr + places, groups.to(tl.int64), mask=places >= 0)
    tl.debug_barrier()
    chosen = tl.load(ids_ptr + slots, mask=slots < n_chosen, other=n_groups).to(tl.int32)  # groups past the end
    tl.debug_barrier()

    ids = tl.reshape(chosen[:, None] * GROUP + tl.arange(0, GROUP)[None, :], (K_PAD * GROUP,))
    z = tl.load(z_ptr + ids, mask=ids < vocab_size, other=float("-inf")).to(tl.float32)
    keys = tl.where(ids < vocab_size, _clean_key(z), _ABSENT)
    places = _places(keys, k)
    # One integer per entry that grows with the value and falls with the id.
    tl.store(ids_ptr + places, (keys.to(tl.int64) << 32) | (_LOW - ids.to(tl.int64)), mask=places >= 0)
    tl.debug_barrier()
    entries = tl.load(ids_ptr + slots, mask=slots < k, other=-9223372036854775808)
    tl.debug_barrier()

    ranks = tl.sum((entries[None, :] > entries[:, None]).to(tl.int32), axis=1)
    best = _LOW - (entries & _LOW)
    value = tl.load(z_ptr + best, mask=slots < k, other=0.0).to(tl.float32)
    finite = (value > float("-inf")) & (value < float("inf"))
    tl.store(ids_ptr + ranks, best, mask=slots < k)
    tl.store(valid_ptr + row * k + ranks, finite.to(tl.int8), mask=slots < k)


def best_candidates_triton(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """What `trimtab.kernels.candidates.best_candidates` returns, for k from 1 to min(128, V)."""
    z = z if z.stride(1) == 1 else z.contiguous()
    rows, vocab_size = z.shape
    n_groups, k_pad = triton.cdiv(vocab_size, GROUP), max(16, triton.next_power_of_2(k))
    maxima = torch.empty(rows, n_groups, dtype=torch.int32, device=z.device)
    ids = torch.empty(rows, k, dtype=torch.int64, device=z.device)
    valid = torch.empty(rows, k, dtype=torch.bool, device=z.device)
    group_maxima[rows, triton.cdiv(vocab_size, BLOCK)](
        z, z.stride(0), maxima, vocab_size, n_groups, GROUP=GROUP, BLOCK=BLOCK, num_warps=4
    )
    select_best[rows,](
        z,
        z.stride(0),
        maxima,
        ids,
        valid.view(torch.int8),
        vocab_size,
        n_groups,
        k,
        GROUP=GROUP,
        K_PAD=k_pad,
        GROUPS_PAD=triton.next_power_of_2(n_groups),
        num_warps=8 if k_pad <= 64 else 16,
    )
    return ids, valid
