"""The pass over a batch's logits: mixture, penalties, candidate sets, abstention; as `engine/plan.py` defines them.

Which rows and which numbers take part is known on the host; what the logits hold never is. So nothing here waits for
the device: no value is read back, and every choice that depends on one is a `where`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.engine.staging import place
from trimtab.kernels.candidates import reference_candidates
from trimtab.kernels.mixing import power_mean
from trimtab.kernels.tiles import NEG_INF
from trimtab.vllm.guide import RunningGuide, Wanted
from trimtab.vllm.history import History, Span
from trimtab.vllm.rows import Row


def steer(
    logits: Tensor,
    active: Sequence[tuple[int, Row]],
    guides: Mapping[str, RunningGuide],
    history: History,
    eos: Tensor,
) -> None:
    """Change the rows `active` of `logits` (B, V), floating point, in place; the others are not touched.

    `eos` (E,) int64 are the tokens that end a text. A token at -inf is forbidden by vLLM and stays so. A row that
    would be left with NaN, or with nothing to draw, keeps the base's logits.
    """
    rows = [row for _, row in active]
    at = _on_device([number for number, _ in active], torch.int64, logits.device)
    base = logits.index_select(0, at).float()  # (R, V)
    z = _mixture(base, rows, guides, history)
    judged = _penalise((z, base), rows, history)
    _restrict(z, judged, rows)
    z.masked_fill_(base == NEG_INF, NEG_INF)
    sound = ~z.isnan().any(dim=1, keepdim=True) & (z > NEG_INF).any(dim=1, keepdim=True)
    z = torch.where(sound, z, base)
    z = _abstain(z, base, rows, eos)
    logits.index_copy_(0, at, z.to(logits.dtype))


def _mixture(base: Tensor, rows: Sequence[Row], guides: Mapping[str, RunningGuide], history: History) -> Tensor:
    """The mixed logits (R, V) float32, fresh; what one model holds impossible is so in the sum."""
    weights = _on_device([row.plan.steer.base_weight for row in rows], torch.float32, base.device)[:, None]
    z = base.masked_fill(base == NEG_INF, 0.0) * weights  # what is forbidden is put back at the end
    powered: dict[tuple[int, int], Tensor] = {}
    for name, guide in guides.items():
        asked = [
            (i, number, Wanted(row, row.readings[number]), part.weight)
            for i, row in enumerate(rows)
            for number, part in enumerate(row.plan.parts)
            if part.guide == name
        ]
        if not asked:
            continue
        told = guide.logits([wanted for _, _, wanted, _ in asked], history).float()  # (N, V)
        powered |= {(i, number): told[n] for n, (i, number, *_) in enumerate(asked) if rows[i].plan.steer.power}
        terms = [(n, i, weight) for n, (i, _, _, weight) in enumerate(asked) if not rows[i].plan.steer.power]
        while terms:  # a row may ask a guide twice, and indexed sums are exact without doubles alone
            turn = list({i: (n, i, weight) for n, i, weight in reversed(terms)}.values())
            terms = [each for each in terms if each not in turn]
            _add(z, told, turn)
    for i, row in enumerate(rows):
        if row.plan.steer.power:
            parts = row.plan.parts
            models = torch.stack([base[i], *(powered[i, number] for number in range(len(parts)))])[None]  # (1, M, V)
            shares = [row.plan.steer.base_weight, *(part.weight for part in parts)]
            power = _on_device([row.plan.steer.power], torch.float32, base.device)
            z[i] = power_mean(models, _on_device(shares, torch.float32, base.device)[None], power)[0]
    return z


def _add(z: Tensor, told: Tensor, turn: Sequence[tuple[int, int, float]]) -> None:
    """Add rows n of `told` (N, V) to rows i of `z`, times their weights; each i stands there once."""
    source, target, weights = zip(*turn, strict=True)
    index = _on_device(target, torch.int64, z.device)
    given = told.index_select(0, _on_device(source, torch.int64, z.device))
    barred = given == NEG_INF
    mixed = z.index_select(0, index) + given.masked_fill(barred, 0.0) * _column(weights, z.device)
    z.index_copy_(0, index, mixed.masked_fill_(barred, NEG_INF))


def _penalise(scores: tuple[Tensor, Tensor], rows: Sequence[Row], history: History) -> Tensor:
    """Penalise the tokens of each row's history in the first of `scores` (R, V), in place; returns the second so, too.

    CTRL's repetition penalty (arXiv 1909.05858) counts prompt and answer; the others count the answer.
    """
    z, base = scores
    marked = [(i, row) for i, row in enumerate(rows) if row.plan.steer.edits_logits]
    if not marked:
        return base
    wanted = [row.plan.steer.sampling for _, row in marked]
    size = z.shape[1]
    index = _on_device([i for i, _ in marked], torch.int64, z.device)
    seen = _counts([Span(row, 0, row.length) for _, row in marked], size, history, z.device)
    written = _counts([Span(row, row.prompt, row.length) for _, row in marked], size, history, z.device)
    repetition = torch.where(seen > 0, _column([each.repetition_penalty for each in wanted], z.device), 1.0)
    less = _column([each.presence_penalty for each in wanted], z.device) * (written > 0)
    less = less + _column([each.frequency_penalty for each in wanted], z.device) * written
    edited = base.clone()
    for each in (z, edited):
        old = each.index_select(0, index)
        each.index_copy_(0, index, torch.where(old > 0, old / repetition, old * repetition) - less)
    return edited


def _counts(spans: Sequence[Span], size: int, history: History, device: torch.device) -> Tensor:
    """How often each token stands in each of the spans, (R, size) float32."""
    counts = torch.zeros(len(spans) * size, device=device)
    lengths = [span.stop - span.start for span in spans]
    if any(lengths):
        (first,) = place([np.repeat(np.arange(len(spans), dtype=np.int64) * size, lengths)], device)
        places = history.ids(spans) + first
        counts.scatter_add_(0, places, torch.ones_like(places, dtype=torch.float32))  # whole numbers: in any order
    return counts.view(len(spans), size)


def _restrict(z: Tensor, judged: Tensor, rows: Sequence[Row]) -> None:
    """Forbid what is no candidate, in place: by the base's penalised logits, `judged` (R, V)."""
    sets = [(i, each) for i, row in enumerate(rows) if (each := row.plan.steer.candidates) and not each.keep_others]
    if not sets:
        return
    index = _on_device([i for i, _ in sets], torch.int64, z.device)
    kept = reference_candidates(  # the kernels in its place read from the device what there is to do
        judged.index_select(0, index),
        _on_device([each.top_k for _, each in sets], torch.int64, z.device),
        _on_device([each.top_p for _, each in sets], torch.float32, z.device),
        _on_device([each.alpha for _, each in sets], torch.float32, z.device),
    )
    z.index_copy_(0, index, z.index_select(0, index).masked_fill_(~kept, NEG_INF))


def _abstain(z: Tensor, base: Tensor, rows: Sequence[Row], eos: Tensor) -> Tensor:
    """Leave the ends of text alone where the base is too unsure, unless vLLM forbids them all."""
    limits = []
    for row in rows:
        within = row.plan.abstain_within
        limits.append(row.plan.abstain_below if not within or row.generated < within else 0.0)
    if not any(limits):
        return z
    best = (base.amax(dim=1, keepdim=True) - base.logsumexp(dim=1, keepdim=True)).exp()  # (R, 1)
    ends = torch.full_like(base, NEG_INF).index_copy_(1, eos, base.index_select(1, eos))
    may_end = (ends > NEG_INF).any(dim=1, keepdim=True)
    return torch.where((best < _column(limits, z.device)) & may_end, ends, z)


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    """(N, 1) float32."""
    return _on_device(values, torch.float32, device)[:, None]


def _on_device(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers of the host on the device; a GPU copies from pinned memory, and nobody waits."""
    tensor = torch.tensor(values, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
