"""`trimtab train KIND`: one command for each kind of guide, its options generated from training/options.py."""

import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, cast

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from trimtab.engine.errors import TrimtabError
from trimtab.engine.guides.card import Kind
from trimtab.engine.guides.folders import role_of
from trimtab.training.errors import TrainingError
from trimtab.training.options import (
    ArmOptions,
    ExpertOptions,
    PanaceaOptions,
    PreferenceOptions,
    RewardOptions,
    Source,
    ValueOptions,
    VectorOptions,
)

KINDS: Final[tuple[type[Source], ...]] = (
    RewardOptions,
    ValueOptions,
    ArmOptions,
    ExpertOptions,
    VectorOptions,
    PreferenceOptions,
    PanaceaOptions,
)

app = typer.Typer(
    name="train",
    help="Fit a guide for a base model; the folder it writes is what the setting engine.guides loads.",
    no_args_is_help=True,
)


class _Flag(NamedTuple):
    """One option of the command line, and where its value goes."""

    path: tuple[str, ...]
    parameter: inspect.Parameter


def train(options: Source) -> None:
    """Train the guide that `options` describe: `train_KIND` of training/KIND.py. Raises TrimtabError."""
    kind = kind_of(type(options))
    try:
        module = import_module(f"trimtab.training.{kind}")  # only now: these import torch
    except ModuleNotFoundError as missing:
        if missing.name != "peft":
            raise
        raise TrainingError("training adapters needs the package peft: pip install 'trimtab[train]'") from None
    getattr(module, f"train_{kind}")(options)


def kind_of(options: type[Source]) -> Kind:
    """The name of the command, and the `kind` of the card."""
    return cast(Kind, options.model_fields["kind"].default)


def _command(options: type[Source]) -> None:
    """Add the command of one kind of guide."""
    flags = _flags(options)

    def command(**given: Any) -> None:
        told: dict[str, Any] = {}
        for name, value in given.items():
            if value is not None:
                *parents, last = flags[name].path
                place = told
                for parent in parents:
                    place = place.setdefault(parent, options.model_fields[parent].default.model_dump())
                place[last] = value
        try:
            chosen = options.model_validate(told)
            train(chosen)
        except ValidationError as error:
            _fail(_reason(error), code=2)
        except TrimtabError as error:
            _fail(str(error), code=1)
        typer.echo(_loads(kind_of(options), chosen.out))

    command.__doc__ = options.__doc__
    # Required options first, as Python wants them.
    parameters = sorted((flag.parameter for flag in flags.values()), key=lambda each: each.default is None)
    setattr(command, "__signature__", inspect.Signature(parameters))  # noqa: B010 - typer reads it
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    app.command(kind_of(options))(command)


def _flags(options: type[BaseModel]) -> dict[str, _Flag]:
    """The command-line options of a model by parameter name; those of nested models are flat."""
    found: dict[str, _Flag] = {}
    for path, field, default in _leaves(options, None, ()):
        name = path[-1]
        assert name not in found, f"two options are called {name}"
        needed = default is PydanticUndefined
        shown = str(default) if not needed and default is not None else False
        option = typer.Option(help=field.description, show_default=shown)
        kind: Any = field.annotation
        found[name] = _Flag(
            path,
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if needed else None,  # None: not given; defaults are written once
                annotation=Annotated[kind if needed else kind | None, option],
            ),
        )
    return found


def _leaves(
    model: type[BaseModel], given: BaseModel | None, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], FieldInfo, Any]]:
    """Path, field and default of every option; `given` holds the defaults of a nested model."""
    for name, field in model.model_fields.items():
        default = field.default if given is None else getattr(given, name)
        if isinstance(default, BaseModel):
            yield from _leaves(type(default), default, (*path, name))
        elif name != "kind":
            yield (*path, name), field, default


def _loads(kind: Kind, folder: Path) -> str:
    """What to write into the configuration."""
    return (
        f"wrote {folder}; to use it:\nengine:\n  guides:\n    {folder.name}: {{role: {role_of(kind)}, model: {folder}}}"
    )


def _reason(error: ValidationError) -> str:
    first = error.errors()[0]
    where = f"--{first['loc'][-1]}: ".replace("_", "-") if first["loc"] else ""
    return where + first["msg"].removeprefix("Value error, ")


def _fail(message: str, *, code: int) -> None:
    typer.echo(f"trimtab: {message}", err=True)
    raise typer.Exit(code) from None


for _options in KINDS:
    _command(_options)
