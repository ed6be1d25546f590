"""Settings of the server: command line over environment over YAML file over defaults."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from trimtab.decoders.attributes import Attribute
from trimtab.engine.errors import TrimtabError
from trimtab.engine.settings import EngineSettings
from trimtab.server.keys import Key
from trimtab.server.nearest import hint
from trimtab.server.policy import Policy
from trimtab.server.presets import Preset

ENV_PREFIX = "TRIMTAB_"


class InvalidSettings(TrimtabError):
    """A setting is unknown, of the wrong type or out of range; the message is one line."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RequestLimits(_Section):
    """What one request may ask for; more is a 400 that names the limit."""

    max_n: int = Field(default=32, ge=1, description="choices of one request, over all its prompts")
    max_tokens: int | None = Field(default=None, ge=1, description="new tokens of one choice; absent: the context")
    max_pairs: int = Field(default=1024, ge=1, description="answers that one request may have scored")


class LogSettings(_Section):
    """What is written to standard error: a line per request, without any text of prompts and answers."""

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"


class ServerSettings(_Section):
    """How the HTTP server listens and what it accepts."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535, description="0 takes any free port")
    shutdown_timeout: float = Field(default=30.0, ge=0.0, description="seconds that running requests get after SIGTERM")
    max_connections: int = Field(default=1024, ge=1, description="requests that are open at the same time")
    max_header_bytes: int = Field(default=64 * 2**10, ge=1024)
    max_body_bytes: int = Field(default=8 * 2**20, ge=1)
    header_timeout: float = Field(default=10.0, gt=0.0, description="seconds for the head of a request to arrive")
    body_timeout: float = Field(default=30.0, gt=0.0, description="seconds for the body of a request to arrive")
    write_timeout: float = Field(default=60.0, gt=0.0, description="seconds that a client may read nothing at all")
    keep_alive: float = Field(default=10.0, gt=0.0, description="seconds of silence before a comment in a stream")
    library: Path | None = Field(
        default=None, description="file of norms and profiles; absent: a temporary one, lost at the end"
    )
    telemetry: bool = Field(default=False, description="OpenTelemetry traces, set up by the OTEL_ variables")
    playground: bool = Field(default=True, description="the page at /, which needs no key; what it asks does")
    log: LogSettings = LogSettings()
    limits: RequestLimits = RequestLimits()


class Settings(BaseSettings):
    """Everything that can be configured; build it with `load_settings` to read a file as well."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix=ENV_PREFIX, env_nested_delimiter="__")

    server: ServerSettings = ServerSettings()
    engine: EngineSettings = Field(default_factory=EngineSettings)
    attributes: dict[str, Attribute] | None = Field(
        None, description="what preferences weigh, by name; absent: those of the model"
    )
    presets: dict[str, Preset] = Field(default_factory=dict, description="decoding by name; model ids MODEL:PRESET")
    policies: dict[str, Policy] = Field(default_factory=dict, description="what requests must keep to, by name")
    default_policy: str | None = Field(None, description="policy of callers whose key names none")
    keys: dict[str, Key] = Field(default_factory=dict, description="by caller; absent: everybody may call")
    auto: Path | None = Field(None, description="profile of a benchmark, by which strategy `auto` chooses")
    admin_key: Key | None = Field(None, description="key of /admin; absent: nobody has it, and /admin answers 401")


RELOADABLE = ("presets", "policies", "default_policy", "keys", "auto", "admin_key")
"""what may change while the server runs"""


@dataclass(frozen=True, slots=True)
class Source:
    """Where settings are read from, so that they can be read again."""

    config: Path | None = None
    overrides: Mapping[str, Any] | None = None

    def load(self) -> Settings:
        """The settings as they are now; raises InvalidSettings."""
        return load_settings(self.config, self.overrides)


def load_settings(config: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings from the command line (`overrides`, nested), the environment, `config` and the defaults.

    Raises InvalidSettings with one line that names the setting and the nearest valid one.
    """
    return _load(config, overrides)[0]


def explained(config: Path | None = None, overrides: Mapping[str, Any] | None = None) -> str:
    """The resolved settings as YAML, each value with where it comes from; raises InvalidSettings."""
    settings, given = _load(config, overrides)

    def origin(path: tuple[str, ...]) -> str:
        return next((f"  # {name}" for name, values in given.items() if _holds(values, path)), "  # default")

    return "\n".join(_lines(settings.model_dump(mode="json"), origin)) + "\n"


def _load(config: Path | None, overrides: Mapping[str, Any] | None) -> tuple[Settings, dict[str, Mapping[str, Any]]]:
    """The settings, and what each source gave, the strongest first."""
    _refuse_unknown_environment()
    values = {} if config is None else _read_yaml(config)
    given: dict[str, Mapping[str, Any]] = {"command line": overrides or {}}

    class WithFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            given["environment"] = env_settings()
            return init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=values)

    try:
        settings = WithFile(**(overrides or {}))
    except ValidationError as error:
        raise InvalidSettings(_one_line(error)) from None
    except SettingsError as error:
        raise InvalidSettings(f"{error}: write nested settings as {ENV_PREFIX}SERVER__PORT=8000") from None
    return settings, given | {str(config): values}


def _lines(values: Mapping[str, Any], origin: Callable[[tuple[str, ...]], str], *path: str) -> Iterator[str]:
    """A mapping as lines of YAML; `origin` is what stands behind a value."""
    for key, value in values.items():
        here, indent = (*path, key), "  " * len(path)
        if isinstance(value, dict) and value:
            yield f"{indent}{_flow(key)}:"
            yield from _lines(value, origin, *here)
        else:
            yield f"{indent}{_flow(key)}: {_flow(value)}{origin(here)}"


def _flow(value: object) -> str:
    """A value on one line of YAML."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=2**31, sort_keys=False)
    return text.strip().removesuffix("...").strip()


def _holds(values: object, path: tuple[str, ...]) -> bool:
    """Whether a source gave the value at `path`, or a whole that it is a part of."""
    for key in path:
        if not isinstance(values, Mapping):
            return True
        if key not in values:
            return False
        values = values[key]
    return True


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"cannot read the configuration {path}: {error}") from None
    except yaml.YAMLError as error:
        raise InvalidSettings(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InvalidSettings(f"{path} must be a mapping with the keys {', '.join(Settings.model_fields)}")
    return values


def _refuse_unknown_environment() -> None:
    """Refuse TRIMTAB_SRVER__PORT; variables without `__` belong to others (Kubernetes sets TRIMTAB_PORT)."""
    for variable in os.environ:
        name = variable.upper()
        section, nested, _ = name.removeprefix(ENV_PREFIX).lower().partition("__")
        if name.startswith(ENV_PREFIX) and nested and section not in Settings.model_fields:
            advice = hint(section, Settings.model_fields)
            raise InvalidSettings(f"unknown setting in the environment: {variable}; {advice}")


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    name = ".".join(path)
    if first["type"] == "extra_forbidden":
        return f"unknown setting {name}: {hint(path[-1], _fields_at(path[:-1]))}"
    secret = path[0] in ("keys", "admin_key")  # somebody may have put the key itself there
    return f"setting {name}: {first['msg'].lower()}" + ("" if secret else f", not {first['input']!r}")


def _fields_at(path: list[str]) -> list[str]:
    model: type[BaseModel] = Settings
    for part in path:
        inner = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)
