"""Small mixes, and a machine whose times can be reckoned by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from trimtab.bench.capacity.machines.measured import Calibrated, Calibration, Workstation
from trimtab.bench.capacity.mix import Mix, checked
from trimtab.bench.capacity.site import Site, site_of

PLAIN: dict[str, Any] = {
    "model": "demo",
    "guides": {"judge": {"kind": "adapter", "reads": "answer"}, "arm": {"kind": "adapter"}},
    "requests": [{"share": 1, "prompt": {"mean": 101}, "answer": {"mean": 50, "ends": "limit"}}],
}


@pytest.fixture
def mix() -> Callable[..., Mix]:
    """A mix of one kind of request, with changes."""

    def make(**changes: Any) -> Mix:
        return checked({**PLAIN, **changes}, "mix.yaml")

    return make


@pytest.fixture
def machine() -> Workstation:
    """A step takes 10 ms and 1 ms a row, a token of a prompt 0.1 ms, a request 5 ms; nothing else takes time."""
    clock = Calibrated(
        steps=((1.0, 0.011), (11.0, 0.021)),
        row_context=0.0,
        adapted=0.0,
        token=1e-4,
        scored=1e-4,
        candidate=0.0,
        reading=0.0,
    )
    return Workstation(Calibration(name="toy", machine={}, models={"demo": clock}, request=0.005))


@pytest.fixture
def site(mix: Callable[..., Mix], machine: Workstation) -> Callable[..., Site]:
    """One replica of the toy machine under a mix with changes."""

    def make(**changes: Any) -> Site:
        return site_of(mix(**changes), machine)

    return make


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """A mix file, with changes."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "mix.yaml"
        path.write_text(yaml.safe_dump({**PLAIN, **changes}))
        return path

    return write
