"""`trimtab-ray`: the application on this machine, by one command."""

import logging
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from trimtab.engine.errors import TrimtabError

NAME = "trimtab"
"""of the application"""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def up(
    config: Annotated[Path | None, typer.Option(help="settings of the server, as for trimtab serve")] = None,
    replicas: Annotated[int, typer.Option(min=1, help="engines side by side")] = 2,
    most: Annotated[int | None, typer.Option(min=1, help="engines under load", show_default="replicas")] = None,
    guide: Annotated[list[str] | None, typer.Option(help="reward to run as its own deployment; may repeat")] = None,
    gpus: Annotated[float, typer.Option(min=0.0, help="of each engine; 0.5 lets two share one")] = 0.0,
    host: Annotated[str, typer.Option(help="address to listen on; a Serve that runs keeps its own")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on; the same")] = 8000,
    address: Annotated[str | None, typer.Option(help="a running cluster", show_default="start one here")] = None,
) -> None:
    """Serve with several replicas on Ray until Ctrl-C."""
    import ray
    from ray import serve
    from trimtab.cluster.app import build
    from trimtab.cluster.settings import ClusterSettings, GuideScale, Scale
    from trimtab.server.settings import load_settings

    cores = os.cpu_count() or 1
    count = max(replicas, most or 0)
    try:
        ours = not gpus and address is None and load_settings(config).engine.threads is None
        given = ClusterSettings(
            config=config,
            settings={"engine": {"threads": max(1, cores // count)}} if ours else {},
            engine=Scale(replicas=replicas, most=most, gpus=gpus),
            guides={name: GuideScale() for name in guide or ()},
        )
        application = build(given)
    except (TrimtabError, ValidationError) as error:
        told = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        typer.echo(f"trimtab-ray: {told}", err=True)
        raise typer.Exit(1) from None
    if address is None:
        cpus = max(cores, count + len(given.guides))
        ray.init("local", num_cpus=cpus, include_dashboard=False, logging_level=logging.WARNING)
    else:
        ray.init(address, logging_level=logging.WARNING)
    for each in (signal.SIGINT, signal.SIGTERM):  # after Ray, which sets a handler of its own
        signal.signal(each, signal.default_int_handler)
    place = f"http://{host}:{port}" if address is None else f"the address of Serve on the cluster {address}"
    asked = False
    try:
        serve.start(http_options={"host": host, "port": port})
        asked = True
        serve.run(application, name=NAME, route_prefix="/")
        typer.echo(f"trimtab serves with {replicas} replicas at {place}")
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        pass
    finally:
        if address is None:
            serve.shutdown()  # type: ignore[no-untyped-call]
        elif asked:  # what else the cluster serves is not ours to end
            with suppress(TimeoutError):  # the cluster goes on with it
                serve.delete(NAME)
        ray.shutdown()
