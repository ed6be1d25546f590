"""`trimtab plan`: the options. Heavy imports wait until it runs."""

from pathlib import Path
from typing import Annotated

import typer

from trimtab.bench.errors import BenchError


def plan(
    mix: Annotated[Path, typer.Option(help="YAML file of what requests come: docs/scaling.md")],
    rps: Annotated[float, typer.Option(help="requests per second", min=1e-6)],
    gpu: Annotated[str, typer.Option(help="h200, h100, a100, l40s, l4, cpu, or a file that was calibrated")],
    slo: Annotated[list[str] | None, typer.Option(help="latency asked for, as p95=5s; may be repeated")] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            help="GPUs of the base that are there: told is what they keep to", min=1, show_default="as needed"
        ),
    ] = None,
    costs: Annotated[
        Path | None,
        typer.Option(help="costs of strategies that were measured: docs/scaling.md", show_default="those of the demo"),
    ] = None,
    headroom: Annotated[float, typer.Option(help="share of each station kept free", min=0.0, max=0.95)] = 0.3,
    simulate: Annotated[bool, typer.Option("--simulate", help="run the fleet event by event, too")] = False,
    seed: Annotated[int, typer.Option(help="of the simulation", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Say how many GPUs a load needs, and where its bottleneck is."""
    from trimtab.bench.capacity.report import as_json_text, as_text, planned

    try:
        made = planned(
            mix,
            rps=rps,
            gpu=gpu,
            slo=slo or (),
            gpus=gpus,
            headroom=headroom,
            seed=seed if simulate else None,
            costs=costs,
        )
    except BenchError as error:
        typer.echo(f"trimtab: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(as_json_text(made) if as_json else as_text(made), nl=False)
