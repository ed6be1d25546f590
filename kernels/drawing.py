"""How tokens are drawn and measured in torch: `trimtab.kernels.steer_sample` on a CPU.

In units of the best token, log p = d / T - log Z with d the distance from it, so entropy and divergence need the means
of d and of the base's d under p alone. One pass over a row gives these sums, tile by tile.
"""

import torch
from torch import Tensor

from trimtab.kernels.compiled import tile_masses, tile_means
from trimtab.kernels.philox import Keys
from trimtab.kernels.statistics import SteerOut, mean
from trimtab.kernels.survivors import Group, RowParams, Survivors, scaled_probs, survivors
from trimtab.kernels.tiles import NEG_INF, TILE, Allowed, allowed, first_best, logprobs_of, tile_of, tiled

NAN = float("nan")


def draw(
    z: Tensor,
    reference: Tensor,
    params: RowParams,
    keys: Keys,
    *,
    logprobs: bool,
    measured: Tensor | None,
    compiled: bool,
) -> SteerOut:
    """Draw from the scores `z` (B, V), before temperature and filters; the rest as in `steer_sample`."""
    given = allowed(z.float())
    top, alive, uniforms = given.top, given.alive, keys.uniforms()[:, None]
    held = torch.full_like(alive, -1, dtype=torch.int64)  # the token of a greedy row, -1 in the others
    if params.any_greedy:
        held = torch.where(params.greedy, first_best(given.z, given.peaks), held)
    nan = torch.zeros_like(alive) if given.nan is None else given.nan
    if params.all_greedy and measured is None and not logprobs:
        return SteerOut.of(held.masked_fill(~alive, -1), nan)
    meter = None if measured is None else _Meter(given, reference, measured, compiled)
    token, logprob = torch.empty_like(held), torch.empty_like(top[:, 0])
    for g in params.groups:
        rows = g.rows
        row_z, row_top, uniform = given.z[rows], top[rows], uniforms[rows]
        if g.ranked:
            for s in survivors(row_z, row_top, g):
                drawn = s.rows if isinstance(rows, slice) else rows[s.rows]
                token[drawn], logprob[drawn] = _draw_ranked(s, uniform[s.rows], z.shape[1])
                if meter is not None:
                    meter.ranked(drawn, s)
        else:
            if meter is not None:
                masses = meter.open(rows, row_z, row_top, g)
            elif compiled:
                masses = tile_masses(row_z, row_top, g)
            else:
                masses, _ = _normalised(scaled_probs(row_z, row_top, g))
            token[rows], logprob[rows] = _draw_open(row_z, row_top, g, masses, uniform, held[rows, None])
    token = token.masked_fill_(~alive, -1)
    if meter is None and not logprobs:
        return SteerOut.of(token, nan)
    logprob = logprob.masked_fill_(~alive, NAN)
    if meter is not None and (meter.everyone or not logprobs):
        base_logprob = meter.base_logprob(token)
    elif z is reference and params.plain:
        base_logprob = logprob
    else:
        base = given if z is reference else allowed(reference.float())
        base_logprob = logprobs_of(token.clamp(min=0)[:, None], base.z, base.top)[:, 0]
        base_logprob = base_logprob.masked_fill_(~alive | ~base.alive, NAN)
    known = {} if meter is None else meter.found(alive)
    return SteerOut.of(token, nan, logprob=logprob, base_logprob=base_logprob, **known)


def _draw_open(
    z: Tensor, top: Tensor, g: Group, masses: Tensor, uniform: Tensor, held: Tensor
) -> tuple[Tensor, Tensor]:
    """Token (R,) and its log-probability (R,) of rows without top-k and top-p.

    `masses` (R, S) float64 are those of the tiles in units of the best token's; `held` (R, 1) tokens are settled.
    """
    cumulative = masses.cumsum(dim=1)
    mass = cumulative[:, -1:].contiguous()
    tile, target = _invert(cumulative, mass, uniform)
    # Given the tile, what is left of the uniform is uniform again.
    rest = ((target - cumulative.gather(1, tile)) / masses.gather(1, tile) + 1.0).clamp_(min=0.0)
    depth = (tile_of(z, tile, NEG_INF) - top) * g.inverse_temperature  # (R, TILE)
    probs = depth.exp()
    if g.any_min_p:
        probs = probs.masked_fill_(probs < g.min_p, 0.0)
    cumulative = probs.double().cumsum(dim=1)
    inside, _ = _invert(cumulative, cumulative[:, -1:].contiguous(), rest)
    token = torch.where(held >= 0, held, tile * TILE + inside)  # (R, 1)
    depth = (z.gather(1, token) - top) * g.inverse_temperature
    return token[:, 0], (depth - mass.log()).float()[:, 0]


def _draw_ranked(s: Survivors, uniform: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Token (R',) and its log-probability (R',) among the survivors of top-k and top-p."""
    weights = s.depth.neg().exp_().masked_fill_(~s.inside, 0.0)
    if s.ids.shape[1] == vocab_size:
        ids, weights = None, torch.empty_like(weights).scatter_(1, s.ids, weights)
    else:
        ids, order = s.ids.sort(dim=1)
        weights = weights.gather(1, order)
    cumulative = weights.cumsum(dim=1)
    chosen, _ = _invert(cumulative, cumulative[:, -1:].contiguous(), uniform)
    token = chosen if ids is None else ids.gather(1, chosen)
    return token[:, 0], (weights.gather(1, chosen).log() - s.mass.log()).float()[:, 0]


def _invert(cumulative: Tensor, total: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Find where the rising rows of `cumulative` (R, C) pass `uniform` * `total`, (R, 1) each, all float64.

    Returns that index, whose weight is never zero, and the product.
    """
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True), target


