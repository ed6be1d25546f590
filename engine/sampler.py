"""From the sequences of a decode step to one batched draw: marshals rows into tensors, then calls the kernels."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Unpack

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trimtab.engine.candidates import Shortlist
from trimtab.engine.errors import GuideError, ModelLoadError, TrimtabError
from trimtab.engine.guides.base import Guide
from trimtab.engine.job import Weighed
from trimtab.engine.limits import Limits, StepLimits
from trimtab.engine.measure import Measure
from trimtab.engine.outputs import Outputs
from trimtab.engine.plan import SteerPlan
from trimtab.engine.progress import say
from trimtab.engine.results import Source, TokenLogprob, TokenTrace
from trimtab.engine.scores import Scores
from trimtab.engine.sequence import Sequence
from trimtab.engine.staging import place
from trimtab.engine.steering import Mixture, Steering
from trimtab.engine.values import Scorer
from trimtab.kernels.backend import Backend
from trimtab.kernels.candidates import best_candidates
from trimtab.kernels.compiled import compile_loops
from trimtab.kernels.edits import Edits
from trimtab.kernels.finish_candidates import finish_candidates
from trimtab.kernels.philox import Keys
from trimtab.kernels.statistics import SteerOut
from trimtab.kernels.steer_sample import base_at, steer_sample, steered_scores, top_logprobs
from trimtab.kernels.survivors import RowParams
from trimtab.kernels.tiles import allowed

TRACE_TOP = 5
VOICE = 1 << 32  # random streams of a second voice lie behind those of the forks

Top = tuple[tuple[int, float], ...]
IntArray = npt.NDArray[np.int64]
Part = tuple[list[int], Tensor]
"""places of rows in a batch, as numbers and as an index"""


class Given(Mixture, total=False):
    """Arguments of `steer_sample` that differ from step to step."""

    edits: Edits | None
    bitmask: Tensor | None


@dataclass(frozen=True, slots=True)
class Drawn:
    """One drawn token of one row; `id` is -1 where no token had a probability. The rest only if it is wanted."""

    id: int
    logprob: TokenLogprob | None = None
    measure: Measure | None = None
    trace: TokenTrace | None = None
    error: Exception | None = None
    """what a guide did wrong"""


@dataclass(frozen=True, slots=True)
class Proposed:
    """The best next tokens of one row with their scores, best first; no token where none had a probability."""

    scores: dict[int, float]
    reference: Tensor  # (V,) what reports call the base's logits
    error: Exception | None = None
    """what a guide did wrong"""


def compile_sampler(vocab_size: int) -> None:
    """Compile the draw's loops for a CPU now rather than at the first requests; raises ModelLoadError."""
    say("compiling the sampler: less than a minute")
    try:
        compile_loops(vocab_size)
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelLoadError(
            f"the sampler cannot be compiled ({reason}): install a C++ compiler, or set engine.compile to false"
        ) from error


def warm_sampler(vocab_size: int, dtype: torch.dtype, device: torch.device) -> None:
    """Let a GPU's kernels be compiled for the commonest draws now rather than at the first requests."""
    say("compiling the sampler's kernels: a minute the first time, then they are cached")
    logits, one, off = torch.zeros(1, vocab_size, dtype=dtype, device=device), torch.ones(1), torch.zeros(1)
    everyone, keys = torch.ones(1, dtype=torch.bool, device=device), _keys(np.zeros((3, 1), dtype=np.int64), device)
    for top_p, measured in product((1.0, 0.9), (None, everyone)):
        params = RowParams(temperature=one, top_k=off.long(), top_p=one * top_p, min_p=off)
        steer_sample(logits, params, keys, measured=measured)


