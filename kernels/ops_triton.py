"""Device functions of Triton kernels: order of floats as integers, selection, draws, random numbers."""

import triton
import triton.language as tl

GROUP = tl.constexpr(64)  # neighbours in the vocabulary whose maximum stands for them
LOG2E = tl.constexpr(1.4426950408889634)
ABSENT = tl.constexpr(-2147483648)  # the key of what is not there
_NONE = tl.constexpr(2147483647)
_NEG_INF = tl.constexpr(float("-inf"))


@triton.jit
def sort_key(z):
    """Int32 keys in the order of the float32 `z`, which hold no NaN; -0 equals +0."""
    bits = tl.where(z == 0.0, 0.0, z).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def key_value(key):
    """The float32 whose `sort_key` is `key`."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def finite(x):
    return tl.where(x > _NEG_INF, x, 0.0)


@triton.jit
def keys_of(z):
    """Keys in the order of `z`, `ABSENT` for -inf."""
    return tl.where(z > _NEG_INF, sort_key(z), ABSENT)


@triton.jit
def kth_key(keys, k):
    """The `k`-th largest of a vector of int32 `keys`, k >= 1: the largest t that at least k keys reach.

    Found bit by bit from the highest. The smallest int32 stands for an absent entry, and is the result where fewer
    than k entries are present.
    """
    found = -2147483648
    bit = 31
    while bit >= 0:
        candidate = found ^ (1 << bit)  # keys are signed: the highest bit leads from the negative half to the other
        found = tl.where(tl.sum((keys >= candidate).to(tl.int32), axis=0) >= k, candidate, found)
        bit -= 1
    return found


@triton.jit
def masses_above(keys, weights, found, shift):
    """Mass (8,) of the keys from `found` + j * 2^`shift` on, j from 0 to 7; 0 where that is no int32."""
    j = tl.arange(0, 8)
    masses = tl.sum(tl.where(keys[None, :] >= (found + (j << shift))[:, None], weights[None, :], 0.0), axis=1)
    return tl.where((j < 4) | (shift < 30), masses, 0.0)


@triton.jit
def three_bits(masses, goal, found, above, shift):
    """Three bits more of the largest key that, with the keys above it, has at least the mass `goal`.

    Also what it and they have, and they alone as far as is known: from `found` + 2^`shift` on.
    """
    j = tl.arange(0, 8)
    n = tl.sum(((j > 0) & (masses >= goal)).to(tl.int32), axis=0)
    reached = tl.sum(tl.where(j == n, masses, 0.0), axis=0)
    last = tl.where(shift < 30, 7, 3)
    above = tl.where(n < last, tl.sum(tl.where(j == n + 1, masses, 0.0), axis=0), above)
    return found + (n << shift), reached, above


@triton.jit
def bits(temperature):
    """Factor from logits to bits of probability; a greedy row's statistics are those of temperature 1."""
    greedy = temperature == 0.0
    return tl.minimum(1.0 / tl.where(greedy, 1.0, temperature), 1e38) * LOG2E


@triton.jit
def store_groups(group_ptr, tile, z, BLOCK: tl.constexpr):
    peaks = tl.max(tl.reshape(z, [BLOCK // GROUP, GROUP]), axis=1)
    tl.store(group_ptr + tile * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP), peaks)


@triton.jit
def list_groups(
    group_ptr, peak_ptr, list_ptr, n_groups, nought, top, scale, floor, top_k, goal,
    PER_TILE: tl.constexpr, N_PAD: tl.constexpr,
):  # fmt: skip
    """Write the row's groups that can hold survivors, ascending, and return how many, and a key no survivor is below.

    With `top_k` these are the groups of the k largest maxima, ties to the lower group: an entry outside them is beaten
    by k maxima, or ties with one and has a higher id. Else they hold all tokens of `floor` bits or more, and from the
    largest maxima on so many that these alone have the mass `goal`, if that is above 0.
    """
    g = nought + tl.arange(0, N_PAD)
    maxima = tl.load(group_ptr + g, mask=g < n_groups, other=_NEG_INF)
    peaks = tl.load(peak_ptr + g // PER_TILE, mask=g < n_groups, other=_NEG_INF)
    d = (tl.minimum(maxima, peaks) - top) * scale  # of a tile that lost all, the maxima still stand there
    fine = (d >= floor) & (d > _NEG_INF)
    keys = tl.where(fine, sort_key(maxima), ABSENT)
    weights = tl.where(fine, tl.where(top_k > 0, 1.0, tl.exp2(d)), 0.0)
    goal = tl.where(top_k > 0, top_k.to(tl.float32), goal)
    found = ABSENT
    above = tl.cast(0.0, tl.float32)
    bit = tl.where(goal > 0.0, 31, -1)
    while bit >= 0:
        candidate = found ^ (1 << bit)  # keys are signed: the highest bit leads from the negative half to the other
        mass = tl.sum(tl.where(keys >= candidate, weights, 0.0), axis=0)
        above = tl.where(mass >= goal, above, mass)
        found = tl.where(mass >= goal, candidate, found)
        bit -= 1
    ties = fine & (keys == found)
    room = tl.where(top_k > 0, goal - above, 65535.0).to(tl.int32)
    # Up to 32,767 groups may exceed the last one and 65,535 equal it: both counts share one scan.
    counts = tl.cumsum(tl.where(keys > found, 65536, 0) + ties.to(tl.int32), axis=0)
    n_above, n_ties = counts >> 16, tl.minimum(counts & 0xFFFF, room)
    chosen = (keys > found) | (ties & ((counts & 0xFFFF) <= room))
    tl.store(list_ptr + n_above + n_ties - 1, g, mask=chosen)
    return tl.max(n_above + n_ties, axis=0), found


@triton.jit
def invert(weights, share, SIZE: tl.constexpr):
    """Where the running sum of `weights` (SIZE,) float64 passes `share` of the whole, at a weight above 0.

    Also where in that weight, from 0 to 1.
    """
    i = tl.arange(0, SIZE)
    running = tl.cumsum(weights, axis=0)
    total = tl.max(running, axis=0)
    below = (total.to(tl.int64, bitcast=True) - 1).to(tl.float64, bitcast=True)  # the next smaller number
    target = tl.minimum(share * total, below)
    found = tl.min(tl.where((running > target) & (weights > 0.0), i, _NONE), axis=0)
    # Parallel sums may round differently from one place to the next, but never past the last weight.
    found = tl.where(found < _NONE, found, tl.max(tl.where(weights > 0.0, i, -1), axis=0))
    weight = tl.max(tl.where(i == found, weights, 0.0), axis=0)
    passed = tl.max(tl.where(i == found, running, 0.0), axis=0)
    return found, tl.maximum((target - passed) / weight + 1.0, 0.0)


@triton.jit
def uniform(seed, stream, position):
    """One float64 strictly between 0 and 1 with 53 random bits, from int64 scalars.

    The same bits as `trimtab.kernels.philox.uniforms`.
    """
    zero = (position ^ position).to(tl.uint32)
    high, low, _, _ = tl.philox(seed, zero, position.to(tl.uint32), stream.to(tl.uint32), (stream >> 32).to(tl.uint32))
    bits = ((high.to(tl.uint64) << 32) | low.to(tl.uint64)) >> 11
    return tl.maximum(bits.to(tl.float64), 0.5) * 1.1102230246251565e-16
