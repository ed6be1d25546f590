"""A tiny base with guides, and the plugin configured for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from folders import foreign_folder
from tiny import tiny_folder
from vllm_runner import config

from trimtab.vllm.processor import TrimtabProcessor, _catalogue, _read_ahead

Make = Callable[..., TrimtabProcessor]


@pytest.fixture(scope="session")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models."""
    place = tmp_path_factory.mktemp("vllm")
    tiny_folder(place / "base")
    tiny_folder(place / "arm", seed=1)
    tiny_folder(place / "anti", seed=2)
    foreign_folder(place / "foreign", seed=3)
    return place


@pytest.fixture
def configure(furnished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Write a configuration and let the environment name it."""

    def write(pool_tokens: int = 1024, **engine: Any) -> Path:
        guides = {
            name: {"role": "lm", "model": str(furnished / name), "pool_tokens": pool_tokens}
            for name in ("arm", "anti", "foreign")
        }
        guides["brief"] = {"role": "program", "kind": "length", "direction": "shorter"}
        told = {"model": str(furnished / "base"), "page_size": 8, "guides": guides, **engine}
        file = tmp_path / "trimtab.yaml"
        file.write_text(yaml.safe_dump({"engine": told, "server": {"port": 0}}))
        monkeypatch.setenv("TRIMTAB_VLLM_CONFIG", str(file))
        _catalogue.cache_clear()
        _read_ahead.cache_clear()
        return furnished

    return write


@pytest.fixture
def configured(configure: Callable[..., Path]) -> Path:
    return configure()


@pytest.fixture
def make(configured: Path) -> Make:
    """A processor, for the device (V1) or the states of requests (V2)."""
    return lambda where: TrimtabProcessor(config(str(configured / "base")), where)


@pytest.fixture
def bare(configure: Callable[..., Path]) -> Make:
    """The same without guides, which take a while to load."""
    place = configure(guides={})
    return lambda where: TrimtabProcessor(config(str(place / "base")), where)
