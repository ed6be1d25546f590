"""A real server on a tiny model with a guide for every role, and a small benchmark to run against it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import Running
from steered import furnish, guides, load

from trimtab.bench.records import Row
from trimtab.bench.start import start
from trimtab.server.settings import ServerSettings

PROMPTS = [
    {"id": f"p{number}", "category": ("kind", "plain")[number % 2], "prompt": f"Say {number}."} for number in range(6)
]
SETTINGS: list[dict[str, Any]] = [
    {"name": "arm", "decoding": {"strategy": "genarm", "arm": "arm", "alpha": 0.5}},
    {"name": "best", "decoding": {"strategy": "best_of_n", "n": 4, "reward": "brief"}, "curve": [2]},
]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server's URL. Its model is called `base`."""
    place = furnish(tmp_path_factory.mktemp("models"))
    lexicon = {"role": "program", "kind": "lexicon", "weights": {"good": 1.0}}  # what measures the attribute praise
    with load(place / "base", {**guides(place), "lexicon": lexicon}) as llm:
        running = Running(llm, ServerSettings())
        yield running.url
        running.stop()


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Write prompts and settings; the options of a small run with them."""

    def write(*, settings: list[dict[str, Any]] = SETTINGS, **changes: Any) -> dict[str, Any]:
        prompts, file = tmp_path / "prompts.jsonl", tmp_path / "settings.yaml"
        prompts.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
        file.write_text(yaml.safe_dump(settings))
        small = {"concurrency": (3, 1), "timed": 2, "max_tokens": 12, "reward": "brief", "gold": "judge"}
        return {"settings": str(file), "prompts": str(prompts), **small, **changes}

    return write


@pytest.fixture
def measure(tiny: str, tmp_path: Path) -> Callable[..., list[Row]]:
    """Run to the end against the shared server, in the folder `run`."""

    def run(given: dict[str, Any], patience: float = 0.0, **changes: Any) -> list[Row]:
        return start({"url": tiny, **given, **changes}, tmp_path / "run", patience=patience, api_key=None)

    return run
