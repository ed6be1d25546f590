"""The end of the token pass for rows that list their candidates: filter, draw and measure among a few tokens."""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trimtab.kernels.backend import Backend, use_triton
from trimtab.kernels.philox import Keys
from trimtab.kernels.survivors import RowParams
from trimtab.kernels.tiles import BIGGEST, NEG_INF

Array = npt.NDArray[Any]
MOST_LISTED = 256  # longer lists are finished on the CPU


class Finished(NamedTuple):
    """What rows drew from their lists, (R,) each, in nats; the numbers are nan where nothing can be drawn.

    The steered distribution is what the token was drawn from, after temperature and filters; for a greedy row it is
    the distribution at temperature 1 without filters.
    """

    token: Tensor  # int64, -1 where no candidate can be drawn
    logprob: Tensor  # float32, of the token when steered
    base_logprob: Tensor  # float32, of the token under the base
    entropy: Tensor  # float32, of the steered distribution
    kl: Tensor  # float32, KL(steered || base), inf where the steered distribution has mass that the base lacks
    top1: Tensor  # float32, probability of the most likely token, steered
    changed: Tensor  # bool, whether the best token before filters is another than the base's; ties by lower id
    nan: Tensor  # bool, whether the score of a candidate is NaN


def reference_finish(
    z: Tensor, base_logprob: Tensor, valid: Tensor, ids: Tensor, params: RowParams, keys: Keys
) -> Finished:
    """Return the same in float64, row by row from the definitions: the specification of `finish_candidates`."""
    rows = []
    uniforms, columns = (
        keys.uniforms().tolist(),
        zip(*(each.tolist() for each in params.columns(z.device)), strict=True),
    )
    for row, (temperature, top_k, top_p, min_p) in enumerate(columns):
        listed = list(
            zip(ids[row].tolist(), z[row].tolist(), base_logprob[row].tolist(), valid[row].tolist(), strict=True)
        )
        broken = any(fine and math.isnan(score) for _, score, _, fine in listed)
        scores = {token: min(score, BIGGEST) for token, score, _, fine in listed if fine and score > NEG_INF}
        base = {token: logprob for token, _, logprob, _ in listed}
        ranking = sorted(scores, key=lambda token: (-scores[token], token))
        base_ranking = sorted(
            (token for token in base if base[token] > NEG_INF),
            key=lambda token: (-base[token], token),
        )
        if not ranking:
            rows.append((-1, *[math.nan] * 5, False, broken))
            continue
        best = scores[ranking[0]]
        weights = {token: math.exp((scores[token] - best) / (temperature or 1.0)) for token in ranking}
        if temperature:
            kept = [token for token in ranking if weights[token] >= min_p][: top_k or None]
            total, before, nucleus = math.fsum(weights[token] for token in kept), 0.0, []
            for token in kept:
                if before < top_p * total or top_p == 1:
                    nucleus.append(token)
                before += weights[token]
            weights = {token: weights[token] for token in nucleus}
        mass = math.fsum(weights.values())
        logprobs = {token: (scores[token] - best) / (temperature or 1.0) - math.log(mass) for token in weights}
        passed, drawn = 0.0, ranking[0]
        for token in sorted(weights) if temperature else ():
            passed += weights[token]
            if passed > uniforms[row] * mass:
                drawn = token
                break
        probs = {token: weight / mass for token, weight in weights.items() if weight}
        rows.append(
            (
                drawn,
                logprobs[drawn],
                base[drawn],
                -math.fsum(p * logprobs[token] for token, p in probs.items()),
                math.fsum(p * (logprobs[token] - base[token]) for token, p in probs.items()),
                1 / mass,
                bool(base_ranking) and ranking[0] != base_ranking[0],
                broken,
            )
        )
    tokens, *numbers, changed, nan = (torch.tensor(each) for each in zip(*rows, strict=True))
    return Finished._make((tokens, *(each.double() for each in numbers), changed, nan))


