"""`trimtab bench`: the options. Heavy imports wait until it runs."""

import json
import shlex
import signal
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from trimtab.bench.errors import BenchError, ServerGone
from trimtab.bench.plan import Options

_DEFAULTS = Options()
OUT = Path("bench-run")
PATIENCE = 120.0
GONE = 3
"""exit status where the server stayed away"""
INTERRUPTED = 130


def _option(name: str, told: str, **more: Any) -> Any:
    """An option of what is measured; its default is shown, and used only where no run says otherwise."""
    default = getattr(_DEFAULTS, name)
    if isinstance(default, tuple):
        default = ", ".join(map(str, default))
    return typer.Option(help=told, show_default=str(default) if default not in (None, "") else False, **more)


def bench(
    url: Annotated[str | None, _option("url", "a running server; absent: one with the demo model is started")] = None,
    settings: Annotated[str | None, _option("settings", "demo, or a YAML file of settings")] = None,
    only: Annotated[list[str] | None, _option("only", "measure this setting, beside base; may be repeated")] = None,
    prompts: Annotated[
        str | None, _option("prompts", "trimtab, a .jsonl or .txt file, or package:NAME/FILE; FILE#KEY reads a key")
    ] = None,
    limit: Annotated[int | None, _option("limit", "prompts to take, evenly from all categories", min=1)] = None,
    concurrency: Annotated[
        list[int] | None,
        _option("concurrency", "requests at a time; may be repeated: the first asks all prompts", min=1, max=100),
    ] = None,
    repeats: Annotated[int | None, _option("repeats", "answers to each prompt, with different seeds", min=1)] = None,
    max_tokens: Annotated[int | None, _option("max_tokens", "longest answer", min=1)] = None,
    temperature: Annotated[float | None, _option("temperature", "0 is greedy", min=0.0, max=2.0)] = None,
    reward: Annotated[str | None, _option("reward", "guide that scores every answer")] = None,
    gold: Annotated[str | None, _option("gold", "measure that steering never sees: vader, a guide, or none")] = None,
    seed: Annotated[int | None, _option("seed", "of the run; requests have seeds of their own")] = None,
    timed: Annotated[
        int | None,
        _option("timed", "prompts for further concurrencies and smaller n of a curve, at least", min=1),
    ] = None,
    out: Annotated[Path, typer.Option(help="folder of the run; one that holds a run goes on with it")] = OUT,
    report: Annotated[Path | None, typer.Option(help="folder to write report and plots into")] = None,
    profile: Annotated[Path | None, typer.Option(help="file to write for the strategy auto")] = None,
    patience: Annotated[float, typer.Option(help="seconds to wait for a server that went away", min=0.0)] = PATIENCE,
    api_key: Annotated[str | None, typer.Option(help="key of the server", envvar="TRIMTAB_API_KEY")] = None,
) -> None:
    """Measure strategies against plain sampling: reward, latency and cost, through the HTTP API.

    A run that was interrupted goes on where it stopped: the same command, or --out alone.
    """
    asked = {
        "url": url,
        "settings": settings,
        "only": tuple(only) if only else None,
        "prompts": prompts,
        "limit": limit,
        "concurrency": tuple(concurrency) if concurrency else None,
        "repeats": repeats,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "reward": reward,
        "gold": gold,
        "seed": seed,
        "timed": timed,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)  # as Ctrl-C does: a server of the run's own ends with it
    began = time.monotonic()
    try:
        told = _run(given, out, report, profile, patience, api_key)
    except ServerGone as error:
        _stop(f"{error}\n{_again(out, report, profile)}", GONE)
    except BenchError as error:
        _stop(str(error), 1)
    except KeyboardInterrupt:
        _stop(f"interrupted\n{_again(out, report, profile)}", INTERRUPTED)
    typer.echo(json.dumps({"benchmark": "bench", **told, "seconds": round(time.monotonic() - began, 1)}))


def _run(
    given: dict[str, Any],
    out: Path,
    report: Path | None,
    profile: Path | None,
    patience: float,
    api_key: str | None,
) -> dict[str, Any]:
    """Measure and write; returns what the JSON line tells."""
    # Before the run, so that what is not installed is told before an hour of measuring.
    if report is not None:
        from trimtab.bench.report import write_report
    if profile is not None:
        from trimtab.bench.profile import write_profile
    from trimtab.bench.start import start

    rows = start(given, out, patience=patience, api_key=api_key)
    written = [] if report is None else [str(file) for file in write_report(rows, report)]
    if profile is not None:
        write_profile(rows, profile)
        written.append(str(profile))
    return {
        **rows[0].conditions.model_dump(),
        "rows": len(rows),
        "answers": sum(row.answers for row in rows),
        "failed": sorted({row.setting for row in rows if row.error is not None}),
        "folder": str(out),
        "written": written,
    }


def _again(out: Path, report: Path | None, profile: Path | None) -> str:
    """The command that goes on."""
    command = ["trimtab", "bench", "--out", str(out)]
    for name, path in (("--report", report), ("--profile", profile)):
        command += [] if path is None else [name, str(path)]
    return f"what was measured is kept; to go on: {shlex.join(command)}"


def _stop(told: str, status: int) -> NoReturn:
    typer.echo(f"trimtab: {told}", err=True)
    raise typer.Exit(status) from None
