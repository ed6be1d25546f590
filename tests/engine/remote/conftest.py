"""One tiny model three times: here, behind our own server, and as a base that the server runs for an engine here."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import Running
from tiny import tiny_folder

from trimtab.engine.settings import EngineSettings
from trimtab.llm import LLM
from trimtab.server.settings import ServerSettings

GUIDES = {
    "vowels": {"role": "program", "kind": "regex", "pattern": "[aeiou]", "mode": "count"},
    "length": {"role": "program", "kind": "length", "unit": "characters", "direction": "longer"},
}


def engine(folder: Path | str, **given: Any) -> LLM:
    """The tiny model with two rewards; `given` are further settings."""
    return LLM(settings=EngineSettings.model_validate({"model": str(folder), "dtype": "float32", **given}))


@pytest.fixture(scope="session")
def guides() -> dict[str, Any]:
    return GUIDES


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("remote") / "tiny")


@pytest.fixture(scope="session")
def here(base_folder: Path) -> Iterator[LLM]:
    with engine(base_folder, guides=GUIDES) as llm:
        yield llm


@pytest.fixture(scope="session")
def there(base_folder: Path) -> Iterator[Running]:
    """The server that has the base."""
    with engine(base_folder, guides={}) as llm:
        server = Running(llm, ServerSettings())
        yield server
        server.stop()


@pytest.fixture(scope="session")
def remote(base_folder: Path, there: Running) -> Iterator[LLM]:
    with engine(base_folder, guides=GUIDES, remote={"url": there.url}) as llm:
        yield llm
