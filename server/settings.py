"""Settings of the server: command line over environment over YAML file over defaults."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from trimtab.engine.errors import TrimtabError
from trimtab.engine.settings import EngineSettings
from trimtab.server.nearest import hint

ENV_PREFIX = "TRIMTAB_"


class InvalidSettings(TrimtabError):
    """A setting is unknown, of the wrong type or out of range; the message is one line."""


class RequestLimits(BaseModel):
    """What one request may ask for; more is a 400 that names the limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_n: int = Field(default=32, ge=1, description="choices of one request, over all its prompts")
    max_tokens: int | None = Field(default=None, ge=1, description="new tokens of one choice; absent: the context")
    max_pairs: int = Field(default=1024, ge=1, description="answers that one request may have scored")


class ServerSettings(BaseModel):
    """How the HTTP server listens and what it accepts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535, description="0 takes any free port")
    shutdown_timeout: float = Field(default=30.0, ge=0.0, description="seconds that running requests get after SIGTERM")
    max_body_bytes: int = Field(default=8 * 2**20, ge=1)
    keep_alive: float = Field(default=10.0, gt=0.0, description="seconds of silence before a comment in a stream")
    limits: RequestLimits = RequestLimits()


class Settings(BaseSettings):
    """Everything that can be configured; build it with `load_settings` to read a file as well."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix=ENV_PREFIX, env_nested_delimiter="__")

    server: ServerSettings = ServerSettings()
    engine: EngineSettings = Field(default_factory=EngineSettings)


def load_settings(config: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings from the command line (`overrides`, nested), the environment, `config` and the defaults.

    Raises InvalidSettings with one line that names the setting and the nearest valid one.
    """
    _refuse_unknown_environment()
    values = {} if config is None else _read_yaml(config)

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
            return init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=values)

    try:
        return WithFile(**(overrides or {}))
    except ValidationError as error:
        raise InvalidSettings(_one_line(error)) from None
    except SettingsError as error:
        raise InvalidSettings(f"{error}: write nested settings as {ENV_PREFIX}SERVER__PORT=8000") from None


def as_yaml(settings: Settings) -> str:
    """The resolved settings in the form that `--config` reads."""
    return str(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))


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
    return f"setting {name}: {first['msg'].lower()}, not {first['input']!r}"


def _fields_at(path: list[str]) -> list[str]:
    model: type[BaseModel] = Settings
    for part in path:
        inner = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)