class Sampler:
    """Draws one token per row. What depends only on who is in the batch is kept until the batch changes."""

    def __init__(self, guides: Mapping[str, Guide], backend: Backend = "auto") -> None:
        self._guides = guides
        self._backend = backend
        self._batches: dict[object, _Batch] = {}
        self._split: dict[object, tuple[list[Sequence], list[Part]]] = {}

    def draw(
        self, rows: list[Sequence], logits: Tensor, outputs: Outputs, score: Scorer, *, group: object = None
    ) -> list[Drawn]:
        """Draw from the `logits` (B, V) of the speakers of `rows`, as their plans steer them.

        `group` names the batch among those of one tick: those of other models come from draws of their own.
        """
        parts = self._parts(rows, logits.device, group)
        if len(parts) > 1:
            drawn: dict[int, Drawn] = {}
            for part, (places, index) in enumerate(parts):
                these = [rows[i] for i in places]
                found = self.draw(these, logits.index_select(0, index), outputs, score, group=(group, part))
                drawn.update(zip(places, found, strict=True))
            return [drawn[i] for i in range(len(rows))]
        batch = self._batches.get(group)
        if batch is None or batch.rows != rows:
            batch = self._batches[group] = _Batch(rows, self._guides, logits.device, self._backend)
        limits, steering = batch.limits.step(logits.shape[1]), batch.steering
        if steering is None:
            return batch.drawn(batch.sample(logits, edits=limits.edits, bitmask=limits.bitmask), logits, limits)
        guilty = partial(steering.guilty, outputs=outputs)
        if steering.short:
            listed, scores = steering.shortlist(logits, limits, outputs, score)
            return batch.drawn(batch.finish(listed, scores.reference), scores.reference, limits, scores, guilty)
        if steering.fused:
            mixture = steering.mixture(logits, outputs)
            reference = mixture["reference"]
            out = batch.sample(logits, edits=limits.edits, bitmask=limits.bitmask, **mixture)
            return batch.drawn(out, logits if reference is None else reference, limits, guilty=guilty)
        scores = steering.apply(logits, limits, outputs, score)
        out = batch.sample(scores.steered, reference=scores.reference)
        return batch.drawn(out, scores.reference, limits, scores, guilty)

    def _parts(self, rows: list[Sequence], device: torch.device, group: object) -> list[Part]:
        """Rows that draw from their lists, and the others: they are drawn apart, so that neither pays for the other."""
        known = self._split.get(group)
        if known is None or known[0] != rows:
            kinds = [[i for i, row in enumerate(rows) if row.plan.short is short] for short in (True, False)]
            parts = [(places, torch.tensor(places, device=device)) for places in kinds if places]
            known = self._split[group] = rows.copy(), parts
        return known[1]

    def propose(
        self, rows: list[Sequence], counts: list[int], logits: Tensor, outputs: Outputs, score: Scorer
    ) -> list[Proposed]:
        """The best tokens of each row, as many as its count, as `draw` would see them; nothing is drawn."""
        batch = _Batch(rows, self._guides, logits.device, self._backend)
        limits = batch.limits.step(logits.shape[1])
        if batch.steering is not None:
            scores = batch.steering.apply(logits, limits, outputs, score)
        else:
            scores = Scores(steered_scores(logits, edits=limits.edits, bitmask=limits.bitmask), logits)
        errors: dict[int, TrimtabError] = {**scores.failed, **limits.failed}
        given = allowed(scores.steered)
        if batch.steering is not None and given.nan is not None:
            for row in given.nan.nonzero()[:, 0].tolist():
                guilty = batch.steering.guilty(row, outputs)
                if guilty is not None:
                    errors.setdefault(row, guilty)
        ids, valid = best_candidates(given.z, max(counts), backend=self._backend)  # (B, k)
        listed = zip(
            ids.tolist(), given.z.gather(1, ids).tolist(), (valid & given.alive[:, None]).tolist(), strict=True
        )
        return [
            Proposed(_best(*each, counts[i], rows[i].plan.limit), scores.reference[i].clone(), errors.get(i))
            for i, each in enumerate(listed)
        ]

    def weigh(self, rows: list[Sequence], weighed: list[Weighed]) -> list[Drawn]:
        """Draw from scores that programs gave; their other tokens are out. Edits and steering are in them already."""
        reference = torch.stack([each.reference for each in weighed])  # (B, V)
        if all(map(_is_settled, weighed)) and not any(row.plan.trace for row in rows):
            return self._settled(rows, [next(iter(each.scores)) for each in weighed], reference)
        device = reference.device
        entries = [(i, *entry) for i, each in enumerate(weighed) for entry in each.scores.items()]
        index = torch.tensor([(row, token) for row, token, _ in entries], dtype=torch.long, device=device)
        z = torch.full(reference.shape, -torch.inf, device=device)
        z[tuple(index.reshape(-1, 2).T)] = torch.tensor([score for *_, score in entries], device=device)
        batch = _Batch(rows, self._guides, device, self._backend, searched=True)
        scores = Scores(z, reference, {i: each.values for i, each in enumerate(weighed)})
        return batch.drawn(batch.sample(z, reference=reference), reference, StepLimits(None, None, {}), scores)

    def _settled(self, rows: list[Sequence], ids: list[int], reference: Tensor) -> list[Drawn]:
        """Tokens that the programs have chosen themselves: certain, whatever the base thinks of them."""
        token = torch.tensor(ids, device=reference.device)
        base = base_at(reference, token[:, None], backend=self._backend)
        logprobs, changed = base.logprobs[:, 0].tolist(), (base.best != token).tolist()
        entropies = base.entropy.tolist()
        batch = _Batch(rows, self._guides, reference.device, self._backend, searched=True)
        reports = batch.reports(ids, logprobs, reference) if batch.reporting else {}
        return [
            Drawn(each, reports.get(i), Measure(0.0, logprob, -logprob, changed[i], entropies[i], 0.0))
            for i, (each, logprob) in enumerate(zip(ids, logprobs, strict=True))
        ]

    def speak(self, rows: list[Sequence], logits: Tensor) -> list[int]:
        """Draw from the other voice's `logits` (R, V'): the same sampling, none of the base's edits; -1: nothing.

        Its EOS is barred where the request wants to go on.
        """
        plans = [row.plan for row in rows]
        early = [
            (i, token)
            for i, row in enumerate(rows)
            if row.plan.sampling.ignore_eos or row.generated < row.plan.sampling.min_tokens
            for token in row.guide.model.eos_ids
        ]
        if early:
            logits = logits.clone()
            logits[tuple(torch.tensor(early, device=logits.device).T)] = -torch.inf
        seeds, streams = [plan.seed for plan in plans], [row.stream + VOICE for row in rows]
        keys = _keys(np.array([seeds, streams, [len(row.guide.tokens) for row in rows]]), logits.device)
        out = steer_sample(logits, _row_params(plans), keys, backend=self._backend)
        ids: list[int] = out.token.tolist()
        return ids


