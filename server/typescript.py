"""`trimtab openapi`: the API as a document, and as TypeScript types written from it."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from trimtab.engine.errors import TrimtabError
from trimtab.server.app import create_app
from trimtab.server.settings import Settings

if TYPE_CHECKING:
    from trimtab.llm import LLM

TOOL = "openapi-typescript@7.13.0"
PATIENCE = 300.0
"""seconds for the tool, which npx may have to download"""
NO_TYPES = {"title": str, "example": object, "headers": dict, "info": dict}
"""what of a document has no place in types, by its key and kind; a property may have such a name too"""


def document() -> dict[str, Any]:
    """The OpenAPI document of a server with default settings, as it is before a model is loaded."""
    unloaded = cast("LLM", SimpleNamespace(model_name="model", library=None))
    return create_app(unloaded, Settings()).openapi()


def canonical(told: object) -> str:
    """A document as text, the same for the same document."""
    return json.dumps(told, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def source(told: Mapping[str, Any]) -> str:
    """What the types are written from: the document without titles, examples and headers of responses."""
    return canonical({**_bare(told), "info": {"title": "trimtab", "version": "1"}})


def mark(text: str) -> str:
    """The line of the types that tells what they were written from."""
    return f"// openapi sha256 {hashlib.sha256(text.encode()).hexdigest()}"


def types(text: str) -> str:
    """TypeScript types of a document; raises TrimtabError without Node.js, whose npx fetches the tool."""
    if (npx := shutil.which("npx")) is None:
        raise TrimtabError("npx is not there: install Node.js, which writes the TypeScript types")
    with TemporaryDirectory() as folder:
        given, target = Path(folder, "openapi.json"), Path(folder, "types.d.ts")
        given.write_text(text, encoding="utf-8")
        command = [npx, "--yes", TOOL, str(given), "-o", str(target), "--default-non-nullable", "false"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        if done.returncode != 0:
            raise TrimtabError(f"{TOOL} ended with {done.returncode}: {(done.stdout + done.stderr).strip()[-800:]}")
        written = target.read_text(encoding="utf-8")
    return f"// The API of trimtab, written by `trimtab openapi --types` with {TOOL}.\n{mark(text)}\n{written}"


def _bare(told: Any, *, names: bool = False) -> Any:
    """A part of the document without what has no place in types; `names`: its keys are names of ours."""
    if isinstance(told, list):
        return [_bare(each) for each in told]
    if not isinstance(told, Mapping):
        return told
    kept = {key: value for key, value in told.items() if names or not isinstance(value, NO_TYPES.get(key, ()))}
    return {key: _bare(value, names=not names and key in ("properties", "schemas")) for key, value in kept.items()}
