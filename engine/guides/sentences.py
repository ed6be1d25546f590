"""What a sentence-transformers folder says of how its model turns a text into one vector."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

from trimtab.engine.errors import ModelLoadError

Pooling = Literal["mean", "cls", "last"]

_MODES: Final[Mapping[str, Pooling]] = MappingProxyType(
    {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_cls_token": "cls",
        "pooling_mode_lasttoken": "last",
        "mean": "mean",
        "cls": "cls",
        "lasttoken": "last",
    }
)
"""by the key of older folders, whose value is true, and by the value of `pooling_mode` in newer ones"""
_READ: Final = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How texts become vectors; what the folder does not say is absent."""

    pooling: Pooling | None = None
    max_tokens: int | None = None
    lower: bool = False
    """texts are lower-cased before they are tokenised"""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """what the model was trained to find before a text, by the kind of the text"""


def read_recipe(folder: Path, *, pooled: bool = False) -> Recipe:
    """Read modules.json and the files beside it; an empty recipe for a plain model folder.

    `pooled`: the pooling is known from elsewhere, and what the folder says of it is not looked at.
    Raises ModelLoadError for broken files, for modules that are not read (a layer behind the pooling), and for ways of
    pooling that there are none of here.
    """
    listed = _read_json(folder / "modules.json")
    if listed is None:
        return Recipe()
    try:
        kinds = {str(each["type"]).rpartition(".")[2]: str(each["path"]) for each in listed}
    except (TypeError, KeyError) as error:
        raise ModelLoadError(f"{folder / 'modules.json'} is broken: download it again") from error
    unread = [kind for kind in kinds if kind not in _READ]
    if unread:
        raise ModelLoadError(
            f"model folder {folder} has the module {unread[0]} of sentence-transformers, which is not read: pass a "
            f"model of {', '.join(_READ)} alone"
        )
    reading = _read_json(folder / "sentence_bert_config.json") or {}
    told = _read_json(folder / "config_sentence_transformers.json") or {}
    pooling = None if pooled or "Pooling" not in kinds else _pooling(folder / kinds["Pooling"] / "config.json")
    return Recipe(
        pooling,
        reading.get("max_seq_length"),
        bool(reading.get("do_lower_case")),
        {kind: prompt for kind, prompt in (told.get("prompts") or {}).items() if prompt},
    )


def _pooling(file: Path) -> Pooling:
    told = _read_json(file)
    if told is None:
        raise ModelLoadError(f"{file} is missing: download the folder again, or set 'pooling' to mean, cls or last")
    mode = told.get("pooling_mode")
    named = [mode] if isinstance(mode, str) else mode or []
    named += [key for key, value in told.items() if key.startswith("pooling_mode_") and value is True]
    if len(named) != 1 or named[0] not in _MODES:
        raise ModelLoadError(
            f"{file} pools by {' and '.join(named) or 'nothing'}, and mean, cls and last are what there is: set "
            "'pooling' to one of them if it will do"
        )
    return _MODES[named[0]]


def _read_json(file: Path) -> Any:
    """What a file holds; None if there is none."""
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{file} cannot be read ({error}): download it again") from error