class _Batch:
    """The constant part of a decode batch."""

    def __init__(
        self,
        rows: list[Sequence],
        guides: Mapping[str, Guide],
        device: torch.device,
        backend: Backend,
        *,
        searched: bool = False,
    ) -> None:
        plans = [row.plan for row in rows]
        self._searched = searched  # a program weighs the tokens: steering is done
        wanted = [plan.sampling for plan in plans]
        self.rows = rows.copy()
        self.params = _row_params(plans)
        self.reporting = [i for i, sampling in enumerate(wanted) if sampling.logprobs is not None]
        self._top = max((wanted[i].logprobs or 0 for i in self.reporting), default=0)
        self._origin = [[plan.seed for plan in plans], [row.stream for row in rows]]
        self._device, self._backend = device, backend
        self.steering: Steering | None = None
        shaped = [row.shaped for row in rows]
        if not searched and any(shaped):
            self.steering = Steering(rows, guides, device)
        self._shaped = searched or self.steering is not None
        self._tallied = [i for i, plan in enumerate(plans) if searched or shaped[i] or plan.measured]
        self._traced = [i for i in self._tallied if self._shaped and plans[i].trace]
        needed = {*self._tallied, *(self.reporting if self._shaped else ())}
        self._measured = torch.tensor([i in needed for i in range(len(rows))], device=device) if needed else None
        self.limits = Limits(self.rows, device)

    def sample(self, logits: Tensor, **given: Unpack[Given]) -> SteerOut:
        """One draw per row, keyed by its seed, its stream and its length; the arguments are those of `steer_sample`."""
        logprobs = bool(self.reporting) and not self._shaped
        return steer_sample(
            logits,
            self.params,
            self._keys(),
            logprobs=logprobs,
            measured=self._measured,
            backend=self._backend,
            **given,
        )

    def finish(self, listed: Shortlist, reference: Tensor) -> SteerOut:
        """One draw per row among its candidates alone."""
        base = base_at(reference, listed.ids, backend=self._backend)
        out = finish_candidates(
            listed.scores + listed.gain,
            base.logprobs,
            listed.valid,
            listed.ids,
            self.params,
            self._keys(),
            base_best=base.best,
            backend=self._backend,
        )
        return SteerOut(**out._asdict(), base_entropy=base.entropy.cpu(), base_top1=base.top1.cpu())

    def drawn(
        self,
        out: SteerOut,
        reference: Tensor,
        limits: StepLimits,
        scores: Scores | None = None,
        guilty: Callable[[int], GuideError | None] = lambda row: None,
    ) -> list[Drawn]:
        """What was drawn, with what the requests want to know; `guilty` tells who left a row without a number."""
        ids: list[int] = out.token.tolist()
        measures: dict[int, Measure] = {}
        if self._measured is not None:
            columns = (out.logprob, out.base_logprob, out.kl, out.changed, out.base_entropy, out.entropy)
            told = list(zip(*(column.tolist() for column in columns), strict=True))
            for row in self._tallied:
                _, base_logprob, _, _, entropy, _ = told[row]
                unsteered = Measure(base_logprob, base_logprob, 0.0, False, entropy, entropy)
                measures[row] = Measure(*told[row]) if self._shaped else unsteered
        reports: dict[int, TokenLogprob] = {}
        if self.reporting:
            reports = self.reports(ids, out.base_logprob.tolist(), reference)
        errors: dict[int, TrimtabError] = {**({} if scores is None else scores.failed), **limits.failed}
        if self._shaped:
            broken: list[bool] = out.nan.tolist()
            for row in (row for row, token in enumerate(ids) if token < 0 or broken[row]):
                whose = guilty(row)
                if whose is not None:
                    errors.setdefault(row, whose)
        traces = {} if scores is None else self._traces(ids, out, scores, measures)
        return [
            Drawn(token, reports.get(i), measures.get(i), traces.get(i), errors.get(i)) for i, token in enumerate(ids)
        ]

    def reports(self, ids: list[int], base_logprobs: list[float], reference: Tensor) -> dict[int, TokenLogprob]:
        """Log-probabilities under the base, for the rows whose request wants them."""
        if not self._top:
            return {row: TokenLogprob(ids[row], base_logprobs[row]) for row in self.reporting}
        values, best = top_logprobs(reference[self.reporting], self._top)
        reports = {}
        for row, top, top_ids in zip(self.reporting, values.tolist(), best.tolist(), strict=True):
            wanted = self.rows[row].plan.sampling.logprobs
            alternatives = tuple(zip(top_ids[:wanted], top[:wanted], strict=True))
            reports[row] = TokenLogprob(ids[row], base_logprobs[row], alternatives)
        return reports

    def _keys(self) -> Keys:
        return _keys(np.array([*self._origin, [len(row.tokens) for row in self.rows]]), self._device)

    def _traces(
        self, ids: list[int], out: SteerOut, scores: Scores, measures: Mapping[int, Measure]
    ) -> dict[int, TokenTrace]:
        """What is told of the traced rows, with the most likely tokens before and after steering."""
        if not self._traced:
            return {}
        tops: list[list[Top]] = []
        for logits in (scores.reference, scores.steered):
            values, best = top_logprobs(logits[self._traced], min(TRACE_TOP, logits.shape[1]))
            tops.append(
                [tuple(zip(row, top, strict=True)) for row, top in zip(best.tolist(), values.tolist(), strict=True)]
            )
        traces: dict[int, TokenTrace] = {}
        for row, before, after in zip(self._traced, *tops, strict=True):
            seen, plan = measures[row], self.rows[row].plan
            given = tuple((name, known.get(ids[row])) for name, known in scores.values.get(row, {}).items())
            source: Source = "steered" if self._searched or (plan.steered and plan.gate is None) else "base"
            traces[row] = TokenTrace(
                ids[row],
                source,
                seen.base_logprob,
                seen.logprob,
                seen.entropy,
                seen.base_entropy,
                seen.kl,
                given,
                before,
                after,
            )
        return traces


