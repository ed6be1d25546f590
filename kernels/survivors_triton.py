"""Which tokens alpha, min-p, top-k and top-p leave of a row, and which of them is drawn: one program per row.

Everything that has to be read again is read by one loop, a unit at a time: a tile, or as many groups of neighbours as
a tile has, from a list of those that can hold a token that is looked for. It serves, in this order:

0. tiles whose sums are no numbers are summed again, with care;
1. tiles that hold plausible tokens are summed again over these, the others lose all;
2. the best token is looked up, and the base's;
3. rows with filters list the groups that can hold survivors, and collect their tokens;
4. the end of top-k, then of top-p, is found among them, without a sort;
5. what is left is summed;
6. a token is drawn.

The best n tokens of a row are those above some value, and of those equal to it the ones of lowest id. A search finds
that value three bits of its key at a time; it counts tokens, or adds up their mass, above eight candidates at once.
"""

import triton
import triton.language as tl

from trimtab.kernels.mixing_triton import LOWEST, clean, steered
from trimtab.kernels.ops_triton import (
    ABSENT,
    GROUP,
    LOG2E,
    bits,
    finite,
    invert,
    key_value,
    keys_of,
    list_groups,
    masses_above,
    store_groups,
    three_bits,
    uniform,
)

SUMS = tl.constexpr(9)  # of a unit: maximum, three sums; the same of the base but the last; judged; base's in the unit
_LN2 = tl.constexpr(0.6931471805599453)
_EVERY = tl.constexpr(2147483647)
_NEG_INF = tl.constexpr(float("-inf"))
_REPAIR, _JUDGE, _BEST, _COLLECT, _SEARCH, _SUM, _DRAW, _DONE = (tl.constexpr(phase) for phase in range(8))
_TOP_K, _TOP_K_TIES, _TOP_P, _TOP_P_TIES, _FOUND = (tl.constexpr(stage) for stage in range(5))