def finish_candidates(
    z: Tensor,
    base_logprob: Tensor,
    valid: Tensor,
    ids: Tensor,
    params: RowParams,
    keys: Keys,
    *,
    base_best: Tensor | None = None,
    backend: Backend = "auto",
) -> Finished:
    """Draw one token per row among the tokens `ids` (R, K) int64, unique in a row and in any order, that are `valid`.

    `z` (R, K) float32 are their scores, `base_logprob` (R, K) float32 their log-probabilities under the base, `valid`
    (R, K) is bool. Scores of NaN are excluded, +inf is the largest number. The token is the one that `steer_sample`
    draws where all others are at -inf: the distribution is inverted in the order of the vocabulary. `base_best` (R,)
    int64 is the base's best token; absent, it is that of the list, candidate or not. What is returned lies on the CPU.
    """
    if 0 < z.shape[1] <= MOST_LISTED and len(z) and use_triton(z, backend):
        from trimtab.kernels.finish_candidates_triton import finish_candidates_triton

        packed = finish_candidates_triton(z, base_logprob, valid, ids, params, keys, base_best).cpu()
        token, *numbers, changed, nan = packed.unbind(1)
        floats = (each.view(torch.float32) for each in numbers)
        return Finished._make((token.long(), *floats, changed.bool(), nan.bool()))
    given = [each.cpu().numpy() for each in (z, base_logprob, valid, ids)]
    return _finish(given, params, keys, None if base_best is None else base_best.cpu().numpy())


def _finish(given: list[Array], params: RowParams, keys: Keys, base_best: Array | None) -> Finished:
    """The same in numpy: of tensors this small, torch spends its time between the operations."""
    ids = given[3]
    rows, k = np.arange(len(ids)), ids.shape[1]
    order = ids.argsort(axis=1) + rows[:, None] * k  # by id from here on: of equals, the first has the lowest
    z, base, valid, ids = (each.take(order) for each in given)
    z = np.where(valid, z, NEG_INF)
    nan = np.isnan(z).any(axis=1)
    z = np.where(z > NEG_INF, np.minimum(z, BIGGEST), NEG_INF)
    best = z.argmax(axis=1)
    top = z[rows, best].astype(np.float64)
    alive = top > NEG_INF
    temperature, top_k, top_p, min_p = (each.numpy() for each in params.columns(torch.device("cpu")))
    greedy = temperature == 0
    depth = (np.where(alive, top, 0.0)[:, None] - z) / np.where(greedy, 1.0, temperature)[:, None]
    weights = np.exp(-depth)
    if params.any_ranked or params.any_min_p:
        by_rank = np.argsort(-z, axis=1, kind="stable") + rows[:, None] * k
        ranked = weights.take(by_rank)
        kept = np.arange(k) < np.where(top_k > 0, top_k, k)[:, None]
        kept &= ranked >= min_p[:, None]
        ranked *= kept
        reached = ranked.cumsum(axis=1)
        limit = np.where(top_p < 1, top_p * reached[:, -1], np.inf)
        kept &= reached - ranked < limit[:, None]
        inside = np.empty_like(kept)
        inside.put(by_rank, kept | greedy[:, None])
        weights *= inside
    reached = weights.cumsum(axis=1)
    mass = np.where(alive, reached[:, -1], 1.0)
    # A uniform is at most 1 - 2**-53, so the product stays below the mass.
    chosen = (reached <= (keys.uniforms().cpu().numpy() * mass)[:, None]).sum(axis=1)
    chosen = np.where(greedy | ~alive, best, chosen)
    log_mass, out = np.log(mass), weights == 0
    entropy = log_mass + _mean(weights, np.where(out, 0.0, depth), mass)
    known = np.where(base > NEG_INF, base, NEG_INF)  # NaN is not
    listed_best = known.argmax(axis=1)
    if base_best is None:
        base_best = ids[rows, listed_best]
    kl = -entropy - _mean(weights, np.where(out, 0.0, base), mass)
    numbers = np.stack((-depth[rows, chosen] - log_mass, base[rows, chosen], entropy, np.maximum(kl, 0.0), 1.0 / mass))
    numbers[:, ~alive] = np.nan
    changed = (ids[rows, best] != base_best) & (known[rows, listed_best] > NEG_INF) & alive
    token = np.where(alive, ids[rows, chosen], -1)
    results = (token, *numbers.astype(np.float32), changed, nan)
    return Finished._make(map(torch.from_numpy, results))


def _mean(weights: Array, values: Array, mass: Array) -> Array:
    """Mean (R,) of `values` (R, K) under `weights` (R, K) of sum `mass` (R,)."""
    mean: Array = (weights * values).sum(axis=1) / mass
    return mean
