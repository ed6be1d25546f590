"""From options to rows: what a folder holds, what is missing, and the server that is asked for it."""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trimtab.bench.checks import check_measures, check_prompts, conditions, examine, levels, try_settings
from trimtab.bench.errors import BenchError
from trimtab.bench.folder import Folder, opened
from trimtab.bench.gold import gold_of
from trimtab.bench.link import Link
from trimtab.bench.plan import Options, Plan, different
from trimtab.bench.progress import say
from trimtab.bench.prompts import read_prompts
from trimtab.bench.records import Row
from trimtab.bench.rows import rows
from trimtab.bench.run import Run, cells
from trimtab.bench.serve import served
from trimtab.bench.settings import read_settings


def start(given: Mapping[str, Any], out: Path, *, patience: float, api_key: str | None) -> list[Row]:
    """Measure what the folder `out` lacks, and return the rows.

    `given` are the options of the command line; the others are those of the run that the folder holds, else the
    defaults. A folder that lacks nothing needs no server. Raises BenchError, and KeyboardInterrupt with nothing lost.
    """
    with opened(out, say) as folder:
        options = _options(given, folder)
        if (done := folder.rows) is not None:
            failed = "; delete its rows.jsonl to ask again what failed" if any(row.error for row in done) else ""
            say(f"{out} holds a complete run and nothing is measured: choose another --out for that{failed}")
            return done
        prompts = read_prompts(options.prompts, options.limit)
        settings = read_settings(options.settings, options.only)
        if (most := max(options.concurrency)) > (count := len(prompts.prompts) * options.repeats):
            raise BenchError(
                f"--concurrency {most}: {count} requests are never so many at a time; give more prompts or --repeats"
            )
        before = folder.plan
        if before is None or folder.unscored or any(cell.missing(folder) for cell in cells(before, prompts.prompts)):
            with _linked(options, api_key, patience) as link:
                server = examine(link.client)
                check_measures(options, settings, server)
                gold = gold_of(options.gold, link.client)
                check_prompts(link.client, prompts.prompts, options, server, gold)
                told = conditions(options, server, prompts)
                plan = Plan(options=options, settings=settings, levels=levels(settings, server), conditions=told)
                folder.check(plan)
                run = Run(plan, prompts.prompts, folder, link, gold)
                try_settings(link.client, run.settings, options, server, say)
                folder.begin(plan)
                run.measure()
        else:
            plan = before
        found = rows(folder.scored(), plan.settings, plan.conditions, plan.levels, folder.peaks)
        folder.finish(found)
        return found


def _options(given: Mapping[str, Any], folder: Folder) -> Options:
    """What is to be measured; raises BenchError where the folder holds a run of something else."""
    if folder.plan is None:
        try:
            return Options.model_validate(dict(given))
        except ValidationError as error:
            raise BenchError("; ".join(each["msg"].removeprefix("Value error, ") for each in error.errors())) from None
    before = folder.plan.options.model_dump()
    if told := list(different({name: before[name] for name in given}, given)):
        raise BenchError(f"{folder.path} holds another run: choose another --out\n" + "\n".join(told))
    return folder.plan.options


@contextmanager
def _linked(options: Options, api_key: str | None, patience: float) -> Iterator[Link]:
    """The server that the options name, or one that is started for the run."""
    if options.url is not None:
        if "@" in options.url:
            raise BenchError("--url holds a password, and would be written down: give --api-key")
        with closing(Link(options.url, api_key, patience, lambda: None)) as link:
            yield link
        return
    say("starting a server with the demo model")
    with served() as child, closing(Link(child.url, api_key, patience, child.ended)) as link:
        yield link
