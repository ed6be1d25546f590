"""Answers of two voices: the base judges what the guide has drafted, and the two take turns."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.special import entr

from trimtab.engine.duet import Look, Spoken
from trimtab.engine.errors import GuideError
from trimtab.engine.job import Job
from trimtab.engine.measure import Measure
from trimtab.engine.model import Model
from trimtab.engine.outputs import Outputs
from trimtab.engine.results import Delta, TokenLogprob, TokenTrace
from trimtab.engine.sampler import Drawn, Sampler
from trimtab.engine.sequence import Sequence


class Duets:
    """The turns of duets in one decode step.

    `append` adds a token to its sequence, `fail` ends the request of a row.
    """

    def __init__(
        self,
        *,
        alive: Callable[[Job], bool],
        append: Callable[[Job, Sequence, Drawn], None],
        fail: Callable[[Job, Exception | None], None],
    ) -> None:
        self._alive = alive
        self._append = append
        self._fail = fail

    def listen(self, job: Job, sequence: Sequence, outputs: Outputs) -> Measure | None:
        """Let a duet judge what the base has just read.

        The measure of the base's most likely token where it draws one now; None where it does not.
        """
        duet, lane = sequence.duet, sequence.base
        assert duet is not None
        if not self._alive(job):  # another of its rows has just failed
            return None
        draft = list(duet.draft)
        read = outputs.every(lane)
        first = len(read) - len(draft) - 1  # rows before it were judged already
        rows = _looks(read, draft, max(first, 0))
        if not all(math.isfinite(row.top_p) for row in rows):
            self._fail(job, None)
            return None
        verdict = duet.look(rows, sequence.grammar)
        for spoken in verdict.accepted:
            if sequence.finish is None:
                self._append(job, sequence, _taken_over(spoken, sequence))
        lane.table.stored(lane.tokens, len(lane.tokens))
        job.settle(sequence)
        self.settle(job, sequence)
        if verdict.draw is None or sequence not in job.targets:
            return None
        row = max(first, 0) + verdict.draw
        outputs.choose(lane, row)
        entropy = math.nan if outputs.guessed(lane) else entr(read[row].float().softmax(dim=0)).sum().item()
        logprob = math.log(rows[verdict.draw].top_p)
        return Measure(logprob, logprob, kl=0.0, changed=False, base_entropy=entropy, entropy=entropy)

    def draft(self, rows: list[Sequence], jobs: Mapping[Sequence, Job], outputs: Outputs, sampler: Sampler) -> None:
        """Draw the other voice's next token of each sequence."""
        groups: dict[Model, list[Sequence]] = {}
        for row in rows:
            groups.setdefault(row.guide.model, []).append(row)
        for group in groups.values():
            tokens = sampler.speak(group, outputs.logits([row.guide for row in group]))
            for sequence, token in zip(group, tokens, strict=True):
                job, duet = jobs[sequence], sequence.duet
                assert duet is not None
                if not self._alive(job):
                    continue
                sequence.guide.table.stored(sequence.guide.tokens, len(sequence.guide.tokens))
                if token < 0:
                    self._fail(job, GuideError(sequence.guide.name, "gave no finite logit"))
                else:
                    duet.take(token, sequence.grammar)
                    self.settle(job, sequence)

    def settle(self, job: Job, sequence: Sequence) -> None:
        """Bring a sequence in line with its duet: what the guide reads next, and whether the answer is over."""
        duet = sequence.duet
        if duet is None or not self._alive(job):
            return
        if duet.speaker == "guide":
            sequence.guide.replace(duet.guide_tokens)
        elif duet.rereads:
            sequence.base.table.trim(len(sequence.tokens) - 1)
        if duet.finish is not None and sequence.finish is None:
            sequence.finish = duet.finish
            rest = sequence.text.flush()
            if sequence.choice is not None:
                job.events.append(Delta(sequence.choice, rest, (), None))
            job.settle(sequence)


def _looks(read: Tensor, draft: list[int], first: int) -> list[Look]:
    """What the base thinks after each token that it has read, from number `first` on; the last ones are the draft's.

    `read` (q, V) are its logits after each of them.
    """
    z = read[first:].float()  # (r, V)
    mass = z.logsumexp(dim=1)
    top, ids = z.max(dim=1)
    following: list[float | None] = [None] * len(z)
    if draft:
        known = z[-len(draft) - 1 : -1].gather(1, torch.tensor(draft, device=z.device)[:, None])[:, 0]
        following[-len(draft) - 1 : -1] = (known - mass[-len(draft) - 1 : -1]).tolist()
    return [Look(*each) for each in zip(ids.tolist(), (top - mass).exp().tolist(), following, strict=True)]


def _taken_over(spoken: Spoken, sequence: Sequence) -> Drawn:
    """A token that the other voice wrote, as the base sees it: certain, whatever the base thought of it."""
    logprob = 0.0 if spoken.logprob is None else spoken.logprob
    wanted, traced = sequence.plan.sampling.logprobs is not None, sequence.plan.trace
    return Drawn(
        spoken.id,
        TokenLogprob(spoken.id, logprob) if wanted else None,
        Measure(0.0, logprob, -logprob, changed=True),
        TokenTrace(spoken.id, spoken.source, logprob, None, None, None, -logprob) if traced else None,
    )
