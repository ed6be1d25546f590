"""The run: cell after cell, a setting at a concurrency, until every answer and its scores are in the folder."""

import secrets
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from trimtab.bench.errors import ServerGone
from trimtab.bench.estimates import curve_settings
from trimtab.bench.folder import Folder, Scores, key_of
from trimtab.bench.gold import AT_ONCE, Gold
from trimtab.bench.link import TRIES, Link
from trimtab.bench.load import Asking, Job, Load, ServerLost, failure
from trimtab.bench.plan import Plan
from trimtab.bench.progress import Progress
from trimtab.bench.prompts import Prompt, evenly
from trimtab.bench.records import BASE, Answer, Considered, Setting
from trimtab.clients.calls import Asked
from trimtab.clients.client import ClientError

WARM_UPS = 2
"""requests before a cell that are not measured"""
WARM_TOKENS = 8
MORE_SEEDS = 3
"""of plain sampling, beside those that every setting has"""
WAVES = 2
"""times that every worker asks at least, so that not all requests begin and end together"""
WARM_PROMPT = Prompt(id="warm-up", category="warm-up", prompt="What is the weather like where you are?")


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting at one concurrency."""

    setting: Setting
    concurrency: int
    jobs: tuple[Job, ...]

    def __str__(self) -> str:
        return f"{self.setting.name} at {self.concurrency}"

    def missing(self, folder: Folder) -> list[Job]:
        """What is left to ask: nothing of a cell with an answer that failed."""
        there = [folder.answers.get(job.key) for job in self.jobs]
        if any(answer is not None and answer.error is not None for answer in there):
            return []
        return [job for job, answer in zip(self.jobs, there, strict=True) if answer is None]


def cells(plan: Plan, prompts: Sequence[Prompt]) -> list[Cell]:
    """All cells in the order in which they are measured.

    The first concurrency asks every prompt; the others, and the smaller numbers of a curve, a few of all categories.
    Plain sampling answers under more seeds there, last of all: what gains and wins are over is then known better, and
    its times are not those of the beginning alone.
    """
    found = []
    for number, concurrency in enumerate(plan.options.concurrency):
        few = evenly(prompts, max(plan.options.timed, WAVES * concurrency))
        for setting in plan.settings:
            parts = [(setting, few if number else prompts), *((each, few) for each in curve_settings(setting))]
            for each, asked in parts:
                found.append(Cell(each, concurrency, _jobs(each, concurrency, asked, range(plan.options.repeats))))
        if not number:
            more = range(plan.options.repeats, plan.options.repeats + MORE_SEEDS)
            plain = next(each for each in plan.settings if each.name == BASE)
            found.append(Cell(plain, concurrency, _jobs(plain, concurrency, prompts, more)))
    return found


def _jobs(setting: Setting, concurrency: int, prompts: Sequence[Prompt], seeds: Iterable[int]) -> tuple[Job, ...]:
    return tuple(Job(setting, concurrency, prompt, seed) for seed in seeds for prompt in prompts)


class Run:
    """One start of a run."""

    def __init__(self, plan: Plan, prompts: Sequence[Prompt], folder: Folder, link: Link, gold: Gold | None) -> None:
        self._plan = plan
        self._prompts = {prompt.id: prompt for prompt in prompts}
        self._cells = [cell for cell in cells(plan, prompts) if cell.missing(folder)]
        self._folder = folder
        self._link = link
        self._gold = gold
        self._part = folder.part
        self._losses: Counter[str] = Counter()

    @property
    def settings(self) -> list[Setting]:
        """Those of which something is missing."""
        return list({cell.setting.name: cell.setting for cell in self._cells}.values())

    def measure(self) -> None:
        """Ask and score what is missing. Whatever is raised, what came before is kept.

        Raises ServerGone, and BenchError for what cannot be scored.
        """
        self._score()
        with Progress(sum(len(cell.missing(self._folder)) for cell in self._cells)) as progress:
            for cell in self._cells:
                progress.begins(str(cell))
                began = time.monotonic()
                while (jobs := cell.missing(self._folder)) and not self._attempt(cell, jobs, progress):
                    try:
                        self._link.wait(self._plan.conditions)
                    except ServerGone as error:
                        raise ServerGone(f"{error}\nIt went away while {cell} was asked.") from None
                    self._part += 1
                progress.ends(f"{cell}: {len(cell.jobs)} requests, {time.monotonic() - began:.1f} s")
                self._score()

    def _attempt(self, cell: Cell, jobs: Sequence[Job], progress: Progress) -> bool:
        """Warm up and ask; whether the cell is done with, be it by an error. It is not if the server was lost."""
        conditions = self._plan.conditions
        asking = Asking(
            client=self._link.load,
            model=conditions.model,
            seed=conditions.seed,
            max_tokens=conditions.max_tokens,
            temperature=conditions.temperature,
            part=self._part,
            salt=secrets.token_hex(4),
        )
        warming = replace(asking, max_tokens=min(WARM_TOKENS, asking.max_tokens))
        trials = [replace(job, prompt=WARM_PROMPT) for job in jobs[:WARM_UPS]]
        failed: tuple[Job, Exception] | None = None
        for _, came in Load(warming, trials, cell.concurrency).events():
            if isinstance(came, Exception):
                failed = failed or (jobs[0], came)
        if failed is None:
            failed = self._ask(cell, Load(asking, jobs, cell.concurrency), progress)
        if failed is None:
            return True
        job, error = failed
        if isinstance(error, ServerLost):
            self._losses[str(cell)] += 1
            if self._losses[str(cell)] < TRIES:
                return False
            error = ServerLost(f"the server went away {TRIES} times while this was asked")
        elif not isinstance(error, ClientError):
            raise error
        progress.done(len(cell.missing(self._folder)))
        self._folder.add(failure(job, error, part=self._part), ())
        return True

    def _ask(self, cell: Cell, load: Load, progress: Progress) -> tuple[Job, Exception] | None:
        """Keep the answers as they come, and the server's largest memory; return the first failure."""
        pools = bool(cell.setting.curve) and cell.concurrency == self._plan.options.concurrency[0]
        failed: tuple[Job, Exception] | None = None
        peak = 0.0

        def look() -> None:
            nonlocal peak
            peak = max(peak, self._link.memory())

        for job, came in load.events(look):
            if isinstance(came, Exception):
                failed = failed or (job, came)
            else:
                answer, drawn = came
                self._folder.add(answer, drawn if pools else ())
                self._losses.pop(str(cell), None)
                progress.done()
        look()
        if peak:
            self._folder.remember(cell.setting.name, cell.concurrency, peak)
        return failed

    def _score(self) -> None:
        """Score the answers that have no scores yet, and what they were chosen from."""
        unscored = self._folder.unscored
        for start in range(0, len(unscored), AT_ONCE):
            answers = unscored[start : start + AT_ONCE]
            pairs: list[Asked] = [(self._prompts[each.prompt].conversation, each.text) for each in answers]
            languages = [self._prompts[each.prompt].language for each in answers]
            rewards, golds = self._rewards(pairs), self._golds(pairs, languages)
            for answer, reward, gold in zip(answers, rewards, golds, strict=True):
                considered = self._considered(answer)
                self._folder.score(Scores(key=key_of(answer), reward=reward, gold=gold, considered=considered))

    def _considered(self, answer: Answer) -> tuple[Considered, ...]:
        """What a setting with a curve chose from."""
        drawn = self._folder.drawn.get(key_of(answer), ())
        reward = self._plan.conditions.reward
        prompt = self._prompts[answer.prompt]
        pairs: list[Asked] = [(prompt.conversation, each.text) for each in drawn]
        golds = self._golds(pairs, [prompt.language] * len(pairs))
        return tuple(
            Considered(reward=each.rewards.get(reward), gold=gold, tokens=each.tokens)
            for each, gold in zip(drawn, golds, strict=True)
        )

    def _rewards(self, pairs: Sequence[Asked]) -> list[float]:
        reward = self._plan.conditions.reward
        return self._link.ask(lambda: self._link.client.score(reward, pairs), self._plan.conditions)

    def _golds(self, pairs: Sequence[Asked], languages: Sequence[str]) -> list[float | None]:
        """Gold of answers to prompts in these languages; None of what it cannot read."""
        gold = self._gold
        if gold is None:
            return [None] * len(pairs)
        read = [gold.reads(language) for language in languages]
        judged = [pair for pair, readable in zip(pairs, read, strict=True) if readable]
        scores = iter(self._link.ask(lambda: gold.scores(judged), self._plan.conditions))
        return [next(scores) if readable else None for readable in read]