def _is_settled(weighed: Weighed) -> bool:
    """Whether the program leaves one token to draw."""
    return len(weighed.scores) == 1 and all(map(math.isfinite, weighed.scores.values()))


def _best(ids: list[int], scores: list[float], fine: list[bool], count: int, limit: int) -> dict[int, float]:
    """The first tokens that are fine, at most `count` and, where there is one, `limit`."""
    known = {token: score for token, score, ok in zip(ids, scores, fine, strict=True) if ok}
    return dict(list(known.items())[: min(count, limit or count)])


def _keys(columns: IntArray, device: torch.device) -> Keys:
    """Seeds, streams and positions (3, B) int64 as the keys of a batch."""
    return Keys(*place([columns], device)[0])


def _row_params(plans: list[SteerPlan]) -> RowParams:
    """The sampling parameters of rows; a plan's own limit is a top-k of the steered distribution."""
    wanted = [plan.sampling for plan in plans]
    limits = [min(filter(None, (plan.limit, plan.sampling.top_k)), default=0) for plan in plans]
    return RowParams(
        temperature=torch.tensor([sampling.temperature for sampling in wanted]),
        top_k=torch.tensor(limits),
        top_p=torch.tensor([sampling.top_p for sampling in wanted]),
        min_p=torch.tensor([sampling.min_p for sampling in wanted]),
    )