@triton.jit
def _read(
    logits, row, unit, listing, list_ptr, n_listed, bar, V, n_tiles,
    MIXES: tl.constexpr, JUDGED: tl.constexpr, LISTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A unit: the base's logits, the steered ones, -inf where not plausible, and their ids, (BLOCK,) each.

    Also the largest logit as judged for plausibility, and whether one is NaN. `listing` is 0 for tiles, 1 for listed
    groups, 2 for the collected tokens. Neither logits are NaN or +inf.
    """
    lane = tl.arange(0, BLOCK)
    low = unit * BLOCK
    high = tl.minimum(low + BLOCK, V)
    offs = low + lane
    inside = offs < V
    if LISTED:
        if listing == 1:
            low = 0
            high = V
        at = offs // GROUP
        groups = tl.load(list_ptr + at, mask=(listing == 1) & (at < n_listed), other=V)
        offs = tl.where(listing == 1, groups * GROUP + lane % GROUP, offs)
        inside = (offs < V) & (groups <= V)
    own, z, judged = steered(logits, row, offs, low, high, inside, MIXES, JUDGED, True)
    nan = tl.max((z != z).to(tl.int32), axis=0)
    z = clean(z)
    judged_peak = tl.cast(_NEG_INF, tl.float32)
    if JUDGED:
        judged = clean(judged)
        judged_peak = tl.max(judged, axis=0)
        z = tl.where(judged >= bar, z, _NEG_INF)
    return clean(own), z, offs, judged_peak, nan


@triton.jit
def _store_sums(ptr, n_tiles, z, own, scale, base_peak, FULL: tl.constexpr):
    """Maximum, mass, sum of p * d, and sum of p * (own - base_peak) in bits, of a unit that may hold -inf."""
    peak = tl.max(z, axis=0)
    d = (z - finite(peak)) * scale
    p = tl.exp2(d)
    tl.store(ptr, peak)
    tl.store(ptr + n_tiles, tl.sum(p, axis=0))
    if FULL:
        beside = tl.where(p > 0.0, (own - finite(base_peak)) * LOG2E, 0.0)
        tl.store(ptr + 2 * n_tiles, tl.sum(p * tl.maximum(d, -10000.0), axis=0))  # where d is so small p is 0
        tl.store(ptr + 3 * n_tiles, tl.sum(p * beside, axis=0))


@triton.jit(do_not_specialize=["n_edits", "mask_stride"])
def select(
    base_ptr, base_stride, weight_ptr,
    a_ptr, a_stride, a_index_ptr, a_weight_ptr,
    b_ptr, b_stride, b_index_ptr, b_weight_ptr,
    c_ptr, c_stride, c_index_ptr, c_weight_ptr,
    ids_ptr, mul_ptr, add_ptr, n_edits,
    mask_ptr, mask_stride,
    temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, alpha_ptr, seed_ptr, stream_ptr, position_ptr,
    sum_ptr, group_ptr, list_ptr, out_ptr, V, n_tiles,
    MIXES: tl.constexpr, JUDGED: tl.constexpr, LISTED: tl.constexpr, FULL: tl.constexpr, COLUMNS: tl.constexpr,
    S_PAD: tl.constexpr, N_PAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (B,): merge a row's sums, filter, draw, and write the row of `trimtab.kernels.statistics.PACKED`.

    `list_ptr` is room for (B, S * BLOCK / GROUP + 3 * BLOCK) int32.
    """
    row = tl.program_id(0).to(tl.int64)
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
    per_tile: tl.constexpr = BLOCK // GROUP
    lane = tl.arange(0, BLOCK)
    tiles = tl.arange(0, S_PAD)
    j = tl.arange(0, 8)
    sum_ptr += row * SUMS * n_tiles
    at = sum_ptr + tiles
    temperature = tl.load(temperature_ptr + row)
    greedy = (temperature == 0.0).to(tl.int32)
    scale = bits(temperature)
    top_k = tl.cast(0, tl.int32)
    top_p = tl.cast(1.0, tl.float32)
    min_p = tl.cast(0.0, tl.float32)
    if LISTED:
        group_ptr += row * n_tiles * per_tile
        list_ptr += row * (n_tiles * per_tile + 3 * BLOCK)
        if greedy == 0:
            top_k = tl.load(top_k_ptr + row)
            top_p = tl.load(top_p_ptr + row)
            min_p = tl.load(min_p_ptr + row)

    # What is known of the row.
    broken = 0
    alive = 0
    bar = tl.cast(_NEG_INF, tl.float32)
    top = tl.cast(0.0, tl.float32)
    base_top = tl.cast(0.0, tl.float32)
    best = _EVERY
    base_best = _EVERY
    total = tl.cast(0.0, tl.float32)
    total_spread = tl.cast(0.0, tl.float32)
    total_gap = tl.cast(0.0, tl.float32)
    rest = tl.cast(0.0, tl.float64)
    unit_peak = tl.cast(0.0, tl.float32)
    drawn = -1
    drawn_z = tl.cast(0.0, tl.float32)
    # The unit that was read last.
    own = tl.zeros_like(lane).to(tl.float32)
    z = own
    offs = lane
    judged_peak = tl.cast(0.0, tl.float32)
    # What the filters leave: tokens of `floor` bits, above `key` in order, or equal to it up to the id `last`.
    floor = tl.cast(_NEG_INF, tl.float32)
    key = ABSENT
    last = _EVERY
    listing = 0
    n_listed = 0
    n_units = n_tiles
    n_collected = 0
    # The search for an end.
    bound = ABSENT
    open_mass = tl.cast(0.0, tl.float32)
    stage = _FOUND
    shift = 30
    found = ABSENT
    goal = tl.cast(0.0, tl.float32)
    above = tl.cast(0.0, tl.float32)
    masses = tl.zeros_like(j).to(tl.float32)

    known = tl.load(at + n_tiles, mask=tiles < n_tiles, other=0.0)
    known += tl.load(at + 5 * n_tiles, mask=tiles < n_tiles, other=0.0)
    if FULL:
        known += tl.load(at + 2 * n_tiles, mask=tiles < n_tiles, other=0.0)
        known += tl.load(at + 3 * n_tiles, mask=tiles < n_tiles, other=0.0)
        known += tl.load(at + 6 * n_tiles, mask=tiles < n_tiles, other=0.0)
    base_peak = tl.load(at + 4 * n_tiles, mask=tiles < n_tiles, other=0.0)
    todo = ((known != known) | (base_peak <= LOWEST)).to(tl.int32)
    held = -1
    phase = _REPAIR
    while phase < _DONE:
        unit = tl.min(tl.where(todo > 0, tiles, S_PAD), axis=0)
        if unit < S_PAD:
            todo = tl.where(tiles == unit, 0, todo)
            if unit != held:
                held = unit
                own, z, offs, judged_peak, nan = _read(
                    logits, row, unit, listing, list_ptr, n_listed, bar, V, n_tiles, MIXES, JUDGED, LISTED, BLOCK
                )
                broken = tl.maximum(broken, nan)
            left = z
            if LISTED:
                keys = keys_of(z)
                kept = ((z - top) * scale >= floor) & ((keys > key) | ((keys == key) & (offs <= last)))
                left = tl.where(kept, z, _NEG_INF)
                if phase == _COLLECT:
                    hit = (left > _NEG_INF) & (keys >= bound)
                    place = n_collected + tl.cumsum(hit.to(tl.int32), axis=0) - 1
                    n_collected += tl.sum(hit.to(tl.int32), axis=0)
                    hit = hit & (place < BLOCK)
                    to = list_ptr + n_tiles * per_tile + place
                    tl.store(to, offs, mask=hit)
                    tl.store(to + BLOCK, z.to(tl.int32, bitcast=True), mask=hit)
                    tl.store(to + 2 * BLOCK, own.to(tl.int32, bitcast=True), mask=hit)
                if phase == _SEARCH:
                    ties = (stage == _TOP_K_TIES) | (stage == _TOP_P_TIES)
                    wanted = tl.where(ties, tl.where(keys == key, -1 - offs, ABSENT), keys)
                    wanted = tl.where(left > _NEG_INF, wanted, ABSENT)
                    weights = tl.where(stage == _TOP_P, tl.exp2((z - top) * scale), 1.0)
                    masses += masses_above(wanted, tl.where(wanted > ABSENT, weights, 0.0), found, shift)
            if phase == _BEST:
                best = tl.minimum(best, tl.min(tl.where(z == top, offs, _EVERY), axis=0))
                base_best = tl.minimum(base_best, tl.min(tl.where(own == base_top, offs, _EVERY), axis=0))
            if phase == _DRAW:
                p = tl.exp2((left - unit_peak) * scale)
                chosen, _rest = invert(p.to(tl.float64), rest, BLOCK)
                drawn = tl.max(tl.where(lane == chosen, offs, 0), axis=0)
                drawn_z = tl.max(tl.where(lane == chosen, z, _NEG_INF), axis=0)
            if (phase <= _JUDGE) | (phase == _SUM):
                to = sum_ptr + unit
                unit_base = tl.max(own, axis=0)
                _store_sums(to, n_tiles, left, own, scale, unit_base, FULL)
                if phase == _REPAIR:
                    _store_sums(to + 4 * n_tiles, n_tiles, own, own, LOG2E, unit_base, False)
                    if FULL:
                        d = (own - finite(unit_base)) * LOG2E
                        tl.store(to + 6 * n_tiles, tl.sum(tl.exp2(d) * tl.maximum(d, -10000.0), axis=0))
                    if JUDGED:
                        tl.store(to + 7 * n_tiles, judged_peak)
                if LISTED:
                    tl.store(to + 8 * n_tiles, unit_base)
                    if phase <= _JUDGE:
                        store_groups(group_ptr, unit, left, BLOCK)
        else:
            tl.debug_barrier()  # other threads read what was stored
            if LISTED:  # noqa: SIM102, known when the kernel is compiled
                if (phase == _SEARCH) & (stage < _FOUND):
                    if (stage == _TOP_P) & (shift == 30) & (goal == 0.0):
                        goal = top_p * tl.sum(tl.where(j == 0, masses, 0.0), axis=0)
                    found, reached, above = three_bits(masses, goal, found, above, shift)
                    masses = tl.zeros_like(masses)
                    shift -= 3
                    if shift < 0:
                        if (stage == _TOP_K) | (stage == _TOP_P):
                            weight = tl.where(stage == _TOP_P, tl.exp2((key_value(found) - top) * scale), 1.0)
                            weight = tl.maximum(weight, 1e-37)
                            last = tl.where(found == key, last, _EVERY)
                            key = found
                            n = tl.minimum((goal - above) / weight, 1e9).to(tl.int32).to(tl.float32)
                            n = tl.where(above + n * weight < goal, n + 1.0, n)
                            some = (found > ABSENT) & (n < (reached - above) / weight - 0.5)
                            goal = n
                            stage += tl.where(some, 1, 2)
                        else:
                            last = tl.where(found > ABSENT, -1 - found, last)
                            stage += 1
                        if stage == _TOP_P:
                            goal = top_p * open_mass
                            stage = tl.where(top_p < 1.0, stage, _FOUND)
                        found = ABSENT
                        above = tl.cast(0.0, tl.float32)
                        shift = 30
            if stage < _FOUND:
                todo = (tiles < n_units).to(tl.int32)
            else:
                phase += 1
                real = tiles < n_units
                peak = tl.load(at, mask=real, other=_NEG_INF)
                mass = tl.load(at + n_tiles, mask=real, other=0.0)
                base_peak = tl.load(at + 4 * n_tiles, mask=real, other=_NEG_INF)
                if JUDGED:  # noqa: SIM102, known when the kernel is compiled
                    if phase == _JUDGE:
                        judged = tl.load(at + 7 * n_tiles, mask=real, other=_NEG_INF)
                        alpha = tl.load(alpha_ptr + row)
                        if alpha > 0.0:
                            bar = tl.max(judged, axis=0) + tl.log2(tl.maximum(alpha, 2e-38)) * _LN2
                            todo = (real & (judged >= bar)).to(tl.int32)
                        lost = real & (judged < bar)
                        tl.store(at, tl.full([S_PAD], _NEG_INF, tl.float32), mask=lost)
                        tl.store(at + n_tiles, tl.zeros([S_PAD], tl.float32), mask=lost)
                        held = -1
                if phase == _BEST:
                    found_top = tl.max(peak, axis=0)
                    alive = (found_top > _NEG_INF).to(tl.int32)
                    top = finite(found_top)
                    base_top = finite(tl.max(base_peak, axis=0))
                    first = tl.min(tl.where((peak == found_top) & (alive > 0), tiles, S_PAD), axis=0)
                    base_first = tl.min(tl.where(base_peak == base_top, tiles, S_PAD), axis=0)
                    if FULL:
                        todo = ((tiles == first) | (tiles == base_first)).to(tl.int32)
                    else:
                        todo = ((tiles == first) & (greedy > 0)).to(tl.int32)
                if LISTED:
                    if (phase == _COLLECT) & (alive > 0) & ((top_k > 0) | (top_p < 1.0) | (min_p > 0.0)):
                        if min_p > 0.0:
                            floor = tl.log2(tl.maximum(min_p, 2e-38))
                        if (top_k == 0) & (top_p < 1.0) & (min_p == 0.0):
                            open_mass = tl.sum(tl.where(peak > _NEG_INF, mass * tl.exp2((peak - top) * scale), 0.0))
                        n_listed, bound = list_groups(
                            group_ptr, sum_ptr, list_ptr, tl.cdiv(V, GROUP), n_collected, top, scale, floor, top_k,
                            top_p * open_mass, per_tile, N_PAD,
                        )  # fmt: skip
                        tl.debug_barrier()  # other threads read the list
                        listing = 1
                        n_units = tl.cdiv(n_listed, per_tile)
                        todo = ((tiles < n_units) & (n_units > 1)).to(tl.int32)
                        held = -1
                    if (phase == _SEARCH) & (listing > 0):
                        if (n_units > 1) & (n_collected <= BLOCK):
                            listing = 2
                            n_units = 1
                            held = 0  # is read here
                            there = lane < n_collected
                            source = list_ptr + n_tiles * per_tile + lane
                            offs = tl.load(source, mask=there, other=_EVERY)
                            z = tl.load(source + BLOCK, mask=there, other=-8388608).to(tl.float32, bitcast=True)
                            own = tl.load(source + 2 * BLOCK, mask=there, other=-8388608).to(tl.float32, bitcast=True)
                        stage = tl.where(top_k > 0, _TOP_K, tl.where(top_p < 1.0, _TOP_P, _FOUND))
                        goal = tl.where(top_k > 0, top_k.to(tl.float32), top_p * open_mass)
                        todo = ((tiles < n_units) & (stage < _FOUND)).to(tl.int32)
                    if phase == _SUM:
                        todo = ((tiles < n_units) & (listing > 0)).to(tl.int32)
                if phase == _DRAW:
                    part = tl.where(peak > _NEG_INF, tl.exp2((peak - top) * scale), 0.0).to(tl.float64)
                    weights = mass.to(tl.float64) * part
                    share = uniform(tl.load(seed_ptr + row), tl.load(stream_ptr + row), tl.load(position_ptr + row))
                    unit, rest = invert(weights, share, S_PAD)  # the rest is uniform again, given the unit
                    unit_peak = tl.max(tl.where(tiles == unit, peak, _NEG_INF), axis=0)
                    todo = ((tiles == unit) & (alive > greedy)).to(tl.int32)
                    total = tl.sum(weights, axis=0).to(tl.float32)
                    if FULL:
                        spread = tl.load(at + 2 * n_tiles, mask=real, other=0.0)
                        gap = tl.load(at + 3 * n_tiles, mask=real, other=0.0)
                        beside = tl.load(at + tl.where(listing > 0, 8, 4) * n_tiles, mask=real, other=0.0)
                        d = tl.where(part > 0.0, (peak - top) * scale, 0.0)
                        beside = tl.where(part > 0.0, (finite(beside) - base_top) * LOG2E, 0.0)
                        total_spread = tl.sum(part * (spread + mass * d), axis=0).to(tl.float32)
                        beside = tl.where(part > 0.0, part * (gap + mass * beside), 0.0)
                        total_gap = tl.sum(beside, axis=0).to(tl.float32)

    token = tl.where(alive > 0, tl.where(greedy > 0, best, drawn), -1)
    chosen_d = tl.where(greedy > 0, 0.0, (drawn_z - top) * scale)
    log_total = tl.log2(tl.where(alive > 0, total, 1.0))
    nan = float("nan")
    real = tiles < n_tiles
    base_peak = tl.load(at + 4 * n_tiles, mask=real, other=_NEG_INF)
    base_mass = tl.load(at + 5 * n_tiles, mask=real, other=0.0)
    base_alive = tl.max(base_peak, axis=0) > _NEG_INF
    both = (alive > 0) & base_alive
    base_part = tl.where(base_peak > _NEG_INF, tl.exp2((base_peak - base_top) * LOG2E), 0.0)
    base_total = tl.sum((base_mass * base_part).to(tl.float64), axis=0)
    base_log_total = tl.log2(tl.where(base_alive, base_total, 1.0).to(tl.float32))
    of_token = clean(tl.load(base_ptr + row * base_stride + tl.maximum(token, 0)).to(tl.float32))
    to = out_ptr + row * COLUMNS
    tl.store(to, token)
    _store_float(to + 1, tl.where(alive > 0, (chosen_d - log_total) * _LN2, nan))
    _store_float(to + 2, tl.where(both, of_token - base_top - base_log_total * _LN2, nan))
    if FULL:
        base_spread = tl.load(at + 6 * n_tiles, mask=real, other=0.0)
        base_d = tl.where(base_part > 0.0, (base_peak - base_top) * LOG2E, 0.0)
        base_sum = tl.sum((base_part * (base_spread + base_mass * base_d)).to(tl.float64), axis=0)
        mean = total_spread / tl.where(alive > 0, total, 1.0)
        base_mean = base_sum / tl.where(base_alive, base_total, 1.0)
        mean_gap = total_gap / tl.where(alive > 0, total, 1.0)
        kl = (mean - log_total) - (mean_gap - base_log_total)
        _store_float(to + 3, tl.where(alive > 0, (log_total - mean) * _LN2, nan))
        _store_float(to + 4, tl.where(base_alive, (base_log_total - base_mean) * _LN2, nan))
        _store_float(to + 5, tl.where(both, tl.maximum(kl, 0.0) * _LN2, nan))
        _store_float(to + 6, tl.where(alive > 0, tl.exp2(-log_total), nan))
        _store_float(to + 7, tl.where(base_alive, tl.exp2(-base_log_total), nan))
        tl.store(to + 8, (both & (best != base_best)).to(tl.int32))
    else:
        for column in tl.static_range(3, 8):
            _store_float(to + column, tl.cast(nan, tl.float32))
        tl.store(to + 8, 0)
    tl.store(to + 9, broken)


@triton.jit
def _store_float(ptr, value):
    tl.store(ptr, value.to(tl.float32).to(tl.int32, bitcast=True))
