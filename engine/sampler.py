"""From the sequences of a decode step to one batched draw: marshals rows into tensors, then calls the kernels."""

import math
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from trimtab.engine.errors import GuideError
from trimtab.engine.guides.base import Guide
from trimtab.engine.job import Weighed
from trimtab.engine.measure import Measure
from trimtab.engine.outputs import Outputs
from trimtab.engine.plan import SteerPlan
from trimtab.engine.results import Source, TokenLogprob, TokenTrace
from trimtab.engine.scores import Scores
from trimtab.engine.sequence import Sequence
from trimtab.engine.steering import Steering
from trimtab.engine.values import Scorer
from trimtab.kernels.candidates import best_candidates
from trimtab.kernels.edits import Edits, apply_edits, history_edits
from trimtab.kernels.philox import uniforms
from trimtab.kernels.statistics import base_statistics, steer_statistics
from trimtab.kernels.steer_sample import steer_sample, top_logprobs
from trimtab.kernels.survivors import RowParams
from trimtab.kernels.tiles import allowed

TRACE_TOP = 5
VOICE = 1 << 32  # random streams of a second voice lie behind those of the forks

Top = tuple[tuple[int, float], ...]


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


class Sampler:
    """Draws one token per row. What depends only on who is in the batch is kept until the batch changes."""

    def __init__(self, guides: Mapping[str, Guide]) -> None:
        self._guides = guides
        self._batches: dict[object, _Batch] = {}

    def draw(
        self, rows: list[Sequence], logits: Tensor, outputs: Outputs, score: Scorer, *, group: object = None
    ) -> list[Drawn]:
        """Draw from the `logits` (B, V) of the speakers of `rows`, as their plans steer them.

        `group` names the batch among those of one tick: those of other models come from draws of their own.
        """
        batch = self._batches.get(group)
        if batch is None or batch.rows != rows:
            batch = self._batches[group] = _Batch(rows, self._guides, logits.device)
        noise, edits = batch.noise(), batch.edits(logits.shape[1])
        if batch.steering is not None:
            scores = batch.steering.apply(logits, edits, outputs, score)
            return batch.steered(scores, noise, partial(batch.steering.guilty, outputs=outputs))
        out = steer_sample(logits, batch.params, noise, edits=edits, logprobs=bool(batch.reporting))
        ids = out.token.tolist()
        measures = batch.unsteered_measures(logits, out.token) if batch.measuring else {}
        reports: dict[int, TokenLogprob] = {}
        if batch.reporting:
            assert out.base_logprob is not None
            reports = batch.reports(ids, out.base_logprob.tolist(), logits)
        return [Drawn(token, reports.get(i), measures.get(i)) for i, token in enumerate(ids)]

    def propose(
        self, rows: list[Sequence], counts: list[int], logits: Tensor, outputs: Outputs, score: Scorer
    ) -> list[Proposed]:
        """The best tokens of each row, as many as its count, as `draw` would see them; nothing is drawn."""
        batch = _Batch(rows, self._guides, logits.device)
        edits, errors = batch.edits(logits.shape[1]), dict[int, GuideError]()
        if batch.steering is not None:
            scores = batch.steering.apply(logits, edits, outputs, score)
            errors.update(scores.failed)
        else:
            scores = Scores(logits.to(torch.float32, copy=True), logits)
            if edits is not None:
                apply_edits(scores.steered, edits)
        given = allowed(scores.steered)
        if batch.steering is not None and given.nan is not None:
            for row in given.nan.nonzero()[:, 0].tolist():
                guilty = batch.steering.guilty(row, outputs)
                if guilty is not None:
                    errors.setdefault(row, guilty)
        ids, valid = best_candidates(given.z, max(counts))  # (B, k)
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
        batch = _Batch(rows, self._guides, device, searched=True)
        scores = Scores(z, reference, {i: each.values for i, each in enumerate(weighed)})
        return batch.steered(scores, batch.noise(), lambda row: None)

    def _settled(self, rows: list[Sequence], ids: list[int], reference: Tensor) -> list[Drawn]:
        """Tokens that the programs have chosen themselves: certain, whatever the base thinks of them."""
        token = torch.tensor(ids, device=reference.device)
        logprobs = base_statistics(reference, token)[0].tolist()
        changed = (reference.argmax(dim=1) != token).tolist()
        batch = _Batch(rows, self._guides, reference.device, searched=True)
        reports = batch.reports(ids, logprobs, reference) if batch.reporting else {}
        return [
            Drawn(each, reports.get(i), Measure(0.0, logprob, -logprob, changed[i]))
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
        streams = np.array([row.stream for row in rows]) + VOICE
        positions = np.array([len(row.guide.tokens) for row in rows])
        noise = torch.from_numpy(uniforms(np.array([plan.seed for plan in plans]), streams, positions))
        params = _row_params(plans, logits.device)
        ids: list[int] = steer_sample(logits, params, noise.to(logits.device)).token.tolist()
        return ids


class _Batch:
    """The constant part of a decode batch."""

    def __init__(
        self, rows: list[Sequence], guides: Mapping[str, Guide], device: torch.device, *, searched: bool = False
    ) -> None:
        plans = [row.plan for row in rows]
        self._searched = searched  # a program weighs the tokens: steering is done
        wanted = [plan.sampling for plan in plans]
        self.rows = rows.copy()
        self.seeds = np.array([plan.seed for plan in plans], dtype=np.int64)
        self.streams = np.array([row.stream for row in rows], dtype=np.int64)
        self.params = _row_params(plans, device)
        self.reporting = [i for i, sampling in enumerate(wanted) if sampling.logprobs is not None]
        self.measuring = [i for i, plan in enumerate(plans) if plan.measured]
        self.top = max((wanted[i].logprobs or 0 for i in self.reporting), default=0)
        self._device = device
        self.steering: Steering | None = None
        if not searched and any(plan.shaped for plan in plans):
            self.steering = Steering(rows, guides, device)
        if searched or self.steering is not None:
            self._tallied = {i for i, plan in enumerate(plans) if searched or plan.shaped or plan.measured}
            self._measured = sorted({*self._tallied, *self.reporting})
            self._measured_params = _row_params([plans[i] for i in self._measured], device)
            self._traced = [i for i in self._measured if plans[i].trace]
        self._editing = any(plan.edits_logits for plan in plans)
        if self._editing:
            self._repetition, self._presence, self._frequency = (
                torch.tensor([getattr(sampling, name) for sampling in wanted], dtype=torch.float32, device=device)
                for name in ("repetition_penalty", "presence_penalty", "frequency_penalty")
            )
            biases = [
                [*plan.sampling.logit_bias.items(), *((token, -np.inf) for token in plan.banned_early)]
                for plan in plans
            ]
            width = max(map(len, biases))
            self._bias_ids = torch.full((len(rows), width), -1)
            self._bias = torch.zeros(len(rows), width)
            for i, entries in enumerate(biases):
                for j, (token, bias) in enumerate(entries):
                    self._bias_ids[i, j], self._bias[i, j] = token, bias
            self._ban = torch.isinf(self._bias)
            self._min_tokens = torch.tensor([sampling.min_tokens for sampling in wanted])

    def noise(self) -> Tensor:
        """One uniform number per row, that of its seed, its stream and its length, (B,) float64."""
        lengths = np.array([len(row.tokens) for row in self.rows])
        return torch.from_numpy(uniforms(self.seeds, self.streams, lengths)).to(self._device)

    def steered(self, scores: Scores, noise: Tensor, guilty: Callable[[int], GuideError | None]) -> list[Drawn]:
        """Draw where some row is steered, traced or weighed; `guilty` tells who left a row without a number."""
        out = steer_sample(scores.steered, self.params, noise)
        ids = out.token.tolist()
        errors = dict(scores.failed)
        broken = [] if out.nan is None else out.nan.nonzero()[:, 0].tolist()
        for row in {*broken, *(i for i, token in enumerate(ids) if token < 0)}:
            whose = guilty(row)
            if whose is not None:
                errors.setdefault(row, whose)
        index = torch.tensor(self._measured, dtype=torch.long, device=self._device)
        reference = scores.reference[index]
        found = steer_statistics(scores.steered[index], reference, out.token[index], self._measured_params)
        columns = (found.logprob, found.base_logprob, found.kl, found.entropy, found.base_entropy)
        numbers = dict(zip(self._measured, torch.stack(columns, dim=1).tolist(), strict=True))
        changed = dict(zip(self._measured, found.top1_changed.tolist(), strict=True))
        measures = {row: Measure(each[0], each[1], each[2], changed[row], each[4]) for row, each in numbers.items()}
        base_logprobs = [measures[i].base_logprob if i in measures else 0.0 for i in range(len(ids))]
        reports = self.reports(ids, base_logprobs, scores.reference) if self.reporting else {}
        traces = {}
        for row, (before, after) in self._tops(scores).items():
            logprob, base, kl, entropy, base_entropy = numbers[row]
            values = tuple((name, known.get(ids[row])) for name, known in scores.values.get(row, {}).items())
            plan = self.rows[row].plan
            source: Source = "steered" if self._searched or (plan.steered and plan.gate is None) else "base"
            traces[row] = TokenTrace(ids[row], source, base, logprob, entropy, base_entropy, kl, values, before, after)
        kept = {row: measure for row, measure in measures.items() if row in self._tallied}
        return [Drawn(token, reports.get(i), kept.get(i), traces.get(i), errors.get(i)) for i, token in enumerate(ids)]

    def unsteered_measures(self, logits: Tensor, token: Tensor) -> dict[int, Measure]:
        """Measures of the rows whose program asks for them, where all tokens come from the base's own distribution."""
        index = torch.tensor(self.measuring, device=self._device)
        logprobs, entropies = (each.tolist() for each in base_statistics(logits[index], token[index]))
        pairs = zip(logprobs, entropies, strict=True)
        found = [Measure(logprob, logprob, 0.0, False, entropy) for logprob, entropy in pairs]
        return dict(zip(self.measuring, found, strict=True))

    def reports(self, ids: list[int], base_logprobs: list[float], reference: Tensor) -> dict[int, TokenLogprob]:
        """Log-probabilities under the base, for the rows whose request wants them."""
        values, best = top_logprobs(reference[self.reporting], self.top)
        reports = {}
        for row, top, top_ids in zip(self.reporting, values.tolist(), best.tolist(), strict=True):
            wanted = self.rows[row].plan.sampling.logprobs
            alternatives = tuple(zip(top_ids[:wanted], top[:wanted], strict=True))
            reports[row] = TokenLogprob(ids[row], base_logprobs[row], alternatives)
        return reports

    def _tops(self, scores: Scores) -> dict[int, tuple[Top, Top]]:
        """Most likely tokens before and after steering, for the traced rows."""
        if not self._traced:
            return {}
        both: list[list[Top]] = []
        for logits in (scores.reference, scores.steered):
            values, best = top_logprobs(logits[self._traced], min(TRACE_TOP, logits.shape[1]))
            both.append(
                [tuple(zip(ids, top, strict=True)) for ids, top in zip(best.tolist(), values.tolist(), strict=True)]
            )
        return {row: (before, after) for row, before, after in zip(self._traced, *both, strict=True)}

    def edits(self, vocab_size: int) -> Edits | None:
        """Edits of this step: penalties over each row's tokens so far, biases, and bans on an early end."""
        if not self._editing:
            return None
        histories = [row.tokens if row.plan.edits_logits else _NOTHING for row in self.rows]
        tokens = np.full((len(self.rows), max(map(len, histories))), -1)
        for i, history in enumerate(histories):
            tokens[i, : len(history)] = history
        prompts = torch.tensor([row.prompt_length for row in self.rows])
        generated = torch.arange(tokens.shape[1]) >= prompts[:, None]  # (B, L)
        over = torch.tensor([row.generated for row in self.rows]) >= self._min_tokens
        bias_ids = self._bias_ids.masked_fill(self._ban & over[:, None], -1)
        device = self._device
        return history_edits(
            torch.from_numpy(tokens).to(device),
            generated.to(device),
            self._repetition,
            self._presence,
            self._frequency,
            bias_ids.to(device),
            self._bias.to(device),
            vocab_size,
        )


_NOTHING: "array[int]" = array("q")


def _is_settled(weighed: Weighed) -> bool:
    """Whether the program leaves one token to draw."""
    return len(weighed.scores) == 1 and all(map(math.isfinite, weighed.scores.values()))


def _best(ids: list[int], scores: list[float], fine: list[bool], count: int, limit: int) -> dict[int, float]:
    """The first tokens that are fine, at most `count` and, where there is one, `limit`."""
    known = {token: score for token, score, ok in zip(ids, scores, fine, strict=True) if ok}
    return dict(list(known.items())[: min(count, limit or count)])


def _row_params(plans: list[SteerPlan], device: torch.device) -> RowParams:
    """The sampling parameters of rows; a plan's own limit is a top-k of the steered distribution."""
    wanted = [plan.sampling for plan in plans]
    limits = [min(filter(None, (plan.limit, plan.sampling.top_k)), default=0) for plan in plans]
    return RowParams(
        temperature=torch.tensor([sampling.temperature for sampling in wanted], device=device),
        top_k=torch.tensor(limits, device=device),
        top_p=torch.tensor([sampling.top_p for sampling in wanted], device=device),
        min_p=torch.tensor([sampling.min_p for sampling in wanted], device=device),
    )
