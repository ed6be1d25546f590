"""What the operator configures: the file that `trimtab serve --config` reads, named by an environment variable."""

import os
from pathlib import Path
from typing import Final

import yaml
from pydantic import ValidationError

from trimtab.engine.errors import ModelLoadError
from trimtab.engine.settings import EngineSettings

CONFIG: Final = "TRIMTAB_VLLM_CONFIG"
"""names the file; without it the plugin sleeps, so that vLLM runs as if it were not installed"""


def read_settings() -> EngineSettings | None:
    """The `engine` section of the file that the environment names; None if it names none.

    JSON is YAML too. Raises ModelLoadError that says what to change.
    """
    named = os.environ.get(CONFIG)
    if not named:
        return None
    path = Path(named).expanduser()
    try:
        given = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelLoadError(f"{CONFIG}={named} cannot be read: {reason}") from error
    if not isinstance(given, dict) or not isinstance(given.get("engine"), dict):
        raise ModelLoadError(f"{CONFIG}={named} has no section `engine` with `model` and `guides`: add it")
    if missing := [key for key in ("model", "guides") if key not in given["engine"]]:
        raise ModelLoadError(
            f"{CONFIG}={named} lacks engine.{missing[0]}: name the model that vLLM serves, and the guides"
        )
    try:
        return EngineSettings.model_validate(given["engine"])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("engine", *first["loc"])))
        raise ModelLoadError(f"{CONFIG}={named}: {where}: {first['msg']}") from None
