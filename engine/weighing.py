"""Next tokens that programs weigh themselves: what could follow, and the draw from scores of their own."""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Many

from trimtab.engine.errors import TrimtabError
from trimtab.engine.job import Job
from trimtab.engine.outputs import Outputs
from trimtab.engine.program import Draw, Propose
from trimtab.engine.sampler import Drawn, Sampler
from trimtab.engine.sequence import Sequence
from trimtab.engine.values import Scorer


class Weighing:
    """Proposals and draws of one tick, those of all requests together.

    `append` adds a token to its sequence, `resume` goes on with a program, `fail` ends a request and `fail_row` one
    whose numbers are not finite.
    """

    def __init__(
        self,
        *,
        alive: Callable[[Job], bool],
        append: Callable[[Job, Sequence, Drawn], None],
        resume: Callable[[Job], None],
        fail: Callable[[Job, Exception], None],
        fail_row: Callable[[Job, Exception | None], None],
    ) -> None:
        self._alive = alive
        self._append = append
        self._resume = resume
        self._fail = fail
        self._fail_row = fail_row

    def propose(
        self,
        rows: list[Sequence],
        jobs: Mapping[Sequence, Job],
        outputs: Outputs,
        sampler: Sampler,
        score: Scorer,
    ) -> None:
        """Note for each sequence which tokens could follow."""
        logits = outputs.logits([row.base for row in rows])
        counts = [op.k for row in rows if isinstance(op := jobs[row].op, Propose)]
        found = sampler.propose(rows, counts, logits, outputs, score)
        for sequence, proposed in zip(rows, found, strict=True):
            job = jobs[sequence]
            if not self._alive(job):  # another of its rows has just failed
                continue
            if proposed.error is not None or not proposed.scores:
                self._fail_row(job, proposed.error)
            else:
                sequence.proposal = proposed.scores, proposed.reference
                del job.targets[sequence]

    def draw(self, running: Many[Job], sampler: Sampler) -> None:
        """Draw the tokens that programs have weighed."""
        jobs = [job for job in running if isinstance(job.op, Draw)]
        rows = [(job, *entry) for job in jobs for entry in job.draws.items()]
        if not rows:
            return
        found = sampler.weigh([sequence for _, sequence, _ in rows], [weighed for *_, weighed in rows])
        for (job, sequence, _), drawn in zip(rows, found, strict=True):
            if drawn.id >= 0 and self._alive(job):
                sequence.weighed = True
                self._append(job, sequence, drawn)
            elif self._alive(job):
                self._fail(job, TrimtabError("the search gave no token a finite score"))
        for job in (job for job in jobs if self._alive(job)):
            self._resume(job)