def _normalised(probs: Tensor) -> tuple[Tensor, Tensor]:
    """Tile masses (R, S) float64 of `probs` (R, V) in units of the best token's, and the sum as it is, (R, 1)."""
    masses = tiled(probs, torch.sum).double()
    return masses / probs.amax(dim=1, keepdim=True), masses.sum(dim=1, keepdim=True)


class _Meter:
    """Statistics of the measured rows, from what drawing computes anyway."""

    def __init__(self, steered: Allowed, reference: Tensor, measured: Tensor, compiled: bool) -> None:
        self.everyone = bool(measured.all())
        self._rows = slice(None) if self.everyone else measured.nonzero()[:, 0]
        self._place = measured.long().cumsum(dim=0) - 1  # of a batch row among the measured ones
        self._measured = measured
        self._compiled = compiled
        self._base = base = allowed(reference[self._rows].float())
        self._top = base.top  # (M, 1)
        self._dead = ~base.alive
        self._changed = first_best(steered.z[self._rows], steered.peaks[self._rows]) != first_best(base.z, base.peaks)
        self._found = torch.full((3, len(base.z)), NAN, dtype=torch.float64, device=base.z.device)
        if compiled:
            one = torch.ones_like(self._top)
            masses, distance, _ = tile_means(base.z, self._top, one, torch.zeros_like(one), base.z, self._top)
        else:
            probs = base.z.softmax(dim=1)
            masses, total = _normalised(probs)
            self._depth = base.z - self._top  # (M, V)
            distance = mean(probs, total, self._depth)
        self._log_mass = masses.sum(dim=1, keepdim=True).log()  # (M, 1) float64
        self._base_entropy = (self._log_mass - distance)[:, 0]

    def open(self, rows: Tensor | slice, z: Tensor, top: Tensor, g: Group) -> Tensor:
        """Measure rows (R,) of a group without top-k and top-p; the masses of all its tiles, (R, S) float64."""
        at, place = self._those(rows)
        scale = g.inverse_temperature[at]
        if self._compiled:
            base = self._base.z[place], self._top[place]
            mine, distance, base_distance = tile_means(z[at], top[at], scale, g.min_p[at], *base)
            masses = mine if self.everyone else tile_masses(z, top, g)
        else:
            probs = scaled_probs(z, top, g)
            masses, total = _normalised(probs)
            mine, probs, total = masses[at], probs[at], total[at]
            distance, base_distance = mean(probs, total, z[at] - top[at]), mean(probs, total, self._depth[place])
        self._note(place, mine.sum(dim=1, keepdim=True).log(), distance * scale, base_distance)
        return masses

    def ranked(self, rows: Tensor, s: Survivors) -> None:
        """Measure batch rows (R',) from what top-k and top-p have left of them."""
        at, place = self._those(rows)
        mass, ids = s.mass[at], s.ids[at]
        probs = s.depth[at].neg().exp_().masked_fill_(~s.inside[at], 0.0)
        base_depth = self._base.z[place].gather(1, ids) - self._top[place]
        self._note(place, mass.log(), mean(probs, mass, -s.depth[at]), mean(probs, mass, base_depth.double()))

    def base_logprob(self, token: Tensor) -> Tensor:
        """Log-probability (B,) of the measured rows' tokens under the base, of `token` (B,)."""
        token = token[self._rows]
        depth = self._base.z.gather(1, token.clamp(min=0)[:, None]) - self._top
        found = (depth - self._log_mass).float()[:, 0].masked_fill_(self._dead | (token < 0), NAN)
        return self._spread(found, NAN)

    def found(self, alive: Tensor) -> dict[str, Tensor]:
        """The statistics by name, (B,) each."""
        dead = ~alive[self._rows]
        entropy, kl, top1 = (each.masked_fill(dead, NAN) for each in self._found)
        columns = {
            "entropy": entropy,
            "base_entropy": self._base_entropy.masked_fill(self._dead, NAN),
            "kl": kl.clamp(min=0.0).masked_fill(self._dead, NAN),
            "top1": top1,
            "base_top1": self._log_mass[:, 0].neg().exp().masked_fill(self._dead, NAN),
        }
        spread = {name: self._spread(column.float(), NAN) for name, column in columns.items()}
        return spread | {"changed": self._spread(self._changed & ~dead & ~self._dead, False)}

    def _those(self, rows: Tensor | slice) -> tuple[Tensor | slice, Tensor | slice]:
        """Which of these batch rows are measured, and their places among the measured ones."""
        if self.everyone:
            return slice(None), rows
        at = self._measured[rows].nonzero()[:, 0]
        return at, self._place[rows][at]

    def _note(self, place: Tensor | slice, log_mass: Tensor, distance: Tensor, base_distance: Tensor) -> None:
        """Take in, (R, 1) each: log Z, the mean of d / T, and the mean of the base's d."""
        logprob, base_logprob = distance - log_mass, base_distance - self._log_mass[place]
        self._found[:, place] = torch.stack((-logprob, logprob - base_logprob, log_mass.neg().exp()))[:, :, 0]

    def _spread(self, values: Tensor, fill: float) -> Tensor:
        if self.everyone:
            return values
        spread = torch.full(self._measured.shape, fill, dtype=values.dtype, device=values.device)
        spread[self._rows] = values
        return spread
